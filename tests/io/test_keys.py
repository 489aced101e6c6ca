"""Names of slots."""

from dataclasses import fields

import pytest

from scscore.io.keys import Keys

SLOTS = [name for name, value in vars(Keys).items() if isinstance(value, property)]


def test_the_contract():
    assert {name: getattr(Keys("k"), name) for name in SLOTS} == {
        "label": "k_label",
        "confidence": "k_confidence",
        "entropy": "k_entropy",
        "mcse": "k_mcse",
        "log_likelihood": "k_log_likelihood",
        "posterior": "k_posterior",
        "uns": "k",
    }
    assert [field.default for field in fields(Keys)] == ["scscore"]


def test_slots_differ_from_each_other_and_between_keys():
    names = [getattr(Keys(key), slot) for key in ("a", "b", "a_label") for slot in SLOTS if slot != "uns"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("key", ["", "a/b", "/", None, 3, b"a", ["a"]])
def test_names_that_break_files_are_refused(key: object):
    with pytest.raises(ValueError, match="key_added must be a non-empty string without '/'"):
        Keys(key)  # type: ignore[arg-type]
