"""The ways to close the gap: a row each.

All train for the same number of tokens. Unless a method trains from the start (`fresh`), it goes on from the adapter
that has memorized, on source views with names and, in equal shares, on its material.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

PLAIN, PLAIN_START = "plain", "plain, from the start"
DESCRIBED = "describe, then recall"  # at inference: the plain model, shown the target view in its source modality
PAIRED = "self-labelled"  # by which it is measured how many people must be paired
LAYERS = 5  # depths at which states are drawn together


@dataclass(frozen=True)
class Method:
    """How one method trains, and the settings that the search tries.

    `material` says what is mixed in (`study.MitigationStudy.material`); `loss`, how it is trained on: "answers"
    (cross-entropy), "soft" (the teacher's distribution) or "states" (alignment). Settings: `threshold`, of a label's
    probability; `weight`, of the material's loss beside that of the names; `depth`, share of the layers (0: all of
    them); `rank` and `learning_rate` of LoRA; `keep`, the share of the trained weights' change that is kept.
    """

    name: str
    what: str  # in a few words
    material: str = ""
    loss: str = "answers"
    fresh: bool = False
    settings: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def grid(self) -> list[dict[str, float]]:
        """All settings that the search tries."""
        return [dict(zip(self.settings, values, strict=True)) for values in product(*self.settings.values())]


WEIGHTS = (0.1, 0.3, 1.0)
THRESHOLDS = (0.5, 0.9)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(PLAIN, "the source views alone"),
        Method(PLAIN_START, "the same in one go: what methods from the start are compared with", fresh=True),
        Method("captions", "pairs of the study's people: picture to description", "captions",
               settings={"weight": WEIGHTS}),
        Method("captions, other people", "the same of other people", "captions of others",
               settings={"weight": WEIGHTS}),
        Method("captions, from the start", "mixed in from the first step on", "captions", fresh=True,
               settings={"weight": WEIGHTS[1:]}),
        Method("matching", "pairs: is the picture that of the person described?", "matching",
               settings={"weight": WEIGHTS}),
        Method("self-labelled", "target views with the model's own answer to the source view", "labels"),
        Method("self-labelled, sure", "where that answer is likely enough", "labels",
               settings={"threshold": THRESHOLDS}),
        Method("self-labelled, soft", "with the distribution of that answer", "labels", "soft"),
        Method("self-labelled, soft, sure", "both", "labels", "soft", settings={"threshold": THRESHOLDS}),
        Method("aligned, all layers", "a pair's states before the answer drawn together", "pairs", "states",
               settings={"depth": (0.0,), "weight": WEIGHTS}),
        *(Method(f"aligned, depth {k}/{LAYERS}", "at one layer", "pairs", "states",
                 settings={"depth": (k / LAYERS,), "weight": (0.3,)}) for k in range(1, LAYERS + 1)),
        Method("own words", "half of the source views replaced by the base model's description of them", "own words"),
        Method("replay", "public figures with names, in both modalities, and captions", "replay"),
        Method("lower rank", "LoRA of lower rank, from the start", fresh=True, settings={"rank": (4.0, 8.0)}),
        Method("lower learning rate", "from the start", fresh=True, settings={"learning_rate": (5e-4, 1e-3)}),
        Method("weight averaging", "plain, then part of the way back to the base", settings={"keep": (0.7, 0.85)}),
    )
}  # fmt: skip


def method_named(name: str) -> Method:
    """A row of the table. Raises ValueError naming the known ones."""
    if name not in METHODS:
        raise ValueError(f"unknown mitigation {name!r}: expected some of {'; '.join(METHODS)}")
    return METHODS[name]
