"""Regressors that predict a distribution: what the diffusion regressor is compared with."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.special import logsumexp, ndtr, ndtri
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold, KFold
from xgboost import XGBRegressor

N_FOLDS = 5
ALPHAS = np.logspace(-2, 5, 15)
LEVELS = np.array([0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98])
MAX_ROUNDS = 1000
PATIENCE = 30
LARGE = 10_000
"""From so many training rows on, a batch of the MLP has 256 of them, else 64."""

Folds = list[tuple[np.ndarray, np.ndarray]]


class Predictive(Protocol):
    """One distribution of the target per row."""

    mean: np.ndarray

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Log density at one value per row, nats per unit of the target, ``(n,)``."""

    def quantile(self, levels: np.ndarray) -> np.ndarray:
        """Quantiles, ``(n, n_levels)``."""


@dataclass(frozen=True)
class Gaussians:
    """Equal mixture of Gaussians in every row: ``means`` and ``sds`` are ``(n, n_components)``."""

    means: np.ndarray
    sds: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean of every row."""
        return self.means.mean(1)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Log density at one value per row."""
        z = (y[:, None] - self.means) / self.sds
        return logsumexp(-0.5 * z**2 - np.log(self.sds * np.sqrt(2 * np.pi)), axis=1) - np.log(z.shape[1])

    def quantile(self, levels: np.ndarray) -> np.ndarray:
        """Quantiles, of mixtures by bisection."""
        ends = self.means[:, :, None] + self.sds[:, :, None] * ndtri(levels)
        low, high = ends.min(1), ends.max(1)
        while (high - low).max() > 1e-4 * self.sds.min():
            middle = 0.5 * (low + high)
            below = ndtr((middle[:, None] - self.means[:, :, None]) / self.sds[:, :, None]).mean(1) < levels
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)


@dataclass(frozen=True)
class Quantiles:
    """Quantiles at :data:`LEVELS` in every row, ``(n, 9)``, increasing: a linear CDF between them, exponential tails beyond.

    The tails start with the density of the neighbouring interval.
    """

    values: np.ndarray

    def _tails(self) -> np.ndarray:
        """Scale of both tails, ``(n, 2)``."""
        gap, share = np.diff(self.values)[:, [0, -1]], np.diff(LEVELS)[[0, -1]]
        return gap * np.array([LEVELS[0], 1 - LEVELS[-1]]) / share

    @property
    def mean(self) -> np.ndarray:
        """Mean of every row."""
        tails, inside = self._tails(), 0.5 * (self.values[:, 1:] + self.values[:, :-1]) @ np.diff(LEVELS)
        below = LEVELS[0] * (self.values[:, 0] - tails[:, 0])
        return inside + below + (1 - LEVELS[-1]) * (self.values[:, -1] + tails[:, 1])

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Log density at one value per row."""
        heights = np.diff(LEVELS) / np.diff(self.values)
        bins = np.clip((self.values < y[:, None]).sum(1) - 1, 0, len(LEVELS) - 2)
        beyond = np.maximum(np.column_stack([self.values[:, 0] - y, y - self.values[:, -1]]), 0)
        return np.log(heights[np.arange(len(y)), bins]) - (beyond / self._tails()).sum(1)

    def quantile(self, levels: np.ndarray) -> np.ndarray:
        """Quantiles; levels beyond the outer ones are in the tails."""
        tails, out = self._tails(), np.empty((len(self.values), len(levels)))
        for j, level in enumerate(levels):
            if level < LEVELS[0]:
                out[:, j] = self.values[:, 0] + tails[:, 0] * np.log(level / LEVELS[0])
            elif level > LEVELS[-1]:
                out[:, j] = self.values[:, -1] - tails[:, 1] * np.log((1 - level) / (1 - LEVELS[-1]))
            else:
                i = min(int(np.searchsorted(LEVELS, level, side="right")) - 1, len(LEVELS) - 2)
                share = (level - LEVELS[i]) / (LEVELS[i + 1] - LEVELS[i])
                out[:, j] = (1 - share) * self.values[:, i] + share * self.values[:, i + 1]
        return out


@dataclass(frozen=True)
class Bins:
    """Densities on bins, ``(n, n_bins)``, zero beyond them; ``mean`` as the method gives it."""

    edges: np.ndarray
    density: np.ndarray
    mean: np.ndarray

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Log density at one value per row; minus infinity beyond the bins."""
        bins = np.searchsorted(self.edges, y, side="right") - 1
        inside = (bins >= 0) & (bins < len(self.edges) - 1)
        found = self.density[np.arange(len(y)), np.clip(bins, 0, len(self.edges) - 2)]
        with np.errstate(divide="ignore"):
            return np.log(np.where(inside, found, 0.0))

    def quantile(self, levels: np.ndarray) -> np.ndarray:
        """Quantiles, the CDF being linear within a bin."""
        weights = self.density * np.diff(self.edges)
        weights /= weights.sum(1, keepdims=True)
        cdf, rows, out = np.cumsum(weights, axis=1), np.arange(len(weights)), []
        for level in levels:
            i = np.minimum((cdf < level).sum(1), len(self.edges) - 2)
            share = (level - cdf[rows, i] + weights[rows, i]) / np.maximum(weights[rows, i], 1e-300)
            out.append(self.edges[i] + (self.edges[i + 1] - self.edges[i]) * np.clip(share, 0, 1))
        return np.column_stack(out)


@dataclass(frozen=True)
class Prediction:
    """Distributions of the test rows, seconds to fit (with all cross-validation) and to predict, and a conformal interval if there is one."""

    predictive: Predictive
    fit_seconds: float
    predict_seconds: float
    interval: np.ndarray | None = None


def make_folds(n: int, groups: np.ndarray | None, *, seed: int) -> Folds:
    """Five folds of training rows, of whole groups where there are groups."""
    if groups is None:
        return list(KFold(N_FOLDS, shuffle=True, random_state=seed).split(np.zeros(n)))
    return list(GroupKFold(N_FOLDS, shuffle=True, random_state=seed).split(np.zeros(n), groups=groups))


class RidgeGaussian:
    """Ridge regression, penalty by cross-validation; the sd of the residuals of the held-out folds is that of the prediction."""

    def __init__(self, *, folds: Folds, seed: int, threads: int) -> None:
        self.folds = folds

    def fit(self, x: np.ndarray, y: np.ndarray) -> RidgeGaussian:
        """Choose the penalty, fit to all rows."""
        self.model = RidgeCV(ALPHAS, cv=self.folds).fit(x, y)
        left = [y[b] - Ridge(self.model.alpha_).fit(x[a], y[a]).predict(x[b]) for a, b in self.folds]
        self.sd = float(np.sqrt(np.mean(np.concatenate(left) ** 2)))
        return self

    def predict(self, x: np.ndarray) -> Gaussians:
        """Distributions of new rows."""
        mean = self.model.predict(x)[:, None]
        return Gaussians(mean, np.full_like(mean, self.sd))


class XGBGaussian:
    """XGBoost: depth by the first held-out fold, rounds by early stopping in all folds, then a fit to all rows.

    The sd of the residuals of the held-out folds is that of the prediction.
    """

    depths = (4, 7)

    def __init__(self, *, folds: Folds, seed: int, threads: int) -> None:
        self.folds, self.seed, self.threads = folds, seed, threads

    def _model(self, depth: int, *, rounds: int = MAX_ROUNDS, patience: int | None = PATIENCE) -> XGBRegressor:
        return XGBRegressor(
            n_estimators=rounds,
            max_depth=depth,
            learning_rate=0.05,
            min_child_weight=5,
            subsample=0.8,
            colsample_bytree=0.5,
            tree_method="hist",
            early_stopping_rounds=patience,
            n_jobs=self.threads,
            random_state=self.seed,
        )

    def fit(self, x: np.ndarray, y: np.ndarray) -> XGBGaussian:
        """Choose depth and rounds, fit to all rows."""

        def stopped(depth: int, fold: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, int]:
            a, b = fold
            model = self._model(depth).fit(x[a], y[a], eval_set=[(x[b], y[b])], verbose=False)
            return y[b] - model.predict(x[b]), model.best_iteration + 1

        first = {depth: stopped(depth, self.folds[0]) for depth in self.depths}
        depth = min(first, key=lambda d: float(np.mean(first[d][0] ** 2)))
        found = [first[depth], *(stopped(depth, fold) for fold in self.folds[1:])]
        self.sd = float(np.sqrt(np.mean(np.concatenate([left for left, _ in found]) ** 2)))
        rounds = max(1, round(np.mean([n for _, n in found])))
        self.model = self._model(depth, rounds=rounds, patience=None).fit(x, y)
        return self

    def predict(self, x: np.ndarray) -> Gaussians:
        """Distributions of new rows."""
        mean = self.model.predict(x).astype(np.float64)[:, None]
        return Gaussians(mean, np.full_like(mean, self.sd))


class MLPEnsemble:
    """Five networks with heads for mean and log-variance, each stopped early by the NLL of another held-out fold.

    Notes
    -----
    Deep ensembles: Lakshminarayanan et al., NeurIPS 2017; loss: the beta-NLL (beta = 0.5) of Seitzer et al., ICLR 2022.
    """

    width, dropout, beta, max_epochs, patience = 128, 0.1, 0.5, 200, 15

    def __init__(self, *, folds: Folds, seed: int, threads: int) -> None:
        self.folds, self.seed = folds, seed

    def _network(self, n_features: int) -> torch.nn.Sequential:
        n = self.width
        return torch.nn.Sequential(
            *(torch.nn.Linear(n_features, n), torch.nn.ReLU(), torch.nn.Dropout(self.dropout)),
            *(torch.nn.Linear(n, n), torch.nn.ReLU(), torch.nn.Dropout(self.dropout)),
            torch.nn.Linear(n, 2),
        )

    @staticmethod
    def _heads(network: torch.nn.Sequential, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the standardised target."""
        out = network(x)
        return out[:, 0], out[:, 1].clamp(-8, 4)

    def _train(self, x: torch.Tensor, y: torch.Tensor, a: np.ndarray, b: np.ndarray) -> torch.nn.Sequential:
        network = self._network(x.shape[1])
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
        x_a, y_a, x_b, y_b = x[a], y[a], x[b], y[b]
        size = 256 if len(a) >= LARGE else 64
        best, best_epoch, weights = np.inf, 0, None
        for epoch in range(self.max_epochs):
            network.train()
            for rows in torch.randperm(len(a)).split(size):
                mean, log_variance = self._heads(network, x_a[rows])
                nll = 0.5 * (log_variance + (y_a[rows] - mean) ** 2 / log_variance.exp())
                loss = (log_variance.detach().exp() ** self.beta * nll).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            network.eval()
            with torch.no_grad():
                mean, log_variance = self._heads(network, x_b)
                value = float((log_variance + (y_b - mean) ** 2 / log_variance.exp()).mean())
            if value < best:
                best, best_epoch = value, epoch
                weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            elif epoch - best_epoch >= self.patience:
                break
        network.load_state_dict(weights)
        return network.eval()

    def fit(self, x: np.ndarray, y: np.ndarray) -> MLPEnsemble:
        """Train one network per fold, on the rows outside of it."""
        torch.manual_seed(self.seed)
        self.mean, self.sd = float(y.mean()), float(y.std())
        x_all = torch.as_tensor(x, dtype=torch.float32)
        y_all = torch.as_tensor((y - self.mean) / self.sd, dtype=torch.float32)
        self.networks = [self._train(x_all, y_all, a, b) for a, b in self.folds]
        return self

    def predict(self, x: np.ndarray) -> Gaussians:
        """Distributions of new rows."""
        rows = torch.as_tensor(x, dtype=torch.float32)
        with torch.no_grad():
            found = [self._heads(network, rows) for network in self.networks]
        means, log_variances = (torch.stack(list(part), dim=1).double().numpy() for part in zip(*found, strict=True))
        return Gaussians(self.mean + self.sd * means, self.sd * np.exp(0.5 * log_variances))


class QuantileBoosting:
    """Histogram gradient boosting of nine quantiles: size of the trees and rounds by the first held-out fold, then fits to all rows.

    Quantiles that cross are sorted, and keep at least a thousandth of the sd of the target between them.
    """

    sizes = (8, 31)
    least_gap = 1e-3

    def __init__(self, *, folds: Folds, seed: int, threads: int) -> None:
        self.fold, self.seed = folds[0], seed

    def _model(self, level: float, leaves: int, *, rounds: int, stop: bool) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            learning_rate=0.1,
            max_iter=rounds,
            max_leaf_nodes=leaves,
            early_stopping=stop,
            n_iter_no_change=20,
            random_state=self.seed,
        )

    def fit(self, x: np.ndarray, y: np.ndarray) -> QuantileBoosting:
        """Choose size and rounds, fit to all rows."""
        a, b = self.fold

        def stopped(level: float, leaves: int) -> tuple[float, int]:
            model = self._model(level, leaves, rounds=400, stop=True).fit(x[a], y[a], X_val=x[b], y_val=y[b])
            scores = model.validation_score_[1:]
            return -float(scores.max()), int(scores.argmax()) + 1

        medians = {leaves: stopped(0.5, leaves) for leaves in self.sizes}
        leaves = min(medians, key=lambda n: medians[n][0])
        rounds = [medians[leaves][1] if level == 0.5 else stopped(level, leaves)[1] for level in LEVELS]
        self.models = [
            self._model(level, leaves, rounds=n, stop=False).fit(x, y) for level, n in zip(LEVELS, rounds, strict=True)
        ]
        self.gap = self.least_gap * float(y.std())
        return self

    def predict(self, x: np.ndarray) -> Quantiles:
        """Distributions of new rows."""
        values = np.sort(np.column_stack([model.predict(x) for model in self.models]), axis=1)
        steps = self.gap * np.arange(len(LEVELS))
        return Quantiles(np.maximum.accumulate(values - steps, axis=1) + steps)


PEERS: dict[str, Callable[..., RidgeGaussian | XGBGaussian | MLPEnsemble | QuantileBoosting]] = {
    "ridge": RidgeGaussian,
    "xgb": XGBGaussian,
    "mlp5": MLPEnsemble,
    "qgb": QuantileBoosting,
}


def run_peer(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    *,
    groups: np.ndarray | None,
    seed: int,
    threads: int,
) -> Prediction:
    """Fit a peer and predict the test rows.

    Parameters
    ----------
    name
        A key of :data:`PEERS`.
    x, y, groups
        Features, standardised where that matters, values and groups of the training rows.
    x_test
        Features of the test rows.
    seed, threads
        Random seed, also of the folds, and number of threads.
    """
    peer = PEERS[name](folds=make_folds(len(y), groups, seed=seed), seed=seed, threads=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # releases of scikit-learn differ in what they deprecate
        start = time.perf_counter()
        peer.fit(x, y)
        fitted = time.perf_counter()
        predictive = peer.predict(x_test)
        return Prediction(predictive, fitted - start, time.perf_counter() - fitted)


def run_rival(column: np.ndarray, y: np.ndarray, column_test: np.ndarray) -> Prediction:
    """A published predictor as it is, on the line through the training rows that suits it best."""
    start = time.perf_counter()
    slope, offset = np.polyfit(column, y, 1)
    sd = float(np.std(y - slope * column - offset))
    fitted = time.perf_counter()
    mean = (slope * column_test + offset)[:, None]
    return Prediction(Gaussians(mean, np.full_like(mean, sd)), fitted - start, time.perf_counter() - fitted)
