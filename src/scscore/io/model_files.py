"""Model directories: ``model.safetensors`` and ``model.json``, with version and hashes; no pickle, no training data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

FORMAT_VERSION = 1
TENSORS, METADATA = "model.safetensors", "model.json"

Tensors = dict[str, NDArray[Any]]


class ModelFileError(ValueError):
    """A model directory is missing, damaged, edited, or written by a newer version."""


def tensor_hashes(tensors: Tensors) -> dict[str, str]:
    """SHA-256 of dtype, shape and bytes of every tensor."""
    return {name: _tensor_hash(value) for name, value in sorted(tensors.items())}


def model_hash(tensors: Tensors, metadata: dict[str, Any]) -> str:
    """SHA-256 that identifies a model: its tensors and its metadata."""
    return _text_hash(_canonical({"tensors": tensor_hashes(tensors), "metadata": metadata}))


def write_model(directory: Path, tensors: Tensors, metadata: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write a model directory.

    Parameters
    ----------
    directory
        Created if needed.
    tensors
        Named arrays.
    metadata
        What JSON can hold.
    overwrite
        Replace an existing model.

    Raises
    ------
    FileExistsError
        The directory holds a model already, or is a file.
    """
    if directory.is_file():
        raise FileExistsError(f"{directory} is a file; give the name of a directory.")
    if (directory / METADATA).exists() and not overwrite:
        raise FileExistsError(f"{directory} already holds a model; pass overwrite=True to replace it.")
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, directory / TENSORS)
    body = {"format_version": FORMAT_VERSION, "tensors": tensor_hashes(tensors), "metadata": metadata}
    text = json.dumps({**body, "sha256": _text_hash(_canonical(body))}, indent=1, ensure_ascii=False)
    (directory / METADATA).write_text(text, encoding="utf-8")


def read_model(directory: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read and verify a model directory.

    Raises
    ------
    ModelFileError
        Names the file, and the tensor or field, that is missing, damaged or too new.
    """
    metadata_file, tensor_file = directory / METADATA, directory / TENSORS
    for file in (metadata_file, tensor_file):
        if not file.is_file():
            raise ModelFileError(f"{directory} is not a scscore model: {file.name} is missing.")
    try:
        body = json.loads(metadata_file.read_text(encoding="utf-8"))
        version = body["format_version"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{metadata_file} is damaged or truncated: {error}.") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(
            f"{metadata_file} has format version {version}, this scscore reads up to {FORMAT_VERSION}; upgrade scscore."
        )
    if body.pop("sha256", None) != _text_hash(_canonical(body)):
        raise ModelFileError(f"{metadata_file} was edited or damaged: its contents do not match its SHA-256.")
    try:
        tensors = load_file(tensor_file)
    except (SafetensorError, OSError, ValueError) as error:
        cut = _first_incomplete_tensor(tensor_file)
        where = f": it ends inside tensor {cut!r}" if cut else " in its header"
        raise ModelFileError(f"{tensor_file} is damaged or truncated{where} ({error}).") from error
    for name, expected in body["tensors"].items():
        if name not in tensors:
            raise ModelFileError(f"{tensor_file}: tensor {name!r} is missing.")
        if _tensor_hash(tensors[name]) != expected:
            raise ModelFileError(
                f"{tensor_file}: tensor {name!r} was edited or damaged: it does not match its SHA-256."
            )
    if unknown := sorted(set(tensors) - set(body["tensors"])):
        raise ModelFileError(f"{tensor_file}: tensor {unknown[0]!r} does not belong to the model.")
    return tensors, body["metadata"]


def _first_incomplete_tensor(file: Path) -> str | None:
    """Name of the first tensor that a truncated safetensors file does not hold whole; None when its header is damaged."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + size:
        return None
    try:
        header = json.loads(raw[8 : 8 + size])
        spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    for name, (_, end) in sorted(spans.items(), key=lambda item: item[1]):
        if 8 + size + end > len(raw):
            return name
    return None


def _tensor_hash(value: NDArray[Any]) -> str:
    head = f"{value.dtype.str}{value.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
