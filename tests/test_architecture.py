"""Imports point one way: tl, pl, get and adapters -> io -> core; the core knows neither cells nor images nor proteins."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import scscore

ROOT = Path(scscore.__file__).parent
ROOMS = ("cli", "core", "datasets", "get", "images", "io", "model", "pl", "proteins", "tl")
ALLOWED = {
    "core": {"core"},
    "io": {"core", "io"},
    "model": {"core", "io"},
    "images": {"core", "images", "io", "model"},
    "proteins": {"io", "proteins"},
}
"""What a room may import when it is used; types are free."""


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere but for type checking."""
    tree = ast.parse(path.read_text())
    only_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", None) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "scscore":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("scscore."))


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room):
    found = {(path.name, name) for path in files(room) for name in imports(path) if name in ROOMS}
    assert found or room == "proteins"  # otherwise the test looks at nothing
    assert {name for _, name in found} <= ALLOWED[room], found


def test_the_core_has_no_branch_for_images_or_proteins():
    words = ("image", "pixel", "protein", "anndata", "channel")
    for path in files("core"):
        names = {
            name.lower()
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None))
            if isinstance(name, str)
        }
        assert not [name for name in names if any(word in name for word in words)], path


def test_all_kinds_of_data_go_through_one_fit():
    """Cells, images and proteins have no training or likelihood of their own."""
    for room in ("images", "proteins"):
        for path in files(room):
            called = {
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not called & {"log_likelihood", "fit_conditional_diffusion", "fit_calibration"}, path
