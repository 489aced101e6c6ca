"""The one place that names every AnnData slot."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "unknown"
"""The label of cells whose typicality is too low."""


@dataclass(frozen=True)
class Keys:
    """Names of the slots that a call with `key_added` writes and that ``get`` and ``pl`` read."""

    key_added: str = "scscore"

    def __post_init__(self) -> None:
        if not isinstance(self.key_added, str) or not self.key_added or "/" in self.key_added:
            raise ValueError(f"key_added must be a non-empty string without '/', got {self.key_added!r}.")

    @property
    def label(self) -> str:
        """``obs``: the most probable class, categorical."""
        return f"{self.key_added}_label"

    @property
    def confidence(self) -> str:
        """``obs``: calibrated posterior of the most probable class."""
        return f"{self.key_added}_confidence"

    @property
    def entropy(self) -> str:
        """``obs``: entropy of the posterior, nats."""
        return f"{self.key_added}_entropy"

    @property
    def mcse(self) -> str:
        """``obs``: Monte-Carlo standard error of the confidence."""
        return f"{self.key_added}_mcse"

    @property
    def typicality(self) -> str:
        """``obs``: p-value of log p(x) against held-out cells of the known classes, small for novel cells."""
        return f"{self.key_added}_typicality"

    @property
    def set_size(self) -> str:
        """``obs``: number of classes in the prediction set."""
        return f"{self.key_added}_set_size"

    @property
    def prediction_set(self) -> str:
        """``obsm``: which classes are in the prediction set."""
        return f"{self.key_added}_prediction_set"

    @property
    def n_paths(self) -> str:
        """``obs``: noising trajectories spent on the cell."""
        return f"{self.key_added}_n_paths"

    @property
    def log_likelihood(self) -> str:
        """``obsm``: log p(x given class), nats."""
        return f"{self.key_added}_log_likelihood"

    @property
    def posterior(self) -> str:
        """``obsm``: calibrated posterior."""
        return f"{self.key_added}_posterior"

    @property
    def mean(self) -> str:
        """``obs``: mean of a continuous target."""
        return f"{self.key_added}_mean"

    @property
    def sd(self) -> str:
        """``obs``: standard deviation of a continuous target."""
        return f"{self.key_added}_sd"

    @property
    def lower(self) -> str:
        """``obs``: lower end of the interval of a continuous target."""
        return f"{self.key_added}_lower"

    @property
    def upper(self) -> str:
        """``obs``: upper end of the interval of a continuous target."""
        return f"{self.key_added}_upper"

    @property
    def aleatoric_entropy(self) -> str:
        """``obs``: differential entropy of a continuous target, nats."""
        return f"{self.key_added}_aleatoric_entropy"

    @property
    def mutual_information(self) -> str:
        """``obs``: how far the networks of a model disagree, nats."""
        return f"{self.key_added}_mutual_information"

    @property
    def density(self) -> str:
        """``obsm``: density of a continuous target at its bins."""
        return f"{self.key_added}_density"

    @property
    def attribution(self) -> str:
        """``varm``: mean nats per gene for every class; ``layers``: of every cell; ``uns``: parameters."""
        return f"{self.key_added}_attribution"

    @property
    def attribution_se(self) -> str:
        """``varm``: standard error of the mean attribution, nats."""
        return f"{self.key_added}_attribution_se"

    @property
    def attribution_presence(self) -> str:
        """``varm``: part of the mean attribution from expression above the baseline, nats."""
        return f"{self.key_added}_attribution_presence"

    @property
    def attribution_sets(self) -> str:
        """``obsm``: nats of every gene set."""
        return f"{self.key_added}_attribution_sets"

    @property
    def attribution_levels(self) -> str:
        """``varm``: what every noise level adds to the mean attribution, nats."""
        return f"{self.key_added}_attribution_levels"

    @property
    def attribution_pvalue(self) -> str:
        """``varm``: permutation p-value of the attribution."""
        return f"{self.key_added}_attribution_pvalue"

    @property
    def attribution_fdr(self) -> str:
        """``varm``: the same, adjusted for the number of genes."""
        return f"{self.key_added}_attribution_fdr"

    @property
    def target(self) -> str:
        """``obs``: class for which the evidence is, categorical."""
        return f"{self.key_added}_target"

    @property
    def runner_up(self) -> str:
        """``obs``: class that the target is compared with, where that is the runner-up, categorical."""
        return f"{self.key_added}_runner_up"

    @property
    def attribution_test(self) -> str:
        """``uns``: parameters of the test of attributions."""
        return f"{self.key_added}_attribution_test"

    @property
    def evidence_baseline(self) -> str:
        """``obs``: evidence at the baseline of the attribution, nats."""
        return f"{self.key_added}_evidence_baseline"

    @property
    def evidence(self) -> str:
        """``obs``: evidence for the target against the reference, nats."""
        return f"{self.key_added}_evidence"

    @property
    def perturbation_evidence(self) -> str:
        """``obs``: evidence for the assigned perturbation against control, nats."""
        return f"{self.key_added}_perturbation_evidence"

    @property
    def response(self) -> str:
        """``obs``: probability that the cell responded to the perturbation it was assigned to."""
        return f"{self.key_added}_response"

    @property
    def escape(self) -> str:
        """``obs``: whether the cell looks like a control cell."""
        return f"{self.key_added}_escape"

    @property
    def perturbation(self) -> str:
        """``uns``: detectability, effect and similarity of perturbations."""
        return f"{self.key_added}_perturbation"

    @property
    def points(self) -> str:
        """``obsm``: points of generated cells in the model's representation."""
        return f"X_{self.key_added}"

    @property
    def sample(self) -> str:
        """``uns``: parameters of generated cells."""
        return f"{self.key_added}_sample"

    @property
    def counterfactual(self) -> str:
        """``uns``: parameters of moved cells."""
        return f"{self.key_added}_counterfactual"

    @property
    def source(self) -> str:
        """``obs``: class that a moved cell came from, categorical."""
        return f"{self.key_added}_source"

    @property
    def to(self) -> str:
        """``obs``: class that a moved cell went to, categorical."""
        return f"{self.key_added}_to"

    @property
    def delta(self) -> str:
        """``var``: mean change of a gene over the moved cells."""
        return f"{self.key_added}_delta"

    @property
    def delta_se(self) -> str:
        """``var``: standard error of the mean change."""
        return f"{self.key_added}_delta_se"

    @property
    def energy(self) -> str:
        """``obs``: energy -log p, nats."""
        return f"{self.key_added}_energy"

    @property
    def energy_se(self) -> str:
        """``obs``: Monte-Carlo standard error of the energy, nats."""
        return f"{self.key_added}_energy_se"

    @property
    def energy_gap(self) -> str:
        """``obs``: energy along trajectories less energy of the probability flow, nats."""
        return f"{self.key_added}_energy_gap"

    @property
    def energy_uns(self) -> str:
        """``uns``: parameters of the energy, model hash, version."""
        return f"{self.key_added}_energy"

    @property
    def energy_smoothed(self) -> str:
        """``obs``: mean energy of the cell and its neighbours, nats."""
        return f"{self.key_added}_energy_smoothed"

    @property
    def basin(self) -> str:
        """``obs``: basin of the energy landscape, categorical."""
        return f"{self.key_added}_basin"

    @property
    def energy_landscape(self) -> str:
        """``uns``: minima and barriers of the energy landscape."""
        return f"{self.key_added}_energy_landscape"

    @property
    def reference_distance(self) -> str:
        """``obs``: distance to the reference cell of a funnel."""
        return f"{self.key_added}_reference_distance"

    @property
    def funnel(self) -> str:
        """``uns``: measures of the funnel of every group."""
        return f"{self.key_added}_funnel"

    @property
    def dissipation(self) -> str:
        """``uns``: evidence of single cells by noise level."""
        return f"{self.key_added}_dissipation"

    @property
    def uns(self) -> str:
        """``uns``: classes, parameters, model hash, version, loss curves."""
        return self.key_added
