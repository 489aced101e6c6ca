"""Regression on proteins beyond accuracy: does a prediction depend on its batch, which column knows new proteins, do attributions have the right sign."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from _regression_tasks import MAX_TRAIN, load_task
from accuracy import limit_threads
from anndata import AnnData
from sklearn.metrics import roc_auc_score

PARTS = ("batches", "novelty", "attribution")
HYDROPHOBIC, CHARGED = list("AVILMFWC"), list("DEKR")
STABLE, UNSTABLE = 0.0, 3.0
"""kcal/mol: the evidence is for the second against the first."""


def fit(train: AnnData, target: str, groups: str | None) -> object:
    """A model at its defaults."""
    import scscore as scs

    return scs.tl.fit(train, target, input="values", continuous=True, split_key=groups, progress=False)


def batches(data: str | None, max_train: int) -> pd.DataFrame:
    """Largest difference between predictions in batches of 1, 7 and 256."""
    import scscore as scs

    task = load_task("gb1_two_vs_rest", data, max_train=max_train)
    model, frames = fit(task.train, task.target, task.groups), {}
    for size in (1, 7, 256):
        rows = task.test[:300].copy()
        scs.tl.regress(rows, model, batch_size=size, progress=False)
        frames[size] = rows.obs.filter(like="scscore_").astype(np.float64)
    return pd.DataFrame(
        [
            {
                "column": name,
                **{f"{a}_{b}": (frames[a][name] - frames[b][name]).abs().max() for a, b in ((1, 7), (1, 256))},
            }
            for name in frames[1]
        ]
    )


def novelty(data: str | None, max_train: int) -> pd.DataFrame:
    """Area under the ROC curve of every uncertainty for natural proteins of another collection against unseen families of the own one."""
    import scscore as scs

    task = load_task("s4038", data, max_train=max_train)
    families = task.train.obs[task.groups].astype(str)
    held_out = set(np.random.default_rng(0).permutation(families.unique())[: families.nunique() // 5])
    own = families.isin(held_out).to_numpy()
    model = fit(task.train[~own].copy(), task.target, task.groups)
    found = {}
    for name, cells in (("unseen families", task.train[own].copy()), ("s4038", task.test.copy())):
        scs.tl.regress(cells, model, progress=False)
        found[name] = cells.obs
    both = pd.concat([found["unseen families"], found["s4038"]])
    strange = np.repeat([0, 1], [len(found["unseen families"]), len(found["s4038"])])
    signs = {"mutual_information": 1, "aleatoric_entropy": 1, "sd": 1, "typicality": -1}
    rows = [{"column": k, "auroc": roc_auc_score(strange, sign * both[f"scscore_{k}"])} for k, sign in signs.items()]
    return pd.DataFrame(rows)


def attribution(data: str | None, max_train: int) -> pd.DataFrame:
    """Mean evidence for a destabilised variant, nats, from the features of its place and of its substitution, by kind of variant."""
    import scscore as scs

    task = load_task("megascale", data, max_train=max_train)
    model, test = fit(task.train, task.target, task.groups), task.test[::5].copy()
    scs.tl.attribute(test, model, target=UNSTABLE, reference=STABLE, per_cell=True, progress=False)
    parts = pd.DataFrame(test.layers["scscore_attribution"], columns=test.var_names)
    group = test.var["group"].astype(str)
    place = group[group.isin(["structure", "interaction", "position", "window"])].index
    change = group[group.isin(["substitution", "physics", "interaction"])].index
    wild, mutant = test.obs["wild_type"].astype(str).to_numpy(), test.obs["mutant"].astype(str).to_numpy()
    x = test.to_df()
    buried, exposed = (x["rsa"] < 0.2).to_numpy(), (x["rsa"] > 0.5).to_numpy()
    helix = (x["helix"] > 0.5).to_numpy()
    kinds = {
        "buried": buried,
        "exposed": exposed,
        "buried, hydrophobic to charged": buried & np.isin(wild, HYDROPHOBIC) & np.isin(mutant, CHARGED),
        "buried, hydrophobic to hydrophobic": buried & np.isin(wild, HYDROPHOBIC) & np.isin(mutant, HYDROPHOBIC),
        "exposed, charged to charged": exposed & np.isin(wild, CHARGED) & np.isin(mutant, CHARGED),
        "helix, to proline": helix & (mutant == "P"),
        "to proline": mutant == "P",
        "to glycine": mutant == "G",
        "from glycine": wild == "G",
        "all": np.ones(test.n_obs, dtype=bool),
    }
    y = test.obs[task.target].to_numpy()
    frame = pd.DataFrame(
        [
            {
                "variants": name,
                "n": int(rows.sum()),
                "place_nats": parts.loc[rows, place].sum(axis=1).mean(),
                "substitution_nats": parts.loc[rows, change].sum(axis=1).mean(),
                "all_nats": parts.loc[rows].sum(axis=1).mean(),
                "measured": y[rows].mean(),
            }
            for name, rows in kinds.items()
        ]
    )
    correlation = np.corrcoef(parts.sum(axis=1), y)[0, 1]
    print(
        f"completeness {test.uns['scscore_attribution']['completeness']:.1g}; evidence and measurement correlate with r = {correlation:.2f}"
    )
    return frame


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and write one table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--max-train", type=int, default=MAX_TRAIN, help="at most so many training rows; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder of the tables"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(options.threads)
    for part in options.parts:
        frame = globals()[part](options.data, options.max_train)
        frame.to_csv(options.out / f"regression_{part}.csv", index=False, float_format="%.4g")
        print(f"\n{part}\n{frame.round(3).to_string(index=False)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
