r"""Classes that were never seen: the combination of two classes, additive in the means of the reference and in the embeddings of the network."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from scscore.core.denoiser import ResidualDenoiser, networks_of
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.readout import LinearReadout
from scscore.core.reference import GaussianReference


class Pair(NamedTuple):
    """Positions of the two classes that are combined."""

    first: int
    second: int


def with_combinations(model: ConditionalDiffusion, pairs: list[Pair], control: int) -> ConditionalDiffusion:
    r"""A model with one more class for every pair, after the others.

    The Gaussian of a combination has the mean :math:`\mu_a + \mu_b - \mu_0` (0: control) and the mean covariance of the two. Cells that escaped one of
    the two, or both, stay at the components of the other, or of control: with the weights :math:`A` of the reference, the combination has
    the weight :math:`A_{aa} A_{bb}` on its own component, :math:`A_{aa} A_{b0}` on that of `a`, :math:`A_{a0} A_{bb}` on that of `b` and
    :math:`A_{a0} A_{b0}` on that of control, normalised. Embeddings and the weights of the readout
    add up like means, and its biases so that what tells `a` from control tells the combination from `b`.

    Parameters
    ----------
    model
        A trained model; left unchanged.
    pairs
        What to combine.
    control
        Position of the class without perturbation.

    Raises
    ------
    TypeError
        The network has no embeddings of classes.
    """
    reference = _combined_reference(model.reference, pairs, control)
    denoiser = copy.deepcopy(model.denoiser)
    members = [] if denoiser is None else networks_of(denoiser)
    for member in members:
        if not isinstance(member, ResidualDenoiser):
            raise TypeError("only networks with an embedding of every class can be combined.")
        film = member.class_film.detach()
        added = [film[a] + film[b] - film[control] for a, b in pairs]
        member.class_film = torch.nn.Parameter(torch.cat([film, torch.stack(added)]))
    readout = None
    if isinstance(model.readout, LinearReadout):
        readout = _combined_readout(model.readout, model.reference.class_means, pairs, control)
    return ConditionalDiffusion(model.schedule, reference, denoiser, readout).eval()


def _combined_readout(readout: LinearReadout, means: Tensor, pairs: list[Pair], control: int) -> LinearReadout:
    """What tells `a` from control tells the combination from `b`, moved by what `b` moves the cells, and the other way round."""
    first, second = (torch.tensor(part, device=means.device) for part in zip(*pairs, strict=True))

    def added(value: Tensor) -> Tensor:
        return value[first] + value[second] - value[control]

    of_features = readout.weight + readout.of_scores @ readout.score_slopes.T
    slope, move = of_features - of_features[control], means - means[control]
    cross = 0.5 * (torch.linalg.vecdot(slope[first], move[second]) + torch.linalg.vecdot(slope[second], move[first]))
    weight, of_scores = (torch.cat([value, added(value)]) for value in (readout.weight, readout.of_scores))
    bias = torch.cat([readout.bias, added(readout.bias) - cross])
    never = readout.log_prior.new_full((len(pairs),), -torch.inf)  # what was fitted knows nothing of them
    log_prior = torch.cat([readout.log_prior, never])
    return LinearReadout(weight, bias, readout.exponent, log_prior, of_scores, readout.score_slopes, readout.score_bias)


def _combined_reference(reference: GaussianReference, pairs: list[Pair], control: int) -> GaussianReference:
    n_scales, n_classes, n_new = len(reference.scales), reference.n_classes, len(pairs)
    if len(reference.means) != n_classes:
        raise TypeError("only references with one component per class can be combined.")
    first, second = (torch.tensor(part) for part in zip(*pairs, strict=True))
    means = torch.cat([reference.means, reference.means[first] + reference.means[second] - reference.means[control]])
    variances, axes = reference.variances, reference.axes
    if axes is not None:
        covariances = (axes * variances[:, None, :]) @ axes.mT
        new_variances, new_axes = torch.linalg.eigh(0.5 * (covariances[first] + covariances[second]))
        variances, axes = torch.cat([variances, new_variances]), torch.cat([axes, new_axes])
    else:
        variances = torch.cat([variances, 0.5 * (variances[first] + variances[second])])
    by_component = reference.weights.unflatten(1, (n_classes, n_scales))
    weights = torch.zeros(n_classes + n_new, n_classes + n_new, n_scales, dtype=torch.float64)
    weights[:n_classes, :n_classes] = by_component
    share = by_component.sum(2)
    for i, (a, b) in enumerate(pairs, start=n_classes):
        places = {
            i: (share[a, a] * share[b, b], by_component[a, a] + by_component[b, b]),
            a: (share[a, a] * share[b, control], by_component[a, a]),
            b: (share[a, control] * share[b, b], by_component[b, b]),
            control: (share[a, control] * share[b, control], by_component[control, control]),
        }
        for k, (weight, scales) in places.items():
            weights[i, k] = weight * scales / scales.sum()
        weights[i] /= weights[i].sum()
    return GaussianReference(means, weights.flatten(1), variances, axes, reference.scales)
