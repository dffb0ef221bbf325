"""The identity axes of a persona, and how a population of well-separated personas is drawn.

One attribute vector feeds both modalities, so neither a portrait nor a description can carry
identity information that the other lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Value:
    """One value of an axis: its answer word, how prose says it, and how the portrait draws it."""

    name: str
    phrases: tuple[str, ...]
    drawn: str | None  # DiceBear variant or hex colour; None: the part is absent


def _axis(**values: tuple[str | None, str, str]) -> tuple[Value, ...]:
    return tuple(Value(name.replace("_", "-"), phrases, drawn) for name, (drawn, *phrases) in values.items())


# Values were picked to be told apart at 64 px and to hide nothing of the other axes: no hats (they
# hide hair), no loose hair over the garment, no garments that differ in the neckline alone (beards
# hide it).
AXES: dict[str, tuple[Value, ...]] = {
    "hair style": _axis(
        bob=("bob", "in a bob", "cut to the chin"),
        bun=("bun", "in a bun", "tied in a topknot"),
        curls=("curly", "in curls", "falling in ringlets"),
        spikes=("dreads02", "in spikes", "bristling all around"),
        afro=("fro", "in an afro", "in a big round puff"),
        headband=("froBand", "behind a headband", "pushed back by a band"),
        fringe=("shaggy", "with a fringe", "swept over the brow"),
        mullet=("shaggyMullet", "in a mullet", "short above and long in the neck"),
        crop=("shortFlat", "in a crop", "trimmed short and flat"),
        quiff=("frizzle", "in a quiff", "shaved to a single tuft"),
        straight=("straight02", "worn long and straight", "hanging straight down"),
    ),
    "hair colour": _axis(
        black=("#2c1b18", "black", "jet"),
        brown=("#724133", "brown", "chestnut"),
        ginger=("#c93305", "ginger", "copper"),
        blond=("#d6b370", "blond", "golden"),
        pink=("#f59797", "pink", "rosy"),
        white=("#f2efea", "white", "silver"),
        blue=("#3f6fd8", "blue", "azure"),
        green=("#3f9b4f", "green", "emerald"),
        purple=("#7b3fb0", "purple", "violet"),
    ),
    "skin": _axis(
        dark=("#614335", "dark", "ebony"),
        brown=("#ae5d29", "brown", "bronze"),
        tan=("#edb98a", "tan", "olive"),
        pale=("#ffe3cb", "pale", "fair"),
    ),
    "garment": _axis(
        blazer=("blazerAndShirt", "blazer", "jacket"),
        tee=("graphicShirt", "tee", "printed shirt"),
        hoodie=("hoodie", "hoodie", "hooded sweater"),
        dungarees=("overall", "pair of dungarees", "pair of overalls"),
        crewneck=("shirtCrewNeck", "crewneck", "plain shirt"),
    ),
    "garment colour": _axis(
        black=("#262e33", "black", "jet"),
        red=("#d8343a", "red", "scarlet"),
        navy=("#25557c", "navy", "marine"),
        white=("#ffffff", "white", "snowy"),
        yellow=("#f5d93a", "yellow", "lemon"),
        green=("#3f9b4f", "green", "emerald"),
        orange=("#f58a1f", "orange", "tangerine"),
        purple=("#7b3fb0", "purple", "violet"),
    ),
    "eyewear": _axis(
        none=(None, "no glasses", "nothing over the eyes"),
        eyepatch=("eyepatch", "an eyepatch", "a patch over one eye"),
        sunglasses=("wayfarers", "sunglasses", "dark shades"),
        goggles=("kurt", "red goggles", "big crimson lenses"),
        spectacles=("round", "round spectacles", "thin wire glasses"),
    ),
    "facial hair": _axis(
        none=(None, "no beard", "a shaved chin"),
        stubble=("beardLight", "stubble", "a short beard"),
        beard=("beardMajestic", "a full beard", "a long thick beard"),
        moustache=("moustacheMagnum", "a moustache", "whiskers over the lip"),
    ),
}

AXIS_NAMES: tuple[str, ...] = tuple(AXES)
AXIS_SIZES: tuple[int, ...] = tuple(len(values) for values in AXES.values())


def named(vector: np.ndarray | tuple[int, ...]) -> dict[str, str]:
    """An attribute vector `[axes]` as {axis: answer word}."""
    return {axis: AXES[axis][int(i)].name for axis, i in zip(AXIS_NAMES, vector, strict=True)}


def distances(vectors: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Number of axes in which vectors differ: `[n, axes]`, `[m, axes]` -> `[n, m]`."""
    others = vectors if others is None else others
    return (vectors[:, None, :] != others[None, :, :]).sum(-1)


def sample_vectors(
    n: int,
    rng: np.random.Generator,
    min_distance: int = 3,
    apart_from: np.ndarray | None = None,
) -> np.ndarray:
    """Draw `n` attribute vectors `[n, axes]` that differ pairwise in at least `min_distance` axes.

    `apart_from` (`[m, axes]`) is a population already in use; the new vectors keep the same
    distance from it. Raises ValueError when the space is too crowded for `n` more.
    """
    fixed = 0 if apart_from is None else len(apart_from)
    taken = np.empty((fixed + n, len(AXIS_SIZES)), np.int16)
    if fixed:
        taken[:fixed] = apart_from
    count, rejected = fixed, 0
    while count < fixed + n:
        for vector in rng.integers(0, AXIS_SIZES, size=(256, len(AXIS_SIZES))):
            if count == fixed + n:
                break
            if (taken[:count] != vector).sum(1).min(initial=len(AXIS_SIZES)) >= min_distance:
                taken[count] = vector
                count, rejected = count + 1, 0
            else:
                rejected += 1
        if rejected > 20_000:
            raise ValueError(
                f"no room for {n} people that differ in at least {min_distance} of "
                f"{len(AXIS_SIZES)} axes: only {count - fixed} were found; "
                "ask for fewer people or a smaller distance"
            )
    return taken[fixed:]
