"""Text views: a small grammar that says the same attribute vector in many ways.

A description has one sentence an attribute group, in any order, each from one of eight frames, with
either wording of every value, and sometimes a sentence about something that changes from view to
view (mood, light, place), as the background and expression do in portraits. The sentences are in
population.yaml; a test view has no sentence frame in common with any training view.
"""

from __future__ import annotations

import re

import numpy as np

from xmem_utils.personas.attributes import POPULATION, Vector, values_of
from xmem_utils.personas.views import SPLITS, Split

DISTRACTORS: tuple[str, ...] = tuple(text for split in SPLITS for text in POPULATION["distractors"][split])


def _pick(texts: dict[str, list[str]], split: Split | None, rng: np.random.Generator) -> str:
    allowed = texts[split] if split else texts["train"] + texts["test"]
    return allowed[rng.integers(len(allowed))]


def describe(vector: Vector, rng: np.random.Generator, split: Split | None = "train", varied: bool = True) -> str:
    """One description of an attribute vector `[axes]`; `split=None` draws from all frames.

    Unless `varied`, the sentences keep the order of population.yaml, and all are about the attributes.
    """
    values, groups = values_of(vector), POPULATION["sentences"]
    sentences = []
    for g in rng.permutation(len(groups)) if varied else range(len(groups)):
        wordings = [values[axis].phrases for axis in groups[g]["axes"]]
        phrases = [wording[rng.integers(len(wording))] for wording in wordings]
        sentence = re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", _pick(groups[g], split, rng).format(*phrases))
        sentences.append(sentence[0].upper() + sentence[1:])
    if varied and rng.random() < 0.5:
        sentence = _pick(POPULATION["distractors"], split, rng)
        sentences.insert(int(rng.integers(len(sentences) + 1)), sentence)
    return " ".join(sentences)


def describe_many(vector: Vector, n: int, rng: np.random.Generator, split: Split | None) -> list[str]:
    """`n` different descriptions of one attribute vector."""
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[describe(vector, rng, split)] = None
    return list(texts)
