"""The ``scscore`` command: fit, calibrate, adapt, classify, attribute, predict perturbations and report on files, for pipelines, and a demo."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# whatever loads torch or scanpy is imported inside the functions that need it
from scscore._logging import logger
from scscore._version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scscore.io.keys import Keys
    from scscore.model import ScoreModel

SUFFIXES = (".h5ad", ".zarr")
MUDATA = ".h5mu"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error that the user can repair.

    Parameters
    ----------
    argv
        Arguments; ``None`` takes those of the process.
    """
    arguments = _parser().parse_args(argv)
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"scscore(\.|$)")
        warnings.showwarning = lambda message, *_args, **_kwargs: _say("warning", message)
        if arguments.quiet:
            logger.setLevel(logging.ERROR)
            warnings.simplefilter("ignore")
        try:
            arguments.run(arguments)
        except (ValueError, KeyError, OSError) as error:  # ModelFileError is a ValueError
            _say("error", error.args[0] if isinstance(error, KeyError) and error.args else error)
            return 2
        except KeyboardInterrupt:
            _say("error", "interrupted")
            return 130
        finally:
            logger.setLevel(level)
    return 0


def _say(kind: str, message: object) -> None:
    print(f"scscore: {kind}: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scscore",
        description="Diffusion models as calibrated classifiers and regressors of single cells, on .h5ad and .zarr files.",
        epilog="Exit status: 0, or 2 after an error in the arguments or in the data. Results go to files, messages to stderr.",
    )
    parser.add_argument("--version", action="version", version=f"scscore {__version__}")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Callable[..., argparse.Action]:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        sub.add_argument("--quiet", action="store_true", help="no messages, warnings or progress bars, only errors")
        return sub.add_argument

    def modality(add: Callable[..., argparse.Action]) -> None:
        add("--modality", metavar="NAME", help="of an .h5mu file (default: the only one, or rna)")

    def of_query(
        name: str, run: Callable[[argparse.Namespace], None], text: str, *, csv: str, query: str = "cells"
    ) -> Callable[..., argparse.Action]:
        """A command that reads cells and a model and writes annotated cells."""
        add = command(name, run, text)
        add("query", metavar="QUERY", type=Path, help=f"{query}, .h5ad, .zarr or .h5mu")
        modality(add)
        add("--model", required=True, metavar="DIR", type=Path, help="model directory that fit wrote")
        add("--out", required=True, type=Path, help="file to write, .h5ad or .zarr; replaced if it is there")
        add("--csv", type=Path, help=f"{csv} as a table, too")
        add("--layer", help="layer with the values (default: X)")
        add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto)")
        add(
            "--key-added",
            default="scscore",
            metavar="KEY",
            help="name of all slots that are written (default: scscore)",
        )
        add("--seed", type=int, default=0, help="the same seed gives the same result (default: 0)")
        return add

    add = command("fit", _fit, "train a model on labelled cells and write it to a directory")
    add("reference", metavar="REF", type=Path, help="labelled cells, .h5ad, .zarr or .h5mu")
    modality(add)
    add(
        "--condition",
        required=True,
        metavar="COLUMN",
        help="column of obs with the classes, or with a continuous target",
    )
    add("--model", required=True, metavar="DIR", type=Path, help="model directory to write, e.g. pbmc.scscore")
    add(
        "--continuous",
        action="store_true",
        default=None,
        help="take numbers for values, not classes (default: if they are no integers)",
    )
    add("--circular", type=float, default=False, metavar="PERIOD", help="period of a continuous target that goes round")
    add("--layer", help="layer with the values (default: X)")
    add("--use-rep", metavar="KEY", help="representation in obsm to use instead of the model's own encoder")
    add(
        "--encoder",
        choices=["pca", "conv"],
        default="pca",
        help="conv: a convolutional network, for images (default: pca)",
    )
    add(
        "--augment",
        choices=["none", "shift", "mirror", "orientation"],
        default="shift",
        help="how images may be varied to train that network: a little, also mirrored, also in any orientation (default: shift)",
    )
    add(
        "--input",
        choices=["auto", "counts", "log", "values"],
        default="auto",
        help="what the values are (default: auto)",
    )
    add("--n-top-genes", type=int, metavar="N", help="use only this many highly variable genes (default: all)")
    add("--n-comps", type=int, metavar="N", help="principal components (default: chosen by cross-validation)")
    add("--split-key", metavar="COLUMN", help="column of obs with donors or batches, held out as a whole in validation")
    add(
        "--covariates",
        nargs="+",
        metavar="COLUMN",
        help="columns of obs with batches, doses or whatever else shifts all cells; strings and integers are names, floating-point numbers have a slope",
    )
    add("--prior", choices=["train", "uniform"], default="train", help="class prior (default: train, the frequencies)")
    add(
        "--objective",
        choices=["hybrid", "generative", "direct"],
        default="hybrid",
        help="training loss (default: hybrid)",
    )
    add("--n-members", type=int, metavar="N", help="networks that are averaged (default: 1, of a continuous target 5)")
    add("--max-epochs", type=int, metavar="N", help="upper bound on training")
    add("--accelerator", default="auto", help="cpu, gpu, ... as in Lightning (default: auto)")
    add("--devices", default="1", help="number of devices, or a list such as 0,1 (default: 1)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="checkpoints, to resume an interrupted fit")
    add("--seed", type=int, default=0, help="the same seed gives the same model (default: 0)")
    add("--overwrite", action="store_true", help="replace an existing model")

    add = of_query(
        "classify",
        _classify,
        "label cells with a model and write them with the results",
        csv="labels and their confidence",
    )
    add("--prior", choices=["train", "uniform", "estimate"], help="class prior (default: that of the fit)")
    add(
        "--reject",
        type=float,
        default=0.01,
        metavar="P",
        help="typicality below which a cell is unknown (default: 0.01)",
    )
    add("--coverage", type=float, default=0.9, metavar="P", help="coverage of the prediction sets (default: 0.9)")
    add("--n-steps", type=int, metavar="N", help="jumps per noising trajectory")
    add("--n-paths", type=int, metavar="N", help="trajectories per cell, an even number")
    add("--batch-size", type=int, default=1024, metavar="N", help="cells per chunk (default: 1024)")

    add = of_query(
        "regress",
        _regress,
        "predict a continuous target with intervals and densities",
        csv="mean, standard deviation and interval",
    )
    add("--prior", choices=["train", "uniform"], help="prior of the target (default: that of the fit)")
    add("--coverage", type=float, default=0.9, metavar="P", help="coverage of the intervals (default: 0.9)")

    add = command("calibrate", _calibrate, "recalibrate a model on labelled cells that it was not trained on")
    add("query", metavar="QUERY", type=Path, help="labelled cells, .h5ad or .zarr")
    add("--model", required=True, metavar="DIR", type=Path, help="model directory that fit wrote")
    add(
        "--condition", required=True, metavar="COLUMN", help="column of obs with the classes, by the names of the model"
    )
    add("--out", required=True, metavar="DIR", type=Path, help="model directory to write")
    add("--layer", help="layer with the values (default: X)")
    add("--seed", type=int, default=0, help="the same seed gives the same result (default: 0)")
    add("--overwrite", action="store_true", help="replace an existing model")

    add = command("adapt", _adapt, "take out the shift of new batches, from cells without labels")
    add("query", metavar="QUERY", type=Path, help="cells that will be classified, .h5ad, .zarr or .h5mu")
    modality(add)
    add("--model", required=True, metavar="DIR", type=Path, help="model directory that fit wrote")
    add("--batch-key", metavar="COLUMN", help="column of obs with the batches (default: all cells are one batch)")
    add("--out", required=True, metavar="DIR", type=Path, help="model directory to write")
    add("--layer", help="layer with the values (default: X)")
    add("--overwrite", action="store_true", help="replace an existing model")

    add = of_query(
        "attribute",
        _attribute,
        "split the evidence for every class into genes",
        csv="nats of every gene for every class",
    )
    add(
        "--target",
        metavar="NAME",
        help="a class or value, or a column of obs with them (default: the most probable class)",
    )
    add("--reference", metavar="NAME", help="rest, runner-up, marginal, or a class or value (default: rest)")

    add = of_query(
        "perturbation",
        _perturbation,
        "predict perturbations, responses and what can be detected",
        csv="what is known of every perturbation",
        query="cells that the model has not seen",
    )
    add("--control", required=True, metavar="NAME", help="class of unperturbed cells")
    add("--assigned", metavar="COLUMN", help="column of obs with assigned perturbations (default: that of the fit)")
    add("--exclude", metavar="COLUMN", help="boolean column of obs, true for cells to leave out, e.g. with two guides")

    add = command("report", _report, "write a page with tables and figures about classified cells")
    add("classified", metavar="CLASSIFIED", type=Path, help="cells that classify has written, .h5ad or .zarr")
    add("--out", required=True, metavar="HTML", type=Path, help="file to write, .html; replaced if it is there")
    add("--condition", metavar="COLUMN", help="column of obs with known labels, to judge the result")
    add("--key-added", default="scscore", metavar="KEY", help="that of classify (default: scscore)")

    add = command("demo", _demo, "fit and classify blood cells that scanpy ships; tables, figures and a file")
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="directory to write (default: demo)")
    return parser


def _fit(arguments: argparse.Namespace) -> None:
    _check_free(arguments.model, "--model", overwrite=arguments.overwrite)
    adata = _read(arguments.reference, modality=arguments.modality)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from scscore import images, tl

    data = ("layer", "use_rep", "input", "continuous", "circular", "n_top_genes", "n_comps", "split_key")
    same = (*data, "covariates", "prior", "objective", "n_members", "max_epochs")
    try:
        model = tl.fit(
            adata,
            arguments.condition,
            **{name: getattr(arguments, name) for name in same},
            encoder=images.Conv(augment=arguments.augment) if arguments.encoder == "conv" else "pca",
            accelerator=arguments.accelerator,
            devices=int(arguments.devices) if arguments.devices.isdecimal() else arguments.devices,
            checkpoint_dir=arguments.checkpoint_dir,
            rng=arguments.seed,
            progress=_progress(arguments),
        )
    except MisconfigurationException as error:
        raise ValueError(f"--accelerator {arguments.accelerator} --devices {arguments.devices}: {error}") from error
    model.save(arguments.model, overwrite=arguments.overwrite)
    logger.info("wrote %s", arguments.model)


def _classify(arguments: argparse.Namespace) -> None:
    query, out = arguments.query, arguments.out
    backed = query.suffix == out.suffix == ".h5ad"  # values then stay on disk and are copied with the file
    adata, model = _query_and_model(arguments, backed=backed)
    from scscore import tl
    from scscore.io.keys import Keys

    keys = Keys(arguments.key_added)
    same = ("layer", "prior", "reject", "coverage", "n_steps", "n_paths", "batch_size", "device", "key_added")
    tl.classify(
        adata,
        model,
        **{name: getattr(arguments, name) for name in same},
        rng=arguments.seed,
        progress=_progress(arguments),
    )
    _write(adata, out, query, keys)
    if arguments.csv is not None:
        _write_columns(adata, keys, ("label", "confidence", "entropy", "mcse", "typicality", "set_size"), arguments.csv)


def _regress(arguments: argparse.Namespace) -> None:
    adata, model = _query_and_model(arguments)
    from scscore import tl
    from scscore.io.keys import Keys

    keys, same = Keys(arguments.key_added), ("layer", "prior", "coverage", "device", "key_added")
    options = {name: getattr(arguments, name) for name in same}
    tl.regress(adata, model, **options, rng=arguments.seed, progress=_progress(arguments))
    _write(adata, arguments.out, arguments.query, keys)
    if arguments.csv is not None:
        names = ("mean", "sd", "lower", "upper", "aleatoric_entropy", "mutual_information", "mcse", "typicality")
        _write_columns(adata, keys, names, arguments.csv)


def _attribute(arguments: argparse.Namespace) -> None:
    adata, model = _query_and_model(arguments)
    from scscore import get, tl
    from scscore.io.keys import Keys

    same = ("target", "reference", "layer", "device", "key_added")
    options = {name: getattr(arguments, name) for name in same}
    if model.target is not None:
        options |= {name: _number_or_name(options[name]) for name in ("target", "reference")}
    tl.attribute(adata, model, **options, rng=arguments.seed, progress=_progress(arguments))
    _write(adata, arguments.out, arguments.query, Keys(arguments.key_added))
    if arguments.csv is not None:
        _write_table(get.attribution(adata, key=arguments.key_added).to_df().T.rename_axis("gene"), arguments.csv)


def _perturbation(arguments: argparse.Namespace) -> None:
    adata, model = _query_and_model(arguments)
    from scscore import get, tl
    from scscore.io.keys import Keys

    same = ("control", "assigned", "exclude", "layer", "device", "key_added")
    options = {name: getattr(arguments, name) for name in same}
    tl.predict_perturbation(adata, model, **options, rng=arguments.seed, progress=_progress(arguments))
    _write(adata, arguments.out, arguments.query, Keys(arguments.key_added))
    if arguments.csv is not None:
        _write_table(get.perturbation(adata, key=arguments.key_added), arguments.csv)


def _query_and_model(arguments: argparse.Namespace, *, backed: bool = False) -> tuple[AnnData, ScoreModel]:
    """The cells and the model of a command, after the cheap checks."""
    _check_suffix(arguments.out)
    if arguments.out.resolve() == arguments.query.resolve():
        raise ValueError(f"--out {arguments.out} is the query itself; give another file.")
    adata = _read(arguments.query, backed=backed, modality=arguments.modality)
    from scscore import load

    _check_device(arguments.device)
    return adata, load(arguments.model)


def _write(adata: AnnData, out: Path, query: Path, keys: Keys) -> None:
    """Write the annotated cells; a run that dies leaves no half-written result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    try:
        if adata.isbacked:
            shutil.copyfile(query, partial)
            _update(partial, adata, keys)
        else:
            adata.write_h5ad(partial) if out.suffix == ".h5ad" else adata.write_zarr(partial)
        _remove(out)
        os.replace(partial, out)
    finally:
        _remove(partial)
    logger.info("wrote %s", out)


def _number_or_name(value: str | None) -> str | float | None:
    try:
        return value if value is None else float(value)
    except ValueError:
        return value


def _write_columns(adata: AnnData, keys: Keys, names: Sequence[str], path: Path) -> None:
    """Columns of ``obs`` under their short names, those that there are."""
    columns = {getattr(keys, name): name for name in names if getattr(keys, name) in adata.obs}
    _write_table(adata.obs[list(columns)].rename(columns=columns).rename_axis("cell"), path)


def _write_table(table: pd.DataFrame, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file)
    logger.info("wrote %s", file)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def _calibrate(arguments: argparse.Namespace) -> None:
    _check_free(arguments.out, "--out", overwrite=arguments.overwrite)
    adata = _read(arguments.query, backed=True)
    from scscore import load, tl

    model = tl.calibrate(
        adata,
        load(arguments.model),
        arguments.condition,
        layer=arguments.layer,
        rng=arguments.seed,
        progress=_progress(arguments),
    )
    model.save(arguments.out, overwrite=arguments.overwrite)
    logger.info("wrote %s", arguments.out)


def _adapt(arguments: argparse.Namespace) -> None:
    _check_free(arguments.out, "--out", overwrite=arguments.overwrite)
    adata = _read(arguments.query, backed=True, modality=arguments.modality)
    from scscore import load, tl

    model = tl.adapt(
        adata,
        load(arguments.model),
        batch_key=arguments.batch_key,
        layer=arguments.layer,
        progress=_progress(arguments),
    )
    model.save(arguments.out, overwrite=arguments.overwrite)
    logger.info("wrote %s", arguments.out)


def _report(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if out.suffix != ".html":
        raise ValueError(f"{out}: the name must end in .html.")
    adata = _read(arguments.classified, backed=True)
    from scscore._report import report

    page = report(adata, condition=arguments.condition, key=arguments.key_added, source=arguments.classified.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    logger.info("wrote %s", out)


def _demo(arguments: argparse.Namespace) -> None:
    from scscore._demo import run

    run(arguments.out, say=(lambda _text: None) if arguments.quiet else print)


def _check_free(directory: Path, option: str, *, overwrite: bool) -> None:
    """Whether a model can be written there, asked before minutes of work."""
    if directory.is_file():
        raise FileExistsError(f"{directory} is a file; give {option} the name of a directory.")
    if (directory / "model.json").exists() and not overwrite:
        raise FileExistsError(f"{directory} already holds a model; add --overwrite to replace it.")


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in {' or '.join(SUFFIXES)}.")


def _read(path: Path, *, backed: bool = False, modality: str | None = None) -> AnnData:
    """An AnnData file, or one modality of a MuData file, by its suffix; ValueError or FileNotFoundError that names the file."""
    if path.suffix != MUDATA:
        _check_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    import anndata as ad

    from scscore.io.modalities import of_modality
    from scscore.io.readers import values_of

    try:
        if path.suffix == MUDATA:
            import mudata

            data = mudata.read_h5mu(path)
        else:
            data = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path, backed="r" if backed else None)
            # rows of a CSC matrix cannot be read cheaply
            rows_on_disk = getattr(values_of(data), "format", "csr") == "csr"
            data = data.to_memory() if backed and not rows_on_disk else data
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as {'MuData' if path.suffix == MUDATA else 'AnnData'}: {error}"
        ) from error
    return of_modality(data, modality)


def _update(file: Path, adata: AnnData, keys: Keys) -> None:
    """Write the results of classify into a copy of the query's file."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(file, "r+") as store:
        write_elem(store, "obs", adata.obs)
        for key in (keys.log_likelihood, keys.posterior, keys.prediction_set):
            if key in adata.obsm:
                write_elem(store.require_group("obsm"), key, adata.obsm[key])
        write_elem(store.require_group("uns"), keys.uns, adata.uns[keys.uns])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _progress(arguments: argparse.Namespace) -> bool:
    return not arguments.quiet and sys.stderr.isatty()


if __name__ == "__main__":
    sys.exit(main())
