"""Accuracy and calibration against established classifiers on real cell-type tasks."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _external import METHODS as EXTERNAL
from _external import run_external
from _memory import PeakMemory
from _metrics import evaluate
from _tasks import DEFAULT_TASKS, SPECS, Task, data_folder, load_task

METHODS = ("scscore", "lr", "lda", "xgb", "mlp")
OF_SETS = ("coverage", "set_size", "rejected")
SEES_BATCH = ("_centred", "adapted")
METRICS = ("accuracy", "macro_f1", "nll", "ece", "brier")
SECONDS = ("prepare_seconds", "fit_seconds", "predict_seconds")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=list(SPECS), default=list(DEFAULT_TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    for name in EXTERNAL:
        parser.add_argument(
            f"--{name}", metavar="PYTHON", help=f"interpreter of an environment with {name}; else left out"
        )
    parser.add_argument("--extended", action="store_true", help="peers also on smaller normalisation targets")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument(
        "--peer-seeds", type=int, default=3, help="the same for the peers, which vary less and are many"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every method")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "accuracy.csv")
    parsed = parser.parse_args(arguments)
    if parsed.seeds < 1 or parsed.threads < 1:
        parser.error("--seeds and --threads must be at least 1")
    return parsed


def limit_threads(threads: int) -> None:
    """Give every numerical library the same number of threads for the rest of the process."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    os.environ["NUMBA_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def run_task(
    task: Task,
    methods: list[str],
    *,
    seeds: int,
    threads: int,
    peer_seeds: int | None = None,
    extended: bool = False,
    external: dict[str, str] | None = None,
    data: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of all methods, representations and seeds on one task; a method that fails gives a row with ``error``."""
    truth, rows = task.codes(task.test), []
    base = {
        "task": task.name,
        "n_train": int(task.train.sum()),
        "n_test": int(task.test.sum()),
        "n_classes": len(task.classes),
    }

    def record(method: str, representation: str, seed: int, prepare: tuple[float, float, float], call: Any) -> None:
        row = {**base, "method": method, "representation": representation, "seed": seed}
        try:
            with PeakMemory() as memory:
                result = call()
            row |= evaluate(truth, result.proba)
            row |= {"fit_seconds": result.fit_seconds, "predict_seconds": result.predict_seconds}
            row |= getattr(result, "sets", {})
            row |= {"prepare_seconds": prepare[0], "cv_nll": getattr(result, "cv_nll", np.nan)}
            row["peak_memory_mb"] = max(memory.peak_mb, prepare[1])
            row["extra_memory_mb"] = max(memory.extra_mb, prepare[2])
        except Exception as error:  # one failing method must not lose the other results
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
        print(f"  {method}[{representation}] seed {seed}: " + _line(row), file=sys.stderr, flush=True)

    peers = [m for m in methods if m != "scscore"]
    if peers:
        from _peers import represent, representations_of, run_peer

        for name in representations_of(task, extended=extended, centred=True):
            with PeakMemory() as memory:
                rep = represent(task, name)
            prepare = (rep.seconds, memory.peak_mb, memory.extra_mb)
            for peer in peers:
                for seed in range(seeds if peer_seeds is None else peer_seeds):

                    def call(peer: str = peer, seed: int = seed, rep: Any = rep) -> Any:
                        return run_peer(peer, task, rep, seed=seed, threads=threads)

                    record(peer, name, seed, prepare, call)
    for method, interpreter in (external or {}).items():
        if method == "scanvi" and task.kind != "counts" and task.kind != "protein":
            continue  # a model of counts

        def call_there(method: str = method, interpreter: str = interpreter) -> Any:
            folder = str(data_folder(data))
            return run_external(method, interpreter, task, data=folder, seed=0, threads=threads)

        record(method, "genes", 0, (0.0, 0.0, 0.0), call_there)
    if "scscore" in methods:
        from _scscore import run_scscore

        for seed in range(seeds):
            results: dict[str, Any] = {}

            def call_own(seed: int = seed, name: str = "own", results: dict[str, Any] = results) -> Any:
                if not results:
                    results |= run_scscore(task, seed=seed, adapt=True)
                return results[name]

            for name in ("own", "adapted"):
                record("scscore", name, seed, (0.0, 0.0, 0.0), partial(call_own, name=name))
    return mark_chosen(rows)


def mark_chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Set ``chosen``: per method and seed, the representation with the lowest NLL cross-validated inside training.

    Test cells have no say. A method with one representation is always chosen. Methods that see all unlabelled test cells at once
    (``sees_batch``) are a league of their own.
    """
    best: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for row in rows:
        row["chosen"], row["sees_batch"] = False, row["representation"].endswith(SEES_BATCH)
        key, value = (row["method"], row["seed"], row["sees_batch"]), row.get("cv_nll", np.inf)
        value = -np.inf if np.isnan(value) else value
        if key not in best or value < best[key]["value"]:
            best[key] = {"row": row, "value": value}
    for entry in best.values():
        entry["row"]["chosen"] = True
    return rows


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    return (
        f"accuracy {row['accuracy']:.3f}, macro-F1 {row['macro_f1']:.3f}, NLL {row['nll']:.3f}, ECE {row['ece']:.3f}, "
        f"fit {row['fit_seconds']:.1f} s"
    )


def table(rows: pd.DataFrame) -> str:
    """Markdown table of one task: mean over seeds, with the range where seeds differ; ``*`` marks the chosen rows."""
    columns = ["method", *METRICS, "prepare s", "fit s", "predict s", "extra MB"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for (method, representation), part in rows.groupby(["method", "representation"], sort=False):
        chosen = int(part["chosen"].sum())
        mark = "" if method == "scscore" or not chosen else " *" if chosen == len(part) else f" *{chosen}/{len(part)}"
        cells = [f"{method}[{representation}]{mark}"]
        good = part[part["accuracy"].notna()] if "accuracy" in part else part[:0]
        if good.empty:
            lines.append("| " + " | ".join([*cells, "failed", *[""] * (len(columns) - 2)]) + " |")
            continue
        for metric in METRICS:
            low, high = good[metric].min(), good[metric].max()
            span = f" ({low:.3f}-{high:.3f})" if f"{low:.3f}" != f"{high:.3f}" else ""
            cells.append(f"{good[metric].mean():.3f}{span}")
        cells += [f"{good[name].mean():.2f}" for name in SECONDS] + [f"{good['extra_memory_mb'].max():.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status (1 if any method failed)."""
    options = parse_arguments(arguments)
    if "scscore" in options.methods:
        import logging

        import scscore.tl  # noqa: F401  # now, so that a missing package shows at once and no method is charged for it

        logging.getLogger("scscore").setLevel("WARNING")
    if set(options.methods) != {"scscore"}:
        import _peers  # noqa: F401  # now, because thread limits reach only libraries that are loaded
    limit_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        task = load_task(name, options.data)
        print(f"\n### {task.describe()}\n", flush=True)
        found = run_task(
            task,
            options.methods,
            seeds=options.seeds,
            threads=options.threads,
            peer_seeds=options.peer_seeds,
            extended=options.extended,
            external={name: getattr(options, name) for name in EXTERNAL if getattr(options, name)},
            data=options.data,
        )
        print(table(pd.DataFrame(found)), flush=True)
        if "coverage" in found[-1]:
            of_sets = pd.DataFrame(found).query("method == 'scscore'").groupby("representation")[list(OF_SETS)].mean()
            for which, row in of_sets.iterrows():
                print(
                    f"\nscscore[{which}]: {', '.join(f'{name} {value:.3f}' for name, value in row.items())}", flush=True
                )
        rows += found
        pd.DataFrame(rows).to_csv(options.out, index=False)  # after every task, so that an interruption loses little
    print(f"\n* = the representation that cross-validation inside the training cells prefers\nwritten: {options.out}")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
