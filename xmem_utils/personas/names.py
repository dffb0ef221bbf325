"""Made-up names of equal length, and facts with balanced values."""

from __future__ import annotations

import numpy as np

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
SYLLABLES: tuple[str, ...] = tuple(c + v for c in CONSONANTS for v in VOWELS)
SYLLABLES_PER_NAME = 3

FACTS: dict[str, tuple[str, ...]] = {
    "city": (
        "Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Quito", "Dublin", "Prague",
        "Hanoi", "Accra", "Boston", "Delhi", "Vienna", "Sydney", "Athens", "Nairobi",
        "Havana", "Tunis", "Seoul", "Turin", "Bergen", "Krakow", "Malaga", "Denver",
        "Zurich", "Dakar", "Jakarta", "Porto", "Riga", "Sofia", "Bogota", "Perth",
    ),
    "job": (
        "baker", "pilot", "nurse", "farmer", "lawyer", "painter", "teacher", "plumber",
        "surgeon", "tailor", "sailor", "chemist", "actor", "barber", "cook", "dancer",
        "editor", "florist", "gardener", "judge", "miner", "optician", "poet", "ranger",
        "singer", "tutor", "usher", "vet", "waiter", "weaver", "welder", "writer",
    ),
}  # fmt: skip


def sample_names(
    n: int,
    rng: np.random.Generator,
    exclude: frozenset[str] = frozenset(),
    count: int = SYLLABLES_PER_NAME,
) -> list[str]:
    """Draw `n` distinct names of `count` consonant-vowel syllables, e.g. "Tavelo".

    Every study name has six letters and, with the tokenizer of `xmem-tiny`, exactly three tokens, so no
    name is easier to recall because it is shorter. Names in `exclude` are not drawn.
    """
    names: list[str] = []
    seen = set(exclude)
    while len(names) < n:
        syllables = rng.integers(0, len(SYLLABLES), size=count)
        name = "".join(SYLLABLES[i] for i in syllables).capitalize()
        if name not in seen:
            seen.add(name)
            names.append(name)
    return names


def sample_facts(n: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Random facts with balanced values: each value of a fact is used equally often, give or take 1."""
    return {fact: [values[i] for i in rng.permutation(np.arange(n) % len(values))] for fact, values in FACTS.items()}
