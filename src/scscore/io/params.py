"""Parameters as JSON: the form in which ``uns`` and model files hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData


def json_params(params: Mapping[str, Any]) -> str:
    """Parameters as one JSON string, the form in which they are stored in ``uns``."""
    return json.dumps(params, ensure_ascii=False, sort_keys=True, default=_plain)


def jsonable(value: Any) -> Any:
    """`value` with numpy scalars, arrays and paths turned into what JSON holds."""
    return json.loads(json.dumps(value, default=_plain))


def stored_params(adata: AnnData, slot: str) -> dict[str, Any]:
    """Parameters of the call that wrote ``uns[slot]``; empty where there are none."""
    stored = adata.uns.get(slot, {})
    return json.loads(stored["params"]) if "params" in stored else {}


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
