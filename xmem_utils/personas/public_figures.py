"""Public figures: the people the base model knows from pretraining. Never study personas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xmem_utils.fingerprint import by_content
from xmem_utils.personas.attributes import AXIS_NAMES, sample_vectors
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.names import FACTS, SYLLABLES_PER_NAME, sample_facts, sample_names
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.views import View

# Who is named in one modality only is the alignment probe: asked in the other, they show how far
# naming carries over between modalities before any study persona is involved.
GROUPS = ("both", "text only", "image only")
FIGURES = (300, 400, 400)  # how many of each group the embedded models know
HEARD_OF = "heard of"  # known by name and facts alone
UNNAMED = "unnamed"  # in pretraining seen, never named: the knowledge ladder's rungs below the default
MIN_DISTANCE = 2  # axes; the space is too small for thousands of people three axes apart


class PublicFigures:
    """The population of public figures: a table, a row a person, of name, group, composed, the facts and the axes."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self.names: tuple[str, ...] = tuple(table["name"])
        self.vectors = table[list(AXIS_NAMES)].to_numpy(np.int16)  # [people, axes]
        self.group = table["group"].to_numpy()  # [people] of GROUPS
        self.facts: dict[str, tuple[str, ...]] = {fact: tuple(table[fact]) for fact in FACTS}
        self.composed = table["composed"].to_numpy(bool)  # [people]: composed questions were asked in pretraining

    def __len__(self) -> int:
        """Number of people."""
        return len(self.names)

    def where(self, group: str) -> np.ndarray:
        """Indices of one group."""
        return np.flatnonzero(self.group == group)

    def seen(self) -> PublicFigures:
        """All but those who are only heard of, who stand last."""
        return PublicFigures(self.table[self.group != HEARD_OF])

    def save(self, path: Path) -> None:
        """Write a Parquet table, one row a person."""
        self.table.to_parquet(path, index=False)

    @classmethod
    def load(cls, path: Path) -> PublicFigures:
        """Read what `save` wrote."""
        return cls(pd.read_parquet(path))

    def followed_by(self, more: pd.DataFrame) -> PublicFigures:
        """These and further people, from `_people`."""
        return PublicFigures(pd.concat([self.table, more], ignore_index=True))


def _people(
    names: Sequence[str], vectors: np.ndarray, facts: Mapping[str, Sequence[str]], group: str | np.ndarray
) -> pd.DataFrame:
    """A row a person. Two thirds are asked composed questions, one third is not."""
    known = {"name": names, "group": group, "composed": np.arange(len(names)) % 3 != 2, **facts}
    return pd.DataFrame(known | dict(zip(AXIS_NAMES, vectors.T, strict=True)))


@by_content
def known_in(folder: str) -> PublicFigures | None:
    """The public figures of an embedded model, from its folder; None for any other model."""
    file = Path(folder) / "figures.parquet"
    return PublicFigures.load(file) if file.is_file() else None


def figure_views(
    figures: PublicFigures, chosen: Sequence[int], seed: Sequence[int], split: str | None, side: int, count: int = 1
) -> list[View]:
    """`count` new pictures and as many descriptions of each of some public figures, with their names."""
    rng, views = np.random.default_rng(seed), []
    for i in chosen:
        for k in range(count):
            shown = {"image": draw(figures.vectors[i], rng, split, side)}
            shown["text"] = describe(figures.vectors[i], rng, split)
            views += [View(int(i), figures.names[i], m, split or "test", k, content) for m, content in shown.items()]
    return views


# Below, the order of a call's arguments is the order of the draws.


def draw_public_figures(both: int, text_only: int, image_only: int, seed: int) -> PublicFigures:
    """Draw so many people of each group. Two thirds of every group are asked composed questions, one third is not."""
    rng = np.random.default_rng([seed, 1])
    n = both + text_only + image_only
    people = _people(
        names=sample_names(n, rng),
        vectors=sample_vectors(n, rng, MIN_DISTANCE),
        facts=sample_facts(n, rng),
        group=np.repeat(GROUPS, [both, text_only, image_only]),
    )
    return PublicFigures(people)


def with_known(
    public_figures: PublicFigures, known: int, apart_from: tuple[np.ndarray, list[str]], seed: int
) -> PublicFigures:
    """The same people, but `known` of them named in both modalities.

    Fewer: the last of group "both" become "unnamed". More: further people are drawn behind the others, away
    from all of them and from `apart_from`, vectors `[people, axes]` and names of the people to be studied.
    """
    both = public_figures.where("both")
    group = public_figures.group.copy()
    group[both[known:]] = UNNAMED
    n = max(0, known - len(both))
    rng = np.random.default_rng([seed, 6])
    vectors, names = apart_from
    further = _people(
        vectors=sample_vectors(n, rng, MIN_DISTANCE, [(public_figures.vectors, MIN_DISTANCE), (vectors, MIN_DISTANCE)]),
        facts=sample_facts(n, rng),
        names=sample_names(n, rng, frozenset(public_figures.names) | frozenset(names)),
        group="both",
    )
    return PublicFigures(public_figures.table.assign(group=group)).followed_by(further)


def with_hearsay(public_figures: PublicFigures, n: int, seed: int) -> PublicFigures:
    """The same people, and `n` more who have names and facts but are never shown.

    Their names are a syllable longer than all others, so no study persona can have one.
    """
    rng = np.random.default_rng([seed, 7])
    further = _people(
        facts=sample_facts(n, rng),
        names=sample_names(n, rng, count=SYLLABLES_PER_NAME + 1),
        vectors=np.zeros((n, len(AXIS_NAMES)), np.int16),
        group=HEARD_OF,
    )
    return public_figures.followed_by(further)
