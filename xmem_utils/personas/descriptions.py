"""Text views: a small grammar that says the same attribute vector in many ways.

A description has one sentence an attribute group, in any order, each from one of eight frames, with
either wording of every value, and sometimes a sentence about something that changes from view to
view (mood, light, place), as the background and expression do in portraits. Frames 0-4 and the
first distractors are for training views, frames 5-7 and the rest for test views: a test view has no
sentence frame in common with any training view.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from xmem_utils.personas.attributes import AXES, AXIS_NAMES

Split = Literal["train", "test"]

# {0}, {1}: the phrases of the group's axes. A leading {0} is capitalised.
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("hair colour", "hair style"),
        (
            "They have {0} hair {1}.",
            "The hair is {0}, {1}.",
            "You notice {0} hair {1}.",
            "On top is {0} hair {1}.",
            "{0} hair {1} is easy to spot.",
            "Look for {0} hair {1}.",
            "Here is someone with {0} hair {1}.",
            "Their {0} hair is {1}.",
        ),
    ),
    (
        ("skin",),
        (
            "Their skin is {0}.",
            "They have {0} skin.",
            "The face has a {0} tone.",
            "{0} skin.",
            "You see {0} skin.",
            "The skin looks {0}.",
            "A {0} face.",
            "With {0} skin they stand out.",
        ),
    ),
    (
        ("garment colour", "garment"),
        (
            "They wear a {0} {1}.",
            "Dressed in a {0} {1}.",
            "The outfit is a {0} {1}.",
            "They chose a {0} {1} today.",
            "You can see a {0} {1}.",
            "Below is a {0} {1}.",
            "Their clothes: a {0} {1}.",
            "A {0} {1} completes the look.",
        ),
    ),
    (
        ("eyewear",),
        (
            "They have {0}.",
            "On the nose: {0}.",
            "You will see {0}.",
            "There is {0}.",
            "Seen with {0}.",
            "They go out with {0}.",
            "Notice {0}.",
            "Across the face: {0}.",
        ),
    ),
    (
        ("facial hair",),
        (
            "The chin shows {0}.",
            "There is {0}.",
            "They have {0}.",
            "They keep {0}.",
            "Around the mouth: {0}.",
            "The jaw bears {0}.",
            "Further down, {0}.",
            "Add to that {0}.",
        ),
    ),
)
DISTRACTORS: tuple[str, ...] = (
    "They seem to be in a good mood.",
    "The light is soft.",
    "They look a little tired.",
    "It is a quiet afternoon.",
    "They are waiting for a friend.",
    "The wall behind is plain.",
    "They just came home.",
    "It might rain later.",
    "They hum a tune.",
    "The street is busy.",
    "They glance to one side.",
    "Music plays somewhere.",
)
_FRAMES = {"train": range(0, 5), "test": range(5, 8)}
_DISTRACTORS = {"train": range(0, 8), "test": range(8, 12)}


_ARTICLE = re.compile(r"\b([Aa])(?= [aeiou])")


def describe(vector: np.ndarray | tuple[int, ...], rng: np.random.Generator, split: Split | None = "train") -> str:
    """One description of an attribute vector `[axes]`; `split=None` draws from all frames."""
    index = dict(zip(AXIS_NAMES, vector, strict=True))
    frames = _FRAMES[split] if split else range(8)
    sentences = []
    for g in rng.permutation(len(GROUPS)):
        axes, templates = GROUPS[g]
        values = [AXES[axis][int(index[axis])] for axis in axes]
        phrases = [value.phrases[rng.integers(len(value.phrases))] for value in values]
        sentence = templates[frames[rng.integers(len(frames))]].format(*phrases)
        sentence = _ARTICLE.sub(r"\1n", sentence)
        sentences.append(sentence[0].upper() + sentence[1:])
    if rng.random() < 0.5:
        allowed = _DISTRACTORS[split] if split else range(len(DISTRACTORS))
        sentence = DISTRACTORS[allowed[rng.integers(len(allowed))]]
        sentences.insert(int(rng.integers(len(sentences) + 1)), sentence)
    return " ".join(sentences)


def describe_many(
    vector: np.ndarray | tuple[int, ...], n: int, rng: np.random.Generator, split: Split | None
) -> list[str]:
    """`n` different descriptions of one attribute vector."""
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[describe(vector, rng, split)] = None
    return list(texts)
