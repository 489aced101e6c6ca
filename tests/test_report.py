"""The report: its tables against scikit-learn and pandas, and a page that is whole, escaped and self-contained."""

import base64
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from scscore._report import report
from scscore.core.calibration import expected_calibration_error

NAMES = ["<b>B</b> & co", "T/NK", "αβ"]


class Page(HTMLParser):
    """Tables by the heading before them, pictures, text; every tag that opens must close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.heading = self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, bytes] = {}
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        for name in ("src", "href"):
            assert values.get(name, "data:").startswith("data:")
        if tag == "img":
            kind, data = values["src"].split(",")
            assert kind == "data:image/png;base64"
            self.pictures[values["alt"]] = base64.b64decode(data, validate=True)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag in ("h2", "h3"):
            self.heading = ""
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        if tag in ("td", "th"):
            self.tables[self.heading][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.heading += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[self.heading][-1][-1] += data
        elif "style" not in self.open:
            self.text += data

    def frame(self, heading: str) -> pd.DataFrame:
        header, *rows = self.tables[heading]
        return pd.DataFrame(rows, columns=header)

    def pairs(self, heading: str) -> dict[str, str]:
        return dict(self.tables[heading])


def classified(n=300, names=NAMES, *, held_out=True, seed=0, reject=0.05, key="scscore"):
    """Random posteriors with the slots of classify, and known labels drawn from them; the first names are awkward."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, len(names)))
    posterior = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    y = (rng.random((n, 1)) > posterior.cumsum(1)).sum(1).clip(max=len(names) - 1)
    obs = pd.DataFrame(index=[f"cell<{i}>" for i in range(n)])
    obs["truth"] = pd.Categorical.from_codes(y, categories=names)
    label = np.array(names, dtype=object)[posterior.argmax(1)]
    adata = AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs)
    params = {
        "condition": "truth",
        "reject": reject,
        "coverage": 0.9,
        "precision": None,
        "prior": [1 / len(names)] * len(names),
    }
    if held_out:
        typicality = rng.uniform(0, 1, n).astype(np.float32)
        label[typicality < reject] = "unknown"
        sets = posterior > 0.2
        adata.obs[f"{key}_typicality"], adata.obs[f"{key}_set_size"] = typicality, sets.sum(1).astype(np.int32)
        adata.obsm[f"{key}_prediction_set"] = sets
    adata.obs[f"{key}_label"] = pd.Categorical(label)
    adata.obs[f"{key}_confidence"] = posterior.max(1)
    adata.obsm[f"{key}_posterior"] = posterior
    adata.obsm[f"{key}_log_likelihood"] = logits.astype(np.float32)
    adata.uns[key] = {
        "classes": np.array(names, dtype=object),
        "params": json.dumps(params),
        "model_hash": "0123abc",
        "version": "9.8.7",
    }
    return adata


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return classified()


@pytest.fixture(scope="module")
def page(cells: AnnData) -> Page:
    return Page(report(cells, condition="truth", source="a<b>.h5ad"))


def numbers(column: pd.Series) -> np.ndarray:
    return column.str.removesuffix(" %").str.replace(",", "").replace("–", "nan").astype(float).to_numpy()


def test_the_page_is_whole_and_needs_nothing_else(cells, page):
    html = report(cells, condition="truth", source="a<b>.h5ad")
    assert html.startswith("<!DOCTYPE html>") and "a&lt;b&gt;.h5ad" in html and "a<b>" not in html
    assert "&lt;b&gt;B&lt;/b&gt; &amp; co" in html and "<b>B</b>" not in html and not re.search(r"cell<\d", html)
    assert not page.tags & {"script", "link", "iframe"} and "http" not in html and "@import" not in html
    assert set(page.pictures) == {"Confusion matrix", "Reliability diagram", "Posterior", "Novelty", "Typicality"}
    assert all(data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 3000 for data in page.pictures.values())
    assert html == report(cells, condition="truth", source="a<b>.h5ad")
    assert not plt.get_fignums()


def test_summary(cells, page):
    rows = page.pairs("Summary")
    truth, label = cells.obs["truth"].astype(str), cells.obs["scscore_label"].astype(str)
    n_unknown = int((label == "unknown").sum())
    assert n_unknown > 5
    assert rows["cells"] == "300" and rows["classes"] == "3"
    assert rows["labelled unknown"].startswith(f"{n_unknown} ({n_unknown / 3:.1f} %, typicality below 0.05")
    assert rows["accuracy"] == f"{accuracy_score(truth, label):.3f}"
    y = cells.obs["truth"].cat.codes.to_numpy()
    covered = cells.obsm["scscore_prediction_set"][np.arange(300), y].mean()
    assert rows["prediction sets with the known label"] == f"{100 * covered:.1f} %, 90.0 % wanted"
    assert rows["calibration error (ECE)"] == f"{expected_calibration_error(cells.obsm['scscore_posterior'], y):.3f}"
    assert rows["model hash"] == "0123abc" and rows["scscore"].startswith("9.8.7 ")
    assert rows["trained on the column"] == "truth"
    settings = page.pairs("Settings of the classification")
    assert settings["reject"] == "0.05" and settings["precision"] == "–" and "prior" not in settings


def test_table_of_classes(cells, page):
    frame = page.frame("Classes").set_index("class")
    assert frame.index.tolist() == NAMES
    truth, label = cells.obs["truth"].astype(str), cells.obs["scscore_label"].astype(str)
    precision, recall, f1, n = precision_recall_fscore_support(truth, label, labels=NAMES)
    for name, expected in (("precision", precision), ("recall", recall), ("F1", f1), ("known", n)):
        np.testing.assert_allclose(numbers(frame[name]), expected, atol=6e-4)
    posterior, sets = cells.obsm["scscore_posterior"], cells.obsm["scscore_prediction_set"]
    best = np.array(NAMES)[posterior.argmax(1)]
    for k, name in enumerate(NAMES):
        row, own = {key: numbers(frame.loc[[name], key])[0] for key in frame}, (label == name).to_numpy()
        assert row["prior"] == pytest.approx(1 / 3, abs=6e-4)
        assert row["cells"] == own.sum() and row["with unknown"] == (best == name).sum()
        assert row["mean confidence"] == pytest.approx(posterior.max(1)[own].mean(), abs=6e-4)
        assert row["share unknown"] == pytest.approx(100 * (label[best == name] == "unknown").mean(), abs=0.06)
        assert row["mean set size"] == pytest.approx(sets[own].sum(1).mean(), abs=6e-3)
        assert row["coverage"] == pytest.approx(100 * sets[(truth == name).to_numpy(), k].mean(), abs=0.06)
        gaps = (posterior.max(1) - (truth == best))[best == name]
        bins = np.minimum((posterior.max(1) * 15).astype(int), 14)[best == name]
        ece = pd.Series(gaps).groupby(bins).sum().abs().sum() / len(gaps)
        assert row["ECE"] == pytest.approx(ece, abs=6e-4)


def test_confused_pairs_and_their_cells(cells, page):
    frame = page.frame("Most confused classes")
    obs = cells.obs[["truth", "scscore_label", "scscore_confidence"]].copy()
    wrong = obs[(obs["truth"].astype(str) != obs["scscore_label"].astype(str)) & (obs["scscore_label"] != "unknown")]
    counts = numbers(frame["cells"])
    assert counts.sum() == len(wrong) > 0 and (np.diff(counts) <= 0).all()
    for _, row in frame.iterrows():
        of_pair = wrong[(wrong["truth"] == row["known label"]) & (wrong["scscore_label"] == row["labelled"])]
        assert int(row["cells"]) == len(of_pair)
        share = 100 * len(of_pair) / (obs["truth"] == row["known label"]).sum()
        assert row["of the known"] == f"{share:.1f} %"
        top = of_pair.sort_values("scscore_confidence", ascending=False).head(5)["scscore_confidence"]
        assert row["most confident errors (confidence)"] == ", ".join(f"{name} ({p:.2f})" for name, p in top.items())


def test_least_typical_cells_and_sets(cells, page):
    frame = page.frame("Least typical cells")
    expected = cells.obs.sort_values("scscore_typicality").head(20)
    assert frame["cell"].tolist() == expected.index.tolist()
    assert frame["label"].tolist() == expected["scscore_label"].astype(str).tolist()
    assert frame["known label"].tolist() == expected["truth"].astype(str).tolist()
    sizes = page.frame("Prediction sets")
    counts = cells.obs["scscore_set_size"].value_counts().sort_index()
    assert sizes["classes in the set"].tolist() == counts.index.astype(str).tolist()
    assert numbers(sizes["cells"]).tolist() == counts.tolist()


def test_cells_with_equal_typicality_come_by_likelihood():
    adata = classified(30)
    adata.obs["scscore_typicality"] = np.float32(0.001)
    frame = Page(report(adata)).frame("Least typical cells")
    order = np.argsort(adata.obsm["scscore_log_likelihood"].max(1), kind="stable")[:20]
    assert frame["cell"].tolist() == adata.obs_names[order].tolist()


def test_without_known_labels(cells):
    page = Page(report(cells))
    assert set(page.pictures) == {"Posterior", "Novelty", "Typicality"}
    assert "Most confused classes" not in page.tables and "accuracy" not in page.pairs("Summary")
    frame = page.frame("Classes that are hard to tell apart")
    kept = cells[cells.obs["scscore_label"] != "unknown"]
    p = kept.obsm["scscore_posterior"].astype(float)
    for _, row in frame.iterrows():
        a, b = (NAMES.index(name) for name in row["class"])
        assert float(row["cells shared"]) == pytest.approx(2 * (p[:, a] * p[:, b]).sum(), abs=0.06)
        most = kept.obs_names[np.minimum(p[:, a], p[:, b]).argmax()]
        assert row["cells in between (confidence)"].startswith(f"{most} (")
    assert len(frame) == 3 and (np.diff(numbers(frame["cells shared"])) <= 0).all()


@pytest.mark.parametrize("condition", [None, "truth"])
def test_without_held_out_cells(condition):
    page = Page(report(classified(held_out=False), condition=condition))
    assert not {"Novelty", "Typicality"} & set(page.pictures) and "Posterior" in page.pictures
    assert not {"Least typical cells", "Prediction sets"} & set(page.tables)
    columns = page.frame("Classes").columns
    assert not {"with unknown", "mean set size", "coverage"} & set(columns)
    assert ("recall" in columns) == (condition is not None)


def test_sixty_classes_with_one_absent():
    names = [f"class/{i} <é>" for i in range(60)]
    adata = classified(600, names)
    adata = adata[(adata.obs["truth"] != names[7]) & (adata.obsm["scscore_posterior"].argmax(1) != 9)].copy()
    frame = Page(report(adata, condition="truth")).frame("Classes").set_index("class")
    assert frame.index.tolist() == names
    assert frame.loc[names[7], ["known", "recall", "coverage"]].tolist() == ["0", "–", "–"]
    assert frame.loc[names[9], ["cells", "precision", "mean confidence", "ECE"]].tolist() == ["0", "–", "–", "–"]


def test_missing_labels_and_labels_that_are_no_class(cells):
    adata = cells.copy()
    truth = adata.obs["truth"].astype(object)
    truth.iloc[:40], truth.iloc[40:60] = np.nan, "plasma <cell>"
    adata.obs["truth"] = truth
    page = Page(report(adata, condition="truth"))
    assert page.pairs("Summary")["cells with a known label"] == "260 (column truth)"
    row = page.frame("Labels that are no class of the model").iloc[0]
    most = adata.obs["scscore_label"].iloc[40:60].value_counts()
    assert row["label"] == "plasma <cell>" and row["cells"] == "20"
    assert row["mostly labelled"] in {f"{name} ({most.max()})" for name in most.index[most == most.max()]}
    assert numbers(page.frame("Classes")["known"]).sum() == 240
    # no label that the model knows: nothing to calibrate against, and still a page
    adata.obs["truth"] = "plasma <cell>"
    page = Page(report(adata, condition="truth"))
    assert "Reliability diagram" not in page.pictures and "Confusion matrix" in page.pictures
    assert page.pairs("Summary")["accuracy"] == "0.000" and "Brier score" not in page.pairs("Summary")


def test_errors_name_the_fix(cells):
    with pytest.raises(KeyError, match=r"obsm\['mine_posterior'\] is missing \(key='mine'\): run scscore.tl.classify"):
        report(cells, key="mine")
    with pytest.raises(KeyError, match="condition='type' is not a column"):
        report(cells, condition="type")
    with pytest.raises(ValueError, match="condition='scscore_confidence' is continuous"):
        report(cells, condition="scscore_confidence")
    without = cells.copy()
    del without.obs["scscore_label"]
    with pytest.raises(KeyError, match=r"obs\['scscore_label'\] is missing.*run scscore.tl.classify"):
        report(without)
