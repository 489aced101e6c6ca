"""Mixscape's calls for the held-out cells of the knock-out screen, by pertpy, which needs an environment of its own.

    PYTHON benchmarks/_mixscape.py DATA OUT.csv

As in pertpy's tutorial: log-normalised counts, 50 components, perturbation signatures against the 20 nearest control cells, then the mixture per target.
The environment needs pertpy, scanpy and mudata.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
from _perturbation_tasks import CONTROL, load_task

SCREEN = "papalexi"


def run_mixscape(interpreter: str, data: str) -> pd.DataFrame:
    """Calls of the held-out cells, by name: ``call`` (KO, NP or control) and ``p_ko``, mixscape's probability of a knock-out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "calls.csv"
        done = subprocess.run([interpreter, __file__, data, str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"mixscape: {done.stderr.strip().splitlines()[-1]}")
        return pd.read_csv(out, index_col=0)


def main() -> None:
    """Run mixscape and write its calls."""
    import pertpy
    import scanpy as sc

    warnings.simplefilter("ignore")
    data, out = sys.argv[1:]
    task = load_task(SCREEN, data)
    cells = task.adata[task.test].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=50)
    mixscape = pertpy.tl.Mixscape()
    mixscape.perturbation_signature(cells, task.condition, CONTROL, n_neighbors=20)
    mixscape.mixscape(cells, task.condition, CONTROL, layer="X_pert", random_state=0)
    found = pd.DataFrame(
        {"call": cells.obs["mixscape_class_global"].astype(str), "p_ko": cells.obs["mixscape_class_p_ko"]}
    )
    found["call"] = found["call"].where(found["call"] != CONTROL, "control")
    found.to_csv(out)


if __name__ == "__main__":
    main()
