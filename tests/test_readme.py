"""The Python of the README runs as printed."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import scscore as scs

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, README.name, "exec"), names)
    plt.close("all")

    query, model = names["query"], names["model"]
    assert isinstance(model, scs.ScoreModel) and query.uns["scscore"]["model_hash"] == model.hash
    accuracy = (query.obs["cell_type"].astype(str) == query.obs["scscore_label"].astype(str)).mean()
    assert accuracy > 0.7  # the largest class alone is 0.34


def test_every_slot_of_the_table_is_written() -> None:
    table = re.findall(
        r"^\| `(obs|obsm|uns)\[\"\{k\}(\w*)\"\]`", README.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    cells = scs.datasets.toy_gaussians(n_obs=60)
    before = {slot: set(getattr(cells, slot)) for slot in ("obs", "obsm", "uns")}
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=1, key_added="k", progress=False)
    scs.tl.classify(cells, model, key_added="k", progress=False)
    written = {(slot, name) for slot, names in before.items() for name in set(getattr(cells, slot)) - names}
    assert {(slot, f"k{name}") for slot, name in table} == written


def test_links_stay_inside_the_documentation() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert target.startswith(("docs/", "tutorials/")) and (README.parent / target).is_file(), target
