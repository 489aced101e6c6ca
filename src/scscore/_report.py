"""The report of the command line: one HTML page about a classified file, class by class, without scripts or other files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get, pl
from scscore._html import STYLE, cell_text, mean, number, percent, picture, table
from scscore._version import __version__
from scscore.core.calibration import expected_calibration_error
from scscore.io.keys import UNKNOWN, Keys
from scscore.io.params import stored_params
from scscore.pl import _base
from scscore.pl._novelty import typicality_of
from scscore.pl._reliability import Curve, class_indices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PAIRS, _MOST_CELLS_PER_PAIR, _MOST_NOVEL = 12, 5, 20
_LEAST_SHARED = 0.5  # cells
_N_BINS = 15


def report(adata: AnnData, *, condition: str | None = None, key: str = "scscore", source: str = "") -> str:
    """HTML page about cells after :func:`scscore.tl.classify`: summary, classes, pictures, confusions, novel cells.

    Parameters
    ----------
    adata
        Classified cells; ``X`` is not read.
    condition
        Column of ``obs`` with known labels, to judge the result. ``None``: there are none.
    key
        The `key_added` of the classification.
    source
        Name of the data, for the title.

    Returns
    -------
    The page, self-contained: style and pictures are inside.

    Raises
    ------
    KeyError, ValueError
        `adata` is not classified under `key`, or `condition` is no column of groups.
    """
    cells = _cells(adata, condition, key)
    title = "Classification report"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="source">{escape(source)}</p>' if source else "",
        _summary(adata, cells, condition, key),
        _classes(cells),
        _pictures(adata, cells, condition, key),
        _pairs(cells) if cells.known is None else _confusions(cells, cells.known),
        _novel(adata, cells, key),
        _set_sizes(cells),
        _settings(adata, key),
    ]
    head = f'<meta charset="utf-8">\n<title>{escape(f"{title}: {source}" if source else title)}</title>'
    head += f'\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


class _Cells(NamedTuple):
    """What was stored of every cell."""

    names: NDArray[np.str_]
    classes: list[str]
    posterior: NDArray[np.floating]  # (n, n_classes)
    best: NDArray[np.int64]  # most probable class
    confidence: NDArray[np.floating]
    label: NDArray[np.object_]
    prior: list[float | None]
    typicality: NDArray[np.floating] | None
    rejected: NDArray[np.bool_]
    sets: NDArray[np.bool_] | None
    known: NDArray[np.object_] | None  # None where there is no label
    y: NDArray[np.int64]  # index of the known label, -1 where the model does not have it


def _cells(adata: AnnData, condition: str | None, key: str) -> _Cells:
    keys, frame = Keys(key), get.posterior(adata, key=key)
    if keys.label not in adata.obs:
        raise KeyError(f"adata.obs[{keys.label!r}] is missing (key={key!r}): run scscore.tl.classify again.")
    label = _base.groups_of(adata, keys.label, "key").to_numpy(dtype=object)
    posterior, classes = frame.to_numpy(), frame.columns.tolist()
    best = posterior.argmax(1)
    typicality, rejected = None, np.zeros(len(best), dtype=bool)
    if keys.typicality in adata.obs:
        typicality, reject = typicality_of(adata, keys)
        rejected = typicality < np.float32(reject)
    known, y = None, np.full(len(best), -1)
    if condition is not None:
        column = _base.groups_of(adata, condition, "condition")
        known = column.to_numpy(dtype=object)
        known[column.isna().to_numpy()] = None
        y = class_indices(column, frame.columns)
    prior = stored_params(adata, keys.uns).get("prior", [])
    return _Cells(
        adata.obs_names.to_numpy(dtype=str),
        classes,
        posterior,
        best,
        posterior.max(1),
        label,
        prior if len(prior) == len(classes) else [None] * len(classes),
        typicality,
        rejected,
        get.prediction_sets(adata, key=key).to_numpy() if keys.prediction_set in adata.obsm else None,
        known,
        y,
    )


def _summary(adata: AnnData, cells: _Cells, condition: str | None, key: str) -> str:
    from sklearn.metrics import f1_score

    stored, params = adata.uns[key], stored_params(adata, key)
    n = len(cells.best)
    rows: list[Sequence[Any]] = [
        ("cells", n),
        ("classes", len(cells.classes)),
        ("mean confidence", float(cells.confidence.mean())),
    ]
    if cells.typicality is not None:
        share = f"{percent(cells.rejected.mean())}, typicality below {params['reject']:g}"
        rows.append((f"labelled {UNKNOWN}", f"{cells.rejected.sum():,} ({share})"))
    if cells.sets is not None:
        rows.append(("mean size of a prediction set", f"{cells.sets.sum(1).mean():.2f}"))
    if cells.known is not None:
        has, judged = pd.notna(cells.known), cells.y >= 0
        truth, label = cells.known[has].astype(str), cells.label[has].astype(str)
        macro = f1_score(truth, label, labels=np.unique(truth), average="macro", zero_division=0)
        rows += [
            ("cells with a known label", f"{has.sum():,} (column {condition})"),
            ("accuracy", float((truth == label).mean())),
            ("macro-F1", float(macro)),
        ]
        if judged.any():
            curve = Curve.of(cells.posterior[judged], cells.y[judged], _N_BINS)
            rows += [
                ("calibration error (ECE)", curve.ece),
                ("mean negative log posterior, nats", curve.nll),
                ("Brier score", curve.brier),
            ]
            if cells.sets is not None:
                covered = cells.sets[judged, cells.y[judged]].mean()
                wanted = f", {percent(params['coverage'])} wanted" if "coverage" in params else ""
                rows.append(("prediction sets with the known label", f"{percent(covered)}{wanted}"))
    rows += [
        ("trained on the column", params.get("condition")),
        ("model hash", stored.get("model_hash")),
        ("scscore", f"{stored.get('version', 'unknown version')} (report: {__version__})"),
    ]
    return "<h2>Summary</h2>" + table(("", ""), [(a, cell_text(b)) for a, b in rows])


def _classes(cells: _Cells) -> str:
    """One row per class of the model, and one per known label that the model does not have."""
    from sklearn.metrics import precision_recall_fscore_support

    header = ["class", "prior", "cells", "mean confidence"]
    header += [] if cells.typicality is None else [f"with {UNKNOWN}", f"share {UNKNOWN}"]
    header += [] if cells.sets is None else ["mean set size"]
    if cells.known is not None:
        header += ["known", "precision", "recall", "F1", "ECE", *([] if cells.sets is None else ["coverage"])]
        has = pd.notna(cells.known)
        truth, label = cells.known[has].astype(str), cells.label[has].astype(str)
        of_class = precision_recall_fscore_support(truth, label, labels=cells.classes, zero_division=np.nan)
    rows = []
    for k, name in enumerate(cells.classes):
        best = cells.best == k
        assigned = best & ~cells.rejected
        row: list[Any] = [name, cells.prior[k], int(assigned.sum()), mean(cells.confidence[assigned])]
        row += [] if cells.typicality is None else [int(best.sum()), percent(mean(cells.rejected[best]))]
        row += [] if cells.sets is None else [number(mean(cells.sets[assigned].sum(1)), ".2f")]
        if cells.known is not None:
            own, judged = cells.y == k, best & (cells.y >= 0)
            precision, recall, f1, n = (values[k] for values in of_class)
            ece = (
                expected_calibration_error(cells.posterior[judged], cells.y[judged], _N_BINS) if judged.any() else None
            )
            row += [int(n), precision, recall if n else None, f1 if n else None, ece]
            row += [] if cells.sets is None else [percent(mean(cells.sets[own, k]))]
        rows.append(row)
    notes = "Cells: labelled with the class; confidence and set size are means over them."
    if cells.typicality is not None:
        notes += (
            f" With {UNKNOWN}: cells with this most probable class, those labelled {UNKNOWN} included, and their share."
        )
    if cells.known is not None:
        notes += (
            " ECE: calibration error of the confidence, over cells with this most probable class (high by chance "
            "where these are few)."
        )
        if cells.sets is not None:
            notes += " Coverage: share of the cells known to be of the class whose prediction set holds it."
    return f"<h2>Classes</h2>{table(header, rows, notes)}{_strange_labels(cells)}"


def _strange_labels(cells: _Cells) -> str:
    """Known labels that are no class of the model."""
    if cells.known is None:
        return ""
    rows = []
    strange = pd.Series(cells.known)[pd.notna(cells.known) & (cells.y < 0)]
    for name, members in strange.groupby(strange):
        of_label = members.index.to_numpy()
        most = pd.Series(cells.label[of_label]).value_counts()
        rows.append(
            (
                str(name),
                len(of_label),
                percent(cells.rejected[of_label].mean()) if cells.typicality is not None else None,
                mean(cells.confidence[of_label]),
                f"{most.index[0]} ({most.iloc[0]:,})",
            )
        )
    header = ("label", "cells", UNKNOWN, "mean confidence", "mostly labelled")
    return f"<h3>Labels that are no class of the model</h3>{table(header, rows)}" if rows else ""


def _pictures(adata: AnnData, cells: _Cells, condition: str | None, key: str) -> str:
    pictures = []
    if condition is not None:
        figure = pl.confusion(adata, condition, key=key, return_fig=True)
        pictures.append(picture(figure, "Confusion matrix", "Known labels (rows) against predicted ones (columns)."))
        if (cells.y >= 0).any():
            pictures.append(
                picture(
                    pl.reliability(adata, condition, key=key, n_bins=_N_BINS, return_fig=True),
                    "Reliability diagram",
                    "How often the most probable class is right, against its posterior; bars are 95 % intervals. Calibrated "
                    "confidences lie on the diagonal. Above: how often each confidence occurs.",
                )
            )
    pictures.append(
        picture(
            pl.posterior(adata, groupby=condition, key=key, return_fig=True),
            "Posterior",
            "Posterior of the cells. Every group has the same height, whatever its number of cells.",
        )
    )
    if cells.typicality is not None:
        pictures.append(
            picture(
                pl.novelty(adata, condition, key=key, return_fig=True),
                "Novelty",
                "Left: typicality of the cells of every group (box: half of them, whiskers: nine tenths, dot: median). Cells like "
                "the held-out ones lie in the grey bands, novel ones left of the threshold. Right: share of novel cells, written "
                "beside, and of cells that are ambiguous between known classes (confidence below 0.9).",
            )
        )
        pictures.append(
            picture(
                _typicality_figure(cells.typicality),
                "Typicality",
                "Typicality of all cells. It is flat for cells like the held-out ones (dashed); a peak at zero is of novel cells, "
                "a slope means that these data differ from the training data as a whole.",
            )
        )
    return "<h2>Pictures</h2>" + "".join(pictures)


def _typicality_figure(typicality: NDArray[np.floating]) -> Figure:
    ax = _base.axes_of_size(None, (4.5, 1.6))
    share, edges = np.histogram(typicality, bins=20, range=(0, 1))
    ax.stairs(share / len(typicality), edges, fill=True, color=_base.palette(1)[0])
    ax.axhline(1 / 20, color="0.3", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set(xlim=(0, 1), xlabel="typicality", ylabel="share of cells")
    ax.spines[["top", "right"]].set_visible(False)
    return _base.finish(ax, None, show=False, return_fig=True)  # type: ignore[return-value]


def _confusions(cells: _Cells, known: NDArray[np.object_]) -> str:
    """The most frequent errors, but for cells labelled unknown, and their most confident cells."""
    wrong = np.flatnonzero(pd.notna(known) & ~cells.rejected & (known != cells.label))
    frame = pd.DataFrame({"known": known[wrong], "label": cells.label[wrong]}, index=wrong)
    n_known = pd.Series(known).value_counts()
    rows = []
    groups = frame.groupby(["known", "label"]).groups
    for (truth, label), members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:_MOST_PAIRS]:
        of_pair = members.to_numpy()
        order = of_pair[np.argsort(-cells.confidence[of_pair], kind="stable")]
        share = percent(len(of_pair) / n_known[truth])
        rows.append((str(truth), str(label), len(of_pair), share, _look(cells, order)))
    header = ("known label", "labelled", "cells", "of the known", "most confident errors (confidence)")
    note = f"{len(wrong):,} cells have another label than the known one, cells labelled {UNKNOWN} not counted."
    return f"<h2>Most confused classes</h2>{table(header, rows, note)}"


def _pairs(cells: _Cells) -> str:
    """Without known labels: pairs of classes that share most posterior mass, and the cells that are most between them."""
    p = np.where(cells.rejected[:, None], 0, cells.posterior)
    shared = np.triu(2 * p.T @ p, 1)
    rows = []
    for flat in np.argsort(-shared, axis=None, kind="stable")[:_MOST_PAIRS]:
        a, b = divmod(int(flat), len(cells.classes))
        if shared[a, b] < _LEAST_SHARED:
            break
        between = np.minimum(p[:, a], p[:, b])
        order = np.argsort(-between, kind="stable")[:_MOST_CELLS_PER_PAIR]
        rows.append((cells.classes[a], cells.classes[b], number(shared[a, b], ",.1f"), _look(cells, order)))
    header = ("class", "class", "cells shared", "cells in between (confidence)")
    note = (
        "Cells shared: expected number of cells to which two draws from the posterior would give the two classes of the pair, "
        f"cells labelled {UNKNOWN} not counted."
    )
    return f"<h2>Classes that are hard to tell apart</h2>{table(header, rows, note)}"


def _look(cells: _Cells, order: NDArray[np.int64]) -> str:
    return ", ".join(f"{cells.names[i]} ({cells.confidence[i]:.2f})" for i in order[:_MOST_CELLS_PER_PAIR])


def _novel(adata: AnnData, cells: _Cells, key: str) -> str:
    """The least typical cells; those with the same p-value in the order of their highest log-likelihood."""
    if cells.typicality is None:
        return ""
    slot = Keys(key).log_likelihood
    highest = np.array(adata.obsm[slot]).max(1) if slot in adata.obsm else np.zeros(len(cells.best))
    rows = []
    for i in np.lexsort((highest, cells.typicality))[:_MOST_NOVEL]:
        row = [cells.names[i], number(float(cells.typicality[i]), ".2g"), str(cells.label[i])]
        row += [cells.classes[cells.best[i]], float(cells.confidence[i])]
        rows.append([*row, *([] if cells.known is None else [cells.known[i]])])
    header = ["cell", "typicality", "label", "most probable class", "confidence"]
    header += [] if cells.known is None else ["known label"]
    note = f"The {len(rows)} least typical cells: least like the held-out cells of any class."
    return f"<h2>Least typical cells</h2>{table(header, rows, note)}"


def _set_sizes(cells: _Cells) -> str:
    if cells.sets is None:
        return ""
    sizes, judged, rows = cells.sets.sum(1), cells.y >= 0, []
    for size in np.unique(sizes):
        of_size = sizes == size
        row: list[Any] = [str(size), int(of_size.sum()), percent(of_size.mean())]
        if cells.known is not None:
            part = of_size & judged
            row.append(percent(mean(cells.sets[part, cells.y[part]])))
        rows.append(row)
    header = ["classes in the set", "cells", "share", *([] if cells.known is None else ["with the known label"])]
    return f"<h2>Prediction sets</h2>{table(header, rows)}"


def _settings(adata: AnnData, key: str) -> str:
    params = stored_params(adata, key)
    rows = [(name, _setting(value)) for name, value in params.items() if name != "prior"]
    return f"<h2>Settings of the classification</h2>{table(('', ''), rows)}" if rows else ""


def _setting(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{len(value)} values" if value else cell_text(None)
    return f"{value:g}" if isinstance(value, float) else cell_text(value)
