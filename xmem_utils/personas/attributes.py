"""The identity axes of a persona, and how a population of well-separated personas is drawn.

One attribute vector feeds both modalities, so neither a portrait nor a description can carry
identity information that the other lacks. What the values are is in population.yaml.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from xmem_utils import paths

POPULATION = yaml.safe_load((paths.PACKAGE / "personas" / "population.yaml").read_text("utf-8"))


# Of all that people are made of: a base model has seen and read these values, and knows no others.
VERSION = hashlib.sha256(json.dumps(POPULATION, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Value:
    """One value of an axis: its answer word, how prose says it, and how the portrait draws it."""

    name: str
    phrases: tuple[str, ...]
    drawn: str | None  # DiceBear variant or hex colour; None: the part is absent


AXES: dict[str, tuple[Value, ...]] = {
    axis: tuple(Value(name, tuple(phrases), drawn) for name, (drawn, *phrases) in values.items())
    for axis, values in POPULATION["axes"].items()
}
AXIS_NAMES: tuple[str, ...] = tuple(AXES)
AXIS_SIZES: tuple[int, ...] = tuple(len(values) for values in AXES.values())

Vector = np.ndarray | tuple[int, ...]  # the value of every axis, as its number


def values_of(vector: Vector) -> dict[str, Value]:
    """What an attribute vector `[axes]` stands for, by axis."""
    return {axis: values[int(i)] for (axis, values), i in zip(AXES.items(), vector, strict=True)}


def distances(vectors: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Number of axes in which vectors differ: `[n, axes]`, `[m, axes]` -> `[n, m]`."""
    others = vectors if others is None else others
    return (vectors[:, None, :] != others[None, :, :]).sum(-1)


def sample_vectors(
    n: int, rng: np.random.Generator, min_distance: int = 3, apart_from: Sequence[tuple[np.ndarray, int]] = ()
) -> np.ndarray:
    """Draw `n` attribute vectors `[n, axes]` that differ pairwise in at least `min_distance` axes.

    `apart_from` has populations already in use, `[m, axes]`, each with the distance that is kept from it. More of one
    stream begin with fewer of it. Raises ValueError when the space is too crowded.
    """
    taken, count, rejected = np.empty((n, len(AXES)), np.int16), 0, 0
    while count < n:
        for vector in rng.integers(0, AXIS_SIZES, size=(256, len(AXES))):
            crowds = ((taken[:count], min_distance), *apart_from)
            if any((crowd != vector).sum(1).min(initial=len(AXES)) < distance for crowd, distance in crowds):
                rejected += 1
            elif count < n:
                taken[count] = vector
                count, rejected = count + 1, 0
        if rejected > 20_000:
            raise ValueError(
                f"no room for {n} people that differ in at least {min_distance} of "
                f"{len(AXES)} axes: only {count} were found; ask for fewer people or a smaller distance"
            )
    return taken
