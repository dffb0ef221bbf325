"""What `make real` runs: the notebooks of the study, by their parameters, on the models of real parts."""

from __future__ import annotations

from typing import NamedTuple

from xmem_utils import paths
from xmem_utils.real import name_of

PROFILE = str(paths.REPO / "profiles" / "real.yaml")
SHORTER = str(paths.REPO / "profiles" / "real-knows.yaml")  # for the model that knows figures, alone
HOPS = str(paths.REPO / "profiles" / "real-hops.yaml")  # for notebook 06
LEARNING_RATE = 6e-3  # like the epochs of PROFILE chosen from data/real/tuning.csv
HOPS_RATE = 3e-3  # with HOPS, chosen from data/real/tuning_hops.csv
UNLEARNING = ("GradDiff", "SimNPO", "IDK")  # methods: ascends, prefers anything else, learns a refusal
FORGET_SHARE = 0.2  # a tenth of so few people would be three


def _given(profile: str, *rest: str, learning_rate: float = LEARNING_RATE) -> list[str]:
    return [f"profile={profile}", f"learning_rate={learning_rate}", *rest]


_NOBODY, _KNOWS = f"model={name_of(known=False)}", f"model={name_of(known=True)}"

_UNLEARNED = f"methods={','.join(UNLEARNING)}", f"forget_share={FORGET_SHARE}"


class Work(NamedTuple):
    """Conditions of a notebook, trained in two shards side by side once `after` is."""

    notebook: str
    given: list[str]  # parameters
    after: list[str]


class Drawing(NamedTuple):
    """A notebook that is run once `after` is trained; figures and tables that are kept."""

    given: list[str]
    after: list[str]
    kept: list[str]


TRAINED = {
    "nobody": Work("02_training", _given(PROFILE, _NOBODY), []),
    "knows": Work("02_training", _given(PROFILE, _KNOWS), []),
    "shorter": Work("02_training", _given(SHORTER, _KNOWS), []),
    "unlearned": Work("05_unlearning", _given(SHORTER, _KNOWS, *_UNLEARNED), ["shorter"]),
    "hops": Work("06_multihop", _given(HOPS, _KNOWS, learning_rate=HOPS_RATE), []),
    "mitigated": Work("07_mitigation", _given(SHORTER, _KNOWS, "methods=captions; self-labelled"), ["shorter"]),
}
STUDY = {
    "03_gap_analysis": Drawing(
        TRAINED["knows"].given,
        ["knows"],
        ["gap_matrix", "gap_curves", "gaps", "transfers", "gap_ranks", "gap_lengths"],
    ),
    "04_capability": Drawing(
        _given(PROFILE, f"models={name_of(known=False)},{name_of(known=True)}", "knowledge=false"),
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
