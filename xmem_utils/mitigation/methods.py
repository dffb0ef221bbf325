"""The ways to close the gap: a row each.

All train for the same number of tokens. Unless a method trains from the start (`fresh`), it goes on from the adapter
that has memorized, on source views with names and, in equal shares, on its auxiliary data.

To add a method, give it a row here; new data is a function in `data.py`, a new loss one in `losses.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from xmem_utils.experiment import Method as AnyMethod
from xmem_utils.fingerprint import Table
from xmem_utils.mitigation import data, losses
from xmem_utils.mitigation.names import BASELINE, BASELINE_START, FRESH, PAIRED
from xmem_utils.train import Loss

LAYERS = 5  # depths at which states are drawn together
WEIGHTS, THRESHOLDS = (0.03, 0.1, 0.3, 1.0), (0.5, 0.9)


@dataclass(frozen=True)
class Method(AnyMethod):
    """How one method trains.

    `data` makes what is mixed in; `loss`, how it is trained on. Settings in `grid`: `threshold`, of a label's
    probability; `weight`, of the auxiliary loss beside that of the names; `depth`, share of the layers (0: all of
    them); `rank` and `learning_rate` of LoRA; `keep`, the share of the trained weights' change that is kept.
    """

    data: Callable[..., data.Mixed] = data.names_alone
    loss: Loss = losses.answers
    pairs: bool = False  # of the study's people are used
    on_top: bool = False  # of as many named views as the baseline has: an added budget
    like: str = field(default="", compare=False)  # the row whose settings it takes

    @property
    def fresh(self) -> bool:
        """Whether it trains from the start."""
        return self.name in FRESH


W, T = {"weight": WEIGHTS}, {"threshold": THRESHOLDS}
LATER = {"weight": WEIGHTS[1:]}
ONE_LAYER = "a pair's states before the answer drawn together, at one layer"

METHODS = Table(
    (method.name, method)
    for method in (
        Method(BASELINE, "the source views alone"),
        Method(BASELINE_START, "the same in one go: what methods from the start are compared with"),
        Method("captions", "pairs of the study's people: picture to description", W, data.captions, pairs=True),
        Method("captions, other people", "the same of other people", W, data.captions_of_others),
        Method("captions, from the start", "mixed in from the first step on", LATER, data.captions,
               pairs=True),
        Method("matching", "pairs: is the picture that of the person described?", W, data.matching, pairs=True),
        Method("self-trained", "target views with the model's own answer to them: no pairs", {}, data.self_trained,
               pairs=True),
        Method(PAIRED, "target views with the model's own answer to the source view", {}, data.labelled,
               pairs=True),
        Method("self-labelled, sure", "where that answer is likely enough", T, data.labelled, pairs=True),
        Method("self-labelled, with strangers", "half of the pairs are of people whom nobody named", {},
               data.labelled_with_strangers, pairs=True),
        Method("self-labelled, with strangers, sure", "the same where the answer is likely enough", {},
               data.labelled_with_strangers, pairs=True, like="self-labelled, sure"),
        Method("captions, on top", "captions beside as many named views as the baseline has", {}, data.captions,
               pairs=True, on_top=True, like="captions"),
        Method("self-labelled, on top", "self-labelled pairs beside as many", {}, data.labelled, pairs=True,
               on_top=True),
        Method("self-labelled, soft", "with the distribution of that answer", {}, data.soft_labelled,
               losses.soft_labels, pairs=True),
        Method("self-labelled, soft, sure", "both", T, data.soft_labelled, losses.soft_labels, pairs=True),
        Method("aligned, all layers", "a pair's states before the answer drawn together", {"depth": (0.0,), **W},
               data.pairs_of_states, losses.aligned_states, pairs=True),
        *(Method(f"aligned, depth {k}/{LAYERS}", ONE_LAYER, {"depth": (k / LAYERS,), **LATER}, data.pairs_of_states,
                 losses.aligned_states, pairs=True) for k in range(1, LAYERS + 1)),
        Method("own words", "half of the source views replaced by the base model's description of them", {},
               data.own_words),
        Method("replay", "public figures with names, in both modalities, and captions", LATER, data.replayed),
        Method("lower rank", "LoRA of lower rank, from the start", {"rank": (4.0, 8.0)}),
        Method("lower learning rate", "from the start", {"learning_rate": (5e-4, 1e-3)}),
        Method("weight averaging", "baseline, then part of the way back to the base", {"keep": (0.7, 0.85)}),
    )
)  # fmt: skip

# The bake-off, with describe-then-recall; what is left out are variants of these, and other ways to train.
MAIN = (
    BASELINE,
    "captions",
    "captions, other people",
    "self-trained",
    PAIRED,
    "aligned, all layers",
    "own words",
    "replay",
    "captions, on top",
    "self-labelled, on top",
)
HARD = (PAIRED, "self-labelled, sure", "self-labelled, with strangers", "self-labelled, with strangers, sure")


def method_named(name: str) -> Method:
    """A row of the table. Raises ValueError naming those of the bake-off."""
    if name not in METHODS:
        raise ValueError(f"unknown mitigation {name!r}: expected some of {'; '.join(MAIN)}; or variants")
    return METHODS[name]
