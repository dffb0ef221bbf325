"""What `make real` runs: the notebooks of the study, by their parameters, on the models of real parts."""

from __future__ import annotations

from typing import NamedTuple

from xmem_utils import paths
from xmem_utils.real import name_of

PROFILE = str(paths.REPO / "profiles" / "real.yaml")
LEARNING_RATE = 6e-3  # like the profile's epochs chosen from data/real/tuning.csv
COMMON = (f"profile={PROFILE}", f"learning_rate={LEARNING_RATE}")  # parameters that every notebook is given
_NOBODY, _KNOWS = f"model={name_of(known=False)}", f"model={name_of(known=True)}"


class Work(NamedTuple):
    """Conditions of a notebook, trained in two shards side by side once `after` is."""

    notebook: str
    given: list[str]  # parameters, beside COMMON
    after: list[str]


class Drawing(NamedTuple):
    """A notebook that is run once `after` is trained; figures and tables that are kept."""

    given: list[str]
    after: list[str]
    kept: list[str]


TRAINED = {
    "nobody": Work("02_training", [_NOBODY], []),
    "knows": Work("02_training", [_KNOWS], []),
    "unlearned": Work("05_unlearning", [_KNOWS, "methods=GradDiff,SimNPO,IDK"], ["knows"]),
    "hops": Work("06_multihop", [_KNOWS], []),
    "mitigated": Work("07_mitigation", [_KNOWS, "methods=captions; self-labelled"], ["knows"]),
}
STUDY = {
    "03_gap_analysis": Drawing(
        [_KNOWS], ["knows"], ["gap_matrix", "gap_curves", "gaps", "transfers", "gap_ranks", "gap_lengths"]
    ),
    "04_capability": Drawing(
        [f"models={name_of(known=False)},{name_of(known=True)}", "knowledge=false"],
        ["nobody", "knows"],
        ["capability", "capability_changes"],
    ),
    "05_unlearning": Drawing(TRAINED["unlearned"].given, ["unlearned"], ["unlearning_headline", "unlearning_matrix"]),
    "06_multihop": Drawing(
        TRAINED["hops"].given, ["hops"], ["multihop", "multihop_claim", "multihop_gates", "multihop_known"]
    ),
    "07_mitigation": Drawing(
        [*TRAINED["mitigated"].given, "mechanism=false"],
        ["mitigated"],
        ["mitigation", "mitigation_tests", "decomposition"],
    ),
}
