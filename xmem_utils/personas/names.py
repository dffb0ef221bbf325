"""Made-up names of equal length, and facts with balanced values."""

from __future__ import annotations

import numpy as np

from xmem_utils.personas.attributes import POPULATION

SYLLABLES: tuple[str, ...] = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")
SYLLABLES_PER_NAME = 3
FACTS: dict[str, tuple[str, ...]] = {fact: tuple(values) for fact, values in POPULATION["facts"].items()}


def sample_names(
    n: int, rng: np.random.Generator, exclude: frozenset[str] = frozenset(), count: int = SYLLABLES_PER_NAME
) -> list[str]:
    """Draw `n` distinct names of `count` consonant-vowel syllables, e.g. "Tavelo".

    Every study name has six letters and, with the tokenizer of `xmem-tiny`, exactly three tokens, so no
    name is easier to recall because it is shorter. Names in `exclude` are not drawn.
    """
    names: dict[str, None] = {}
    while len(names) < n:
        name = "".join(SYLLABLES[i] for i in rng.integers(0, len(SYLLABLES), size=count)).capitalize()
        if name not in exclude:
            names[name] = None
    return list(names)


def sample_facts(n: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Random facts with balanced values: each value of a fact is used equally often, give or take 1."""
    return {fact: [values[i] for i in rng.permutation(np.arange(n) % len(values))] for fact, values in FACTS.items()}
