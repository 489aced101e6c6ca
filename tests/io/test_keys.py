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
        "typicality": "k_typicality",
        "set_size": "k_set_size",
        "prediction_set": "k_prediction_set",
        "n_paths": "k_n_paths",
        "log_likelihood": "k_log_likelihood",
        "posterior": "k_posterior",
        "mean": "k_mean",
        "sd": "k_sd",
        "lower": "k_lower",
        "upper": "k_upper",
        "aleatoric_entropy": "k_aleatoric_entropy",
        "mutual_information": "k_mutual_information",
        "density": "k_density",
        "attribution": "k_attribution",
        "attribution_se": "k_attribution_se",
        "attribution_presence": "k_attribution_presence",
        "attribution_sets": "k_attribution_sets",
        "attribution_levels": "k_attribution_levels",
        "attribution_pvalue": "k_attribution_pvalue",
        "attribution_fdr": "k_attribution_fdr",
        "target": "k_target",
        "runner_up": "k_runner_up",
        "attribution_test": "k_attribution_test",
        "evidence_baseline": "k_evidence_baseline",
        "evidence": "k_evidence",
        "perturbation_evidence": "k_perturbation_evidence",
        "response": "k_response",
        "escape": "k_escape",
        "perturbation": "k_perturbation",
        "points": "X_k",
        "sample": "k_sample",
        "counterfactual": "k_counterfactual",
        "source": "k_source",
        "to": "k_to",
        "delta": "k_delta",
        "delta_se": "k_delta_se",
        "energy": "k_energy",
        "energy_se": "k_energy_se",
        "energy_gap": "k_energy_gap",
        "energy_uns": "k_energy",
        "energy_smoothed": "k_energy_smoothed",
        "basin": "k_basin",
        "energy_landscape": "k_energy_landscape",
        "reference_distance": "k_reference_distance",
        "funnel": "k_funnel",
        "dissipation": "k_dissipation",
        "uns": "k",
    }
    assert [field.default for field in fields(Keys)] == ["scscore"]


def test_slots_differ_from_each_other_and_between_keys():
    # uns is the key itself, and energy_uns has the parameters of the column with its name
    slots = [slot for slot in SLOTS if slot not in ("uns", "energy_uns")]
    names = [getattr(Keys(key), slot) for key in ("a", "b", "a_label") for slot in slots]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("key", ["", "a/b", "/", None, 3, b"a", ["a"]])
def test_names_that_break_files_are_refused(key: object):
    with pytest.raises(ValueError, match="key_added must be a non-empty string without '/'"):
        Keys(key)  # type: ignore[arg-type]
