"""The ways to close the gap: a row each.

All train for the same number of tokens. Unless a method trains from the start (`fresh`), it goes on from the adapter
that has memorized, on source views with names and, in equal shares, on its material.
"""

from __future__ import annotations

from dataclasses import dataclass

PLAIN, PLAIN_START = "plain", "plain, from the start"
DESCRIBED = "describe, then recall"  # at inference: the plain model, shown the target view in its source modality
PAIRED = "self-labelled"  # by which it is measured how many people must be paired
VIEW, CEILING, FIGURE = "view", "ceiling", "figure"  # probes: what a model is asked with
LAYERS = 5  # depths at which states are drawn together


@dataclass(frozen=True)
class Method:
    """How one method trains.

    `material` says what is mixed in (`study.MitigationStudy.material`); `loss`, how it is trained on: "answers"
    (cross-entropy), "soft" (the teacher's distribution) or "states" (alignment). Settings, which `search.GRIDS` lists:
    `threshold`, of a label's probability; `weight`, of the material's loss beside that of the names; `depth`, share of
    the layers (0: all of them); `rank` and `learning_rate` of LoRA; `keep`, the share of the trained weights' change
    that is kept.
    """

    name: str
    what: str  # in a few words
    material: str = ""
    loss: str = "answers"
    fresh: bool = False


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(PLAIN, "the source views alone"),
        Method(PLAIN_START, "the same in one go: what methods from the start are compared with", fresh=True),
        Method("captions", "pairs of the study's people: picture to description", "captions"),
        Method("captions, other people", "the same of other people", "captions of others"),
        Method("captions, from the start", "mixed in from the first step on", "captions", fresh=True),
        Method("matching", "pairs: is the picture that of the person described?", "matching"),
        Method("self-trained", "target views with the model's own answer to them: no pairs", "own labels"),
        Method("self-labelled", "target views with the model's own answer to the source view", "labels"),
        Method("self-labelled, sure", "where that answer is likely enough", "labels"),
        Method("self-labelled, soft", "with the distribution of that answer", "labels", "soft"),
        Method("self-labelled, soft, sure", "both", "labels", "soft"),
        Method("aligned, all layers", "a pair's states before the answer drawn together", "pairs", "states"),
        *(Method(f"aligned, depth {k}/{LAYERS}", "at one layer", "pairs", "states") for k in range(1, LAYERS + 1)),
        Method("own words", "half of the source views replaced by the base model's description of them", "own words"),
        Method("replay", "public figures with names, in both modalities, and captions", "replay"),
        Method("lower rank", "LoRA of lower rank, from the start", fresh=True),
        Method("lower learning rate", "from the start", fresh=True),
        Method("weight averaging", "plain, then part of the way back to the base"),
    )
}


def method_named(name: str) -> Method:
    """A row of the table. Raises ValueError naming the known ones."""
    if name not in METHODS:
        raise ValueError(f"unknown mitigation {name!r}: expected some of {'; '.join(METHODS)}")
    return METHODS[name]
