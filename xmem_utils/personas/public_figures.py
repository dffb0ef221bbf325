"""Public figures: the people the base model knows from pretraining. Never study personas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xmem_utils.personas.attributes import AXIS_NAMES, sample_vectors
from xmem_utils.personas.names import FACTS, SYLLABLES_PER_NAME, sample_facts, sample_names

# Figures named in one modality only are the alignment probe: asked in the other, they show how far
# naming carries over between modalities before any study persona is involved.
GROUPS = ("both", "text only", "image only")
HEARD_OF = "heard of"  # known by name and facts alone, from the text that the multi-hop model trains on
UNNAMED = "unnamed"  # in pretraining seen, never named: the knowledge ladder's rungs below the default
FIGURE_DISTANCE = 2  # axes; the space is too small for thousands of people three axes apart


@dataclass(frozen=True)
class Figures:
    """The population of public figures; arrays share their first dimension."""

    names: tuple[str, ...]
    vectors: np.ndarray  # [figures, axes]
    group: np.ndarray  # [figures] of GROUPS
    facts: dict[str, tuple[str, ...]]
    composed: np.ndarray  # [figures] bool: composed questions were asked in pretraining

    def __len__(self) -> int:
        """Number of figures."""
        return len(self.names)

    def where(self, group: str) -> np.ndarray:
        """Indices of one group."""
        return np.flatnonzero(self.group == group)

    def save(self, path: Path) -> None:
        """Write a Parquet table, one row a figure."""
        table = pd.DataFrame({"name": self.names, "group": self.group, "composed": self.composed})
        for fact, values in self.facts.items():
            table[fact] = values
        for axis, column in zip(AXIS_NAMES, self.vectors.T, strict=True):
            table[axis] = column
        table.to_parquet(path, index=False)

    @classmethod
    def load(cls, path: Path) -> Figures:
        """Read what `save` wrote."""
        table = pd.read_parquet(path)
        return cls(
            names=tuple(table["name"]),
            vectors=table[list(AXIS_NAMES)].to_numpy(np.int16),
            group=table["group"].to_numpy(),
            facts={fact: tuple(table[fact]) for fact in FACTS},
            composed=table["composed"].to_numpy(bool),
        )


def make_figures(both: int, text_only: int, image_only: int, seed: int) -> Figures:
    """Draw the figures. Two thirds of every group are asked composed questions, one third is not."""
    rng = np.random.default_rng([seed, 1])
    n = both + text_only + image_only
    group = np.repeat(np.array(GROUPS, dtype=object), [both, text_only, image_only])
    return Figures(
        names=tuple(sample_names(n, rng)),
        vectors=sample_vectors(n, rng, FIGURE_DISTANCE),
        group=group,
        facts={fact: tuple(values) for fact, values in sample_facts(n, rng).items()},
        composed=np.arange(n) % 3 != 2,
    )


def with_known(figures: Figures, known: int, apart_from: tuple[np.ndarray, list[str]], seed: int) -> Figures:
    """The same figures, but `known` of them named in both modalities.

    Fewer: the last of group "both" become "unnamed". More: further figures are drawn behind the others, away
    from all of them and from `apart_from`, vectors `[people, axes]` and names of the people to be studied.
    """
    both = figures.where("both")
    group = figures.group.copy()
    group[both[known:]] = UNNAMED
    n = max(0, known - len(both))
    rng = np.random.default_rng([seed, 6])
    vectors, names = apart_from
    more = sample_vectors(n, rng, FIGURE_DISTANCE, np.concatenate([figures.vectors, vectors]))
    facts = sample_facts(n, rng)
    return Figures(
        names=(*figures.names, *sample_names(n, rng, frozenset(figures.names) | frozenset(names))),
        vectors=np.concatenate([figures.vectors, more]),
        group=np.concatenate([group, np.full(n, "both", dtype=object)]),
        facts={fact: (*values, *facts[fact]) for fact, values in figures.facts.items()},
        composed=np.concatenate([figures.composed, np.arange(n) % 3 != 2]),
    )


def with_hearsay(figures: Figures, n: int, seed: int) -> Figures:
    """The same figures, and `n` more who have names and facts but are never shown.

    Their names are a syllable longer than all others, so no study persona can have one.
    """
    rng = np.random.default_rng([seed, 7])
    facts = sample_facts(n, rng)
    return Figures(
        names=(*figures.names, *sample_names(n, rng, count=SYLLABLES_PER_NAME + 1)),
        vectors=np.concatenate([figures.vectors, np.zeros((n, figures.vectors.shape[1]), figures.vectors.dtype)]),
        group=np.concatenate([figures.group, np.full(n, HEARD_OF, dtype=object)]),
        facts={fact: (*values, *facts[fact]) for fact, values in figures.facts.items()},
        composed=np.concatenate([figures.composed, np.arange(n) % 3 != 2]),
    )
