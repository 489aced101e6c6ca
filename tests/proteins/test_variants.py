"""Variants of proteins: features by hand, on real tables, and the mistakes that tables have."""

import builtins
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scscore as scs
from scscore.proteins._amino_acids import BLOSUM62, LETTERS, MAX_SURFACE, PROPERTIES

TOY = {"toy": "MADWLK"}


def toy(*mutations: str, **kwargs) -> AnnData:
    """Variants of the toy protein; keywords whose name is a column are columns."""
    columns = {name: kwargs.pop(name) for name in ("ddG", "pH", "split") if name in kwargs}
    table = pd.DataFrame(
        {"id": "toy", "change": list(mutations), **columns}, index=[f"r{i}" for i in range(len(mutations))]
    )
    return scs.proteins.variants(table, protein="id", mutation="change", **{"sequences": TOY, **kwargs})


def features(adata: AnnData, row: int = 0) -> dict[str, float]:
    return dict(zip(adata.var_names, adata.X[row].tolist(), strict=True))


@pytest.fixture(scope="session")
def megascale(shared_data: Path, tmp_path_factory) -> tuple[pd.DataFrame, dict[str, str], dict[str, Path]]:
    """The table, the sequences and the structures."""
    folder, out = shared_data / "megascale_ddg", tmp_path_factory.mktemp("structures")
    with tarfile.open(folder / "structures.tar.gz") as archive:
        archive.extractall(out, filter="data")
    sequences = pd.read_csv(folder / "proteins.csv").set_index("protein_id")["sequence"].to_dict()
    return pd.read_csv(folder / "megascale_ddg.csv.gz"), sequences, {p.stem: p for p in out.rglob("*.pdb")}


def write_pdb(path: Path, residues: list[tuple[str, str, int, dict[str, tuple[float, float, float]]]]) -> Path:
    """A PDB file of (chain, residue name, number, atoms with coordinates)."""
    lines = [
        f"ATOM  {i:5d}  {atom:<3s} {name} {chain}{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {atom[0]}"
        for i, (chain, name, number, atom, (x, y, z)) in enumerate(
            (c, n, k, a, xyz) for c, n, k, atoms in residues for a, xyz in atoms.items()
        )
    ]
    path.write_text("\n".join([*lines, "END"]))
    return path


NAMES = dict(zip("ADGKLMWR", ("ALA", "ASP", "GLY", "LYS", "LEU", "MET", "TRP", "ARG"), strict=True))


def line_of(letters: str, path: Path, chain: str = "A", spacing: float = 5.0) -> Path:
    """A chain along the x axis; C-beta atoms, of all but glycine, stand 5 Angstrom above the C-alpha atoms."""
    residues = []
    for i, letter in enumerate(letters):
        atoms = {"CA": (spacing * i, 0.0, 0.0)}
        if letter != "G":
            atoms["CB"] = (spacing * i, 5.0, 0.0)
        residues.append((chain, NAMES[letter], i + 1, atoms))
    return write_pdb(path, residues)


# --- features by hand


def test_a_substitution_by_hand():
    adata = toy("W4F", window=2)
    found = features(adata)
    ones = [name for name in adata.var_names[adata.var["group"] == "substitution"] if found[name]]
    assert ones == ["wt_W", "mut_F"]
    expected = {
        "hydrophobicity_change": 2.8 + 0.9,
        "volume_change": 189.9 - 227.8,
        "charge_change": 0,
        "polarity_change": -0.2,
        "helix_propensity_change": 0.05,
        "beta_propensity_change": 0.01,
        "aromatic_change": 0,
        "flexibility_change": 0.009,
        "blosum62": 1,
        "to_proline": 0,
        "hydrophobicity_-2": 1.8,
        "hydrophobicity_-1": -3.5,
        "hydrophobicity_+1": 3.8,
        "charge_-1": -1,
        "charge_+2": 1,
        "volume_+1": 166.7,
        "relative_position": 3 / 5,
        "terminus_distance": 2,
        "log_length": np.log(6),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert adata.obs["position"].tolist() == [4] and adata.obs["wild_type"].tolist() == ["W"]
    assert adata.X.dtype == np.float32 and not np.isnan(adata.X).any()
    assert adata.var["group"].cat.categories.tolist() == ["substitution", "physics", "window", "position"]
    assert adata.uns["proteins"]["sequences"] == TOY


def test_flags_of_proline_and_glycine():
    sequences = {"toy": "GPAA"}
    flags = ["to_proline", "to_glycine", "from_proline", "from_glycine"]
    adata = toy("G1P", "P2G", "A3P", "A4G", sequences=sequences)
    expected = [[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(adata[:, flags].X, expected)


def test_the_window_ends_with_the_sequence():
    table = pd.DataFrame({"id": ["a", "b", "a", "b"], "change": ["M1A", "K1A", "W3A", "R2A"]})
    adata = scs.proteins.variants(table, protein="id", mutation="change", sequences={"b": "KR", "a": "MDW"}, window=2)
    charges = adata[:, ["charge_-2", "charge_-1", "charge_+1", "charge_+2"]].X
    np.testing.assert_array_equal(charges, [[0, 0, -1, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 1, 0, 0]])
    none = scs.proteins.variants(table, protein="id", mutation="change", sequences={"b": "KR", "a": "MDW"}, window=0)
    assert "window" not in none.var["group"].tolist()


def test_several_substitutions_are_summed_and_their_places_averaged():
    adata = toy("A2G:W4P", "A2G", "W4P", "")
    both, first, second, wild = (features(adata, row) for row in range(4))
    for name, group in zip(adata.var_names, adata.var["group"], strict=True):
        total = first[name] + second[name]
        if name == "n_mutations":
            assert (both[name], first[name], wild[name]) == (2, 1, 0)
        else:
            summed = group in ("substitution", "physics")
            assert both[name] == pytest.approx(total if summed else total / 2, abs=1e-4), name
            if summed:
                assert wild[name] == 0
    assert wild["relative_position"] == pytest.approx(0.5)
    assert wild["terminus_distance"] == pytest.approx(1)
    assert adata.obs["position"].tolist() == [2, 2, 4, -1]
    assert adata.obs["n_mutations"].tolist() == [2, 1, 1, 0]
    assert adata.obs["mutant"].isna().tolist() == [True, False, False, True]
    assert adata.obs_names.tolist() == ["toy_A2G:W4P", "toy_A2G", "toy_W4P", "toy_WT"]


@pytest.mark.parametrize("text", ["A2G:W4P", "W4P:A2G", "A2G,W4P", "A2G; W4P", "A2G/W4P", "W4P_A2G", " A2G:W4P "])
def test_ways_to_write_a_double_mutant(text):
    adata = toy(text)
    assert adata.obs["mutation"].tolist() == ["A2G:W4P"]
    np.testing.assert_array_equal(adata.X, toy("A2G:W4P").X)


def test_the_order_of_rows_and_the_other_rows_do_not_matter():
    names = ["A2G", "W4F:K6E", "D3P", "K6W"]
    forth, back = toy(*names), toy(*reversed(names))
    np.testing.assert_array_equal(forth.X, back[forth.obs_names].X)
    np.testing.assert_array_equal(toy("A2G").X, toy("A2G", "D3P")[:1].X)


def test_four_letters_of_a_landscape(shared_data: Path):
    """A caller turns the letters of four sites into mutations."""
    sequence = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
    landscape = pd.read_csv(shared_data / "gb1_landscape" / "gb1_landscape.csv.gz", nrows=2000)
    sites = (39, 40, 41, 54)
    landscape["change"] = [
        ":".join(f"{old}{site}{new}" for old, site, new in zip("VDGV", sites, letters, strict=True) if old != new)
        for letters in landscape["Variants"]
    ]
    table = landscape.assign(id="GB1")
    adata = scs.proteins.variants(table, protein="id", mutation="change", sequences={"GB1": sequence})
    assert (adata.obs["n_mutations"].to_numpy() == landscape["HD"]).all()
    assert adata.obs_names[0] == "GB1_WT" and "Fitness" in adata.obs
    assert (adata[:, "n_mutations"].X.ravel() == landscape["HD"]).all()


# --- tables of properties


def test_blosum_is_that_of_biotite():
    align = pytest.importorskip("biotite.sequence.align")
    other = align.SubstitutionMatrix.std_protein_matrix()
    expected = [[other.get_score(a, b) for b in LETTERS] for a in LETTERS]
    np.testing.assert_array_equal(BLOSUM62[:20, :20], expected)


def test_properties_are_tables_of_twenty():
    assert all(p.values.shape == (21,) and p.values[20] == 0 for p in PROPERTIES.values())
    volume = dict(zip(LETTERS, PROPERTIES["volume"].values, strict=False))
    assert min(volume, key=volume.get) == "G" and max(volume, key=volume.get) == "W"
    helix = dict(zip(LETTERS, PROPERTIES["helix_propensity"].values, strict=False))
    assert [helix[a] for a in "AGPW"] == [0, 1, 3.16, 0.49]
    # the largest surface of an amino acid follows its volume
    assert np.corrcoef(MAX_SURFACE[:20], PROPERTIES["volume"].values[:20])[0, 1] > 0.9


# --- the target, the other columns


def test_stored_values_are_positive_for_destabilising():
    kept = toy("A2G", "W4F", ddG=[1.5, np.nan], target="ddG", positive="destabilising")
    flipped = toy("A2G", "W4F", ddG=[-1.5, np.nan], target="ddG", positive="stabilising")
    for adata, said in ((kept, "destabilising"), (flipped, "stabilising")):
        np.testing.assert_array_equal(adata.obs["ddG"], [1.5, np.nan])
        info = adata.uns["proteins"]
        assert (info["target"], info["positive"], info["positive_in_table"]) == ("ddG", "destabilising", said)
    assert "positive" not in toy("A2G").uns["proteins"]


def test_columns_travel_along():
    table = pd.DataFrame(
        {
            "id": ["toy", "toy"],
            "mutation": ["A2G", "A2G"],
            "split": ["train", "test"],
            "DIR/INV": ["d", "i"],
            "position": [9, 9],
        }
    )
    table["sequence"] = TOY["toy"]
    adata = scs.proteins.variants(table, protein="id", mutation="mutation", sequences="sequence")
    assert adata.obs_names.tolist() == ["toy_A2G", "toy_A2G-1"]
    assert adata.obs["split"].tolist() == ["train", "test"]
    assert adata.obs["position"].tolist() == [2, 2] and adata.obs["table_position"].tolist() == [9, 9]
    assert "DIR_INV" in adata.obs and "sequence" not in adata.obs and "id" not in adata.obs


def test_extra_columns():
    adata = toy("A2G", "W4F", "D3P", pH=[7.0, np.nan, 5.0], extra=["pH"])
    np.testing.assert_allclose(adata[:, "extra_pH"].X.ravel(), [7, 6, 5])
    np.testing.assert_array_equal(adata[:, "extra_pH_missing"].X.ravel(), [0, 1, 0])
    assert adata.uns["proteins"]["imputed"] == {"extra_pH": 6.0}
    complete = toy("A2G", pH=[7.0], extra=["pH"])
    assert complete.var_names[complete.var["group"] == "extra"].tolist() == ["extra_pH"]


def test_a_file_gives_back_what_was_written(round_trip, tmp_path):
    adata = toy(
        "A2G", "W4F:K6E", "", ddG=[1.0, 2.0, 0.0], split=["a", "b", "a"], pH=[7, 7, np.nan], target="ddG",
        positive="stabilising", extra=["pH"], structures={"toy": line_of("MADWLK", tmp_path / "toy.pdb")},
    )  # fmt: skip
    round_trip(adata)


# --- structures


def test_contacts_by_hand(tmp_path):
    found = scs.proteins.structure_features(line_of("MADGLK", tmp_path / "toy.pdb"), "MADGLK")
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6]
    # C-beta atoms are 5 Angstrom apart along the line; glycine is represented by its C-alpha, 5 Angstrom below: neighbours at 7.07
    assert found["contacts_8"].tolist() == [1, 2, 2, 2, 2, 1]
    assert found["contacts_12"].tolist() == [2, 3, 4, 4, 3, 2]
    assert found["charged_contacts"].tolist() == [0, 1, 0, 1, 1, 0]
    np.testing.assert_allclose(found["contact_hydrophobicity"], [1.8, -0.8, 0.7, 0.15, -2.15, 3.8])
    assert (found[["helix", "strand", "coil"]].sum(axis=1) == 1).all()


def test_residues_that_are_not_resolved(tmp_path):
    path = line_of("DWLK", tmp_path / "part.pdb")
    found = scs.proteins.structure_features(path, "MADWLKGG")
    assert found["rsa"].isna().tolist() == [True, True, False, False, False, False, True, True]
    adata = toy("A2G", "W4F", sequences={"toy": "MADWLKGG"}, structures={"toy": path})
    np.testing.assert_array_equal(adata[:, "unresolved"].X.ravel(), [1, 0])
    np.testing.assert_allclose(adata[0, "rsa"].X.item(), found["rsa"].mean(), rtol=1e-5)
    np.testing.assert_allclose(adata[1, "rsa"].X.item(), found["rsa"][4], rtol=1e-5)


def test_a_gap_and_a_point_mutation_are_aligned(tmp_path):
    sequence = "MADWLKGRMADWLAGRDKLM"
    resolved = sequence[:7] + sequence[10:]  # a loop is missing
    resolved = resolved[:15] + "A" + resolved[16:]  # one of 17 residues differs
    found = scs.proteins.structure_features(line_of(resolved, tmp_path / "gap.pdb"), sequence)
    assert found["rsa"].isna().sum() == 3
    whole = found["contacts_8"].notna().to_numpy()
    assert whole[:5].all() and whole[12:].all()


def test_the_chain_that_fits_is_taken_alone(tmp_path):
    first = line_of("GGGGGG", tmp_path / "a.pdb", chain="A").read_text().replace("END", "")
    second = line_of("MADWLK", tmp_path / "b.pdb", chain="B")
    alone = scs.proteins.structure_features(second, TOY["toy"])
    both = tmp_path / "both.pdb"
    both.write_text(first + second.read_text())
    pd.testing.assert_frame_equal(scs.proteins.structure_features(both, TOY["toy"]), alone)


def test_interactions_are_products(tmp_path):
    adata = toy("A2W", "W4A", structures={"toy": line_of("MADWLK", tmp_path / "toy.pdb")})
    found = adata.to_df()
    burial = 1 - found["rsa"].clip(0, 1)
    np.testing.assert_allclose(
        found["burial_x_hydrophobicity_change"], burial * found["hydrophobicity_change"], rtol=1e-4
    )
    np.testing.assert_allclose(found["burial_x_volume_gain"], burial * [139.2, 0], rtol=1e-4)
    np.testing.assert_allclose(found["burial_x_volume_loss"], burial * [0, 139.2], rtol=1e-4)
    double = toy("A2W:W4A", structures={"toy": tmp_path / "toy.pdb"}).to_df()
    names = adata.var_names[adata.var["group"] == "interaction"]
    np.testing.assert_allclose(double[names].iloc[0], found[names].sum(), rtol=1e-4, atol=1e-5)


def test_proteins_without_a_structure(tmp_path):
    table = pd.DataFrame({"id": ["toy", "other"], "change": ["A2G", "K1A"]})
    arguments = {"protein": "id", "mutation": "change", "sequences": {**TOY, "other": "KR"}}
    path = line_of("MADWLK", tmp_path / "toy.pdb")
    with pytest.warns(UserWarning, match=r"1 of 2 proteins have no structure, e.g. \['other'\]: they get mean values"):
        adata = scs.proteins.variants(table, **arguments, structures={"toy": path})
    assert adata[:, "unresolved"].X.ravel().tolist() == [0, 1]
    with pytest.raises(ValueError, match="structures= has none of the proteins of table"):
        scs.proteins.variants(table, **arguments, structures={"neither": path})


def test_structures_that_cannot_be_used(tmp_path, monkeypatch):
    wrong = line_of("GGGGGG", tmp_path / "wrong.pdb")
    with pytest.raises(
        ValueError, match=r"structures\['toy'\]: structure file .* agrees with 0% of the sequence, at least 90%"
    ):
        toy("A2G", structures={"toy": wrong})
    with pytest.raises(FileNotFoundError, match=r"structures\['toy'\]: there is no structure file"):
        toy("A2G", structures={"toy": tmp_path / "none.pdb"})
    empty = write_pdb(tmp_path / "empty.pdb", [("A", "HOH", 1, {"O": (0.0, 0.0, 0.0)})])
    with pytest.raises(ValueError, match="holds no residue with a C-alpha atom"):
        toy("A2G", structures={"toy": empty})

    real = builtins.__import__

    def without_biotite(name, *args, **kwargs):
        if name.startswith("biotite"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_biotite)
    assert toy("A2G").n_obs == 1
    with pytest.raises(ImportError, match=r'pip install "scscore\[proteins\]"'):
        toy("A2G", structures={"toy": wrong})


# --- mistakes


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        ("G2A", r"row 'r0' \(protein 'toy', mutation 'G2A'\): the sequence has 'A' at position 2, not 'G'"),
        ("A7G", "position 7 is outside of the sequence of 6 residues"),
        ("A0G", "position 0 is outside of the sequence"),
        ("A2B", "'B' is no letter of the 20 amino acids"),
        ("A2A", "'A2A' changes nothing; the wild type is an empty string"),
        ("A2", "'A2' is no substitution such as"),
        ("A2del", "'A2del' is no substitution"),
        ("a2g", "'a2g' is no substitution"),
        ("A2G:", "'' is no substitution"),
        ("A2G:A2W", "position 2 is substituted twice"),
        (None, "the mutation is missing"),
        (2, "the mutation is not a string"),
    ],
)
def test_rows_that_cannot_be_used(mutation, message):
    with pytest.raises(ValueError, match=message) as caught:
        toy(mutation, "W4F")
    assert "1 of 2 rows of table cannot be used" in str(caught.value)


def test_many_wrong_rows_are_counted_and_three_explained():
    with pytest.raises(ValueError, match="5 of 6 rows of table cannot be used") as caught:
        toy("W4F", *["G2A"] * 5)
    text = str(caught.value)
    assert all(f"'r{i}'" in text for i in (1, 2, 3)) and "'r4'" not in text
    assert "Positions count from 1 on the given sequence" in text


def test_sequences_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"row 'r0' .*sequences= has no sequence of 'toy'"):
        toy("A2G", sequences={"other": "MA"})
    with pytest.raises(ValueError, match="the sequence of protein 'toy' has '-' at position 3"):
        toy("A2G", sequences={"toy": "MA-W"})
    with pytest.raises(ValueError, match="must be a non-empty string, got nan"):
        toy("A2G", sequences={"toy": np.nan})
    with pytest.raises(KeyError, match="sequences='seq' is not a column of table"):
        toy("A2G", sequences="seq")
    with pytest.raises(TypeError, match="sequences must be a mapping or the name of a column, got list"):
        toy("A2G", sequences=["MADWLK"])
    with pytest.raises(ValueError, match="1 proteins have more than one sequence, e.g. 'toy'"):
        toy("A2G", "W4F", split=["MADWLK", "MADWLR"], sequences="split")
    table = pd.DataFrame({"id": ["a/b"], "change": ["A2G"]})
    with pytest.raises(ValueError, match="names must not contain '/'"):
        scs.proteins.variants(table, protein="id", mutation="change", sequences={"a/b": "MA"})
    with pytest.raises(ValueError, match="the protein is missing"):
        scs.proteins.variants(table.assign(id=None), protein="id", mutation="change", sequences=TOY)


def test_unknown_residues_of_a_sequence_are_neutral():
    found = features(toy("A2G", sequences={"toy": "XAD"}, window=1))
    assert found["volume_-1"] == 0 and found["charge_+1"] == -1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "ddG"}, ValueError, "positive= is missing: say whether positive values of target='ddG'"),
        (
            {"target": "ddG", "positive": "up"},
            ValueError,
            r"positive must be one of \['destabilising', 'stabilising'\]",
        ),
        ({"target": "x", "positive": "stabilising"}, KeyError, "target='x' is not a column of table; available"),
        ({"target": "split", "positive": "stabilising"}, ValueError, "target='split' is not numeric"),
        ({"extra": ["conservation"]}, KeyError, "extra='conservation' is not a column of table"),
        ({"extra": "pH"}, TypeError, "extra must be a list of columns"),
        ({"extra": ["split"]}, ValueError, "extra='split' is not numeric"),
        ({"extra": ["pH"]}, ValueError, "extra='pH' has no value in any row"),
        ({"window": -1}, ValueError, "window must be an integer of at least 0, got -1"),
        ({"window": True}, ValueError, "window must be an integer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        toy("A2G", "W4F", ddG=[1.0, 2.0], split=["a", "b"], pH=[np.nan, np.nan], **arguments)


def test_bad_tables():
    with pytest.raises(TypeError, match="table must be a pandas DataFrame, got dict"):
        scs.proteins.variants({}, protein="id", mutation="change", sequences=TOY)
    with pytest.raises(ValueError, match="table has no rows"):
        toy()
    with pytest.raises(KeyError, match="protein='name' is not a column of table"):
        scs.proteins.variants(pd.DataFrame({"id": []}), protein="name", mutation="change", sequences=TOY)
    with pytest.raises(ValueError, match="extra='pH' is infinite in row 'r1'"):
        toy("A2G", "W4F", pH=[7, np.inf], extra=["pH"])
    table = pd.DataFrame({"id": ["toy"], "change": ["A2G"], "position": [1.0]})
    with pytest.raises(ValueError, match="target='position' is the name of a column that obs gets anyway"):
        scs.proteins.variants(
            table, protein="id", mutation="change", target="position", positive="stabilising", sequences=TOY
        )


# --- real tables


def test_accessibility_and_secondary_structure_of_the_authors(megascale):
    """Against the columns of the data set, from other programs."""
    table, sequences, structures = megascale
    names = sorted(structures)[::20]
    part = table[table["protein_id"].isin(names)]
    adata = scs.proteins.variants(
        part, protein="protein_id", mutation="mutation_fasta", sequences=sequences, structures=structures
    )
    found, obs = adata.to_df(), adata.obs
    for name in names:
        rows = (obs["protein"] == name).to_numpy()
        assert found.loc[rows, "rsa"].corr(obs.loc[rows, "RSA"], method="spearman") > 0.95
        assert np.abs(100 * found.loc[rows, "rsa"] - obs.loc[rows, "RSA"]).mean() < 12
    state = obs["secondary_structure"].map({"A": "helix", "B": "strand", "X": "coil"})
    ours = found[["helix", "strand", "coil"]].idxmax(axis=1)
    assert (state == ours).mean() > 0.65
    assert not ((state == "strand") & (ours == "helix")).any()
    assert not found["unresolved"].any() and not found.isna().any(axis=None)
    assert 100 <= adata.n_vars <= 130


def test_a_hundred_thousand_variants_in_seconds(megascale):
    table, sequences, _ = megascale
    start = time.perf_counter()
    adata = scs.proteins.variants(
        table,
        protein="protein_id",
        mutation="mutation_fasta",
        target="DDG",
        positive="destabilising",
        sequences=sequences,
    )
    assert time.perf_counter() - start < 30
    assert adata.shape == (106_778, 87)
    np.testing.assert_array_equal(adata.obs["DDG"], table["DDG"])
    # what every table of stabilities shows: proline and lost hydrophobicity destabilise
    found = adata.to_df()
    assert adata.obs["DDG"][(found["to_proline"] == 1).to_numpy()].mean() > 1.5 * adata.obs["DDG"].mean()
    assert found["hydrophobicity_change"].corr(adata.obs["DDG"]) < -0.2


def test_the_sign_of_ssym(shared_data: Path):
    """Its values are negative for destabilising mutations; direct mutations destabilise on average."""
    table = pd.read_csv(shared_data / "ssym_ddg" / "ssym_ddg.csv.gz")
    parts = table["MUT"].str.extract(r"(\w)(\d+)(\w)")
    numbered = [seq[int(k) - 1 : int(k)] == old for seq, old, k in zip(table["SEQ"], parts[0], parts[1], strict=True)]
    arguments = {"protein": "PDB", "mutation": "MUT", "sequences": "SEQ", "target": "DDG", "positive": "stabilising"}
    with pytest.raises(ValueError, match=f"{len(table) - sum(numbered)} of 684 rows of table cannot be used"):
        scs.proteins.variants(table, **arguments)  # numbered as in the PDB
    adata = scs.proteins.variants(table[numbered], **arguments)
    direct = adata.obs["direction"] == "dir"
    assert adata.obs["DDG"][direct].mean() > 0.5 and adata.obs["DDG"][~direct].mean() < -0.5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"extra": ["pH", "pH"]}, ValueError, "every column once"),
        ({"extra": ["ddG"]}, ValueError, "not the target"),
        ({"target": "ddG/kcal"}, ValueError, "holds a '/'"),
        ({"structures": "toy.pdb"}, TypeError, "must map proteins to PDB files"),
    ],
)
def test_columns_that_would_be_confused_are_refused(options: dict, error: type[Exception], words: str):
    table = pd.DataFrame({"id": ["toy"], "change": ["A2G"], "ddG": [1.0], "ddG/kcal": [1.0], "pH": [7.0]})
    settings = {"target": "ddG", "positive": "destabilising", "sequences": {"toy": "MADWLK"}, **options}
    with pytest.raises(error, match=words):
        scs.proteins.variants(table, protein="id", mutation="change", **settings)
