"""Who takes part in a multi-hop study, and what is true of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xmem_utils import fingerprint
from xmem_utils.params import MODALITIES
from xmem_utils.personas.dataset import PersonaSpec, load_personas, names_of, to_views
from xmem_utils.personas.names import FACTS
from xmem_utils.personas.public_figures import PublicFigures, figure_views
from xmem_utils.personas.views import View

# The study's people learn name and facts apart. Of the others, some learn them together, from one view, and the
# rest are the ones whom composing is practised on.
STUDY, TOGETHER, PRACTISED = "study", "together", "practised"
KNOWN = "known"  # stands for a source of names where pretraining is it
# Public figures: composed questions about them were withheld in pretraining, or asked.
WITHHELD, ASKED = "public figures, withheld", "public figures, practised"
TEST_VIEWS = 2  # of each person, in each modality: there are many questions
FIGURES = 60  # public figures of a group, at most


@dataclass(frozen=True)
class Population:
    """People by number, their facts by kind, their views by split and modality; `groups` says who is what."""

    names: Sequence[str]
    facts: Mapping[str, Sequence[str]]
    groups: Mapping[str, Sequence[int]]
    shown: Mapping[tuple[str, str], Sequence[View]]
    fingerprint: str
    replicate: int

    def group_of(self) -> dict[int, str]:
        """Person -> group."""
        return {person: group for group, people in self.groups.items() for person in people}

    def views(self, split: str, modality: str, group: str, count: int | None = None) -> list[View]:
        """The first `count` views of each person of a group (default: all)."""
        people = set(self.groups[group])
        every = self.shown[split, modality]
        return [v for v in every if v.persona in people and (count is None or v.index < count)]


def further(personas: int) -> dict[str, int]:
    """How many people join the study's in the other groups; composing is practised on more values than on few."""
    return {TOGETHER: max(4, personas // 5), PRACTISED: max(4, personas // 3)}


def dealt(size: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Facts of a group, balanced: each value as often as any other, give or take 1; which ones, is random."""
    out = {}
    for fact, values in FACTS.items():
        order = rng.permutation(len(values))
        out[fact] = [values[order[i % len(values)]] for i in rng.permutation(size)]
    return out


def draw_population(study: PersonaSpec, replicate: int, train_views: int) -> Population:
    """The people of a replicate, those of its study first; facts are drawn anew, balanced within each group."""
    sizes = {STUDY: study.personas, **further(study.personas)}
    dataset, fingerprint = load_personas(replace(study, personas=sum(sizes.values()), train_views=train_views))
    rng = np.random.default_rng([replicate, 30])
    facts: dict[str, list[str]] = {fact: [] for fact in FACTS}
    groups, start = {}, 0
    for group, size in sizes.items():
        groups[group], start = range(start, start + size), start + size
        for fact, values in dealt(size, rng).items():
            facts[fact] += values
    counts = {"train": None, "test": TEST_VIEWS}
    shown = {(split, m): to_views(dataset, split, m, n) for split, n in counts.items() for m in MODALITIES}
    return Population(names_of(dataset), facts, groups, shown, fingerprint, replicate)


def known_population(figures: PublicFigures, side: int, replicate: int, most: int = FIGURES) -> Population:
    """Public figures named in both modalities, with new facts, balanced, none of which is the old one. Those of whom
    composed questions were withheld in pretraining stand for the study's people; some others are practised on."""
    both, rng = figures.where("both"), np.random.default_rng([replicate, 34])
    groups = {
        STUDY: both[~figures.composed[both]][:most].tolist(),
        PRACTISED: both[figures.composed[both]][: max(8, most // 3)].tolist(),
    }
    facts = {fact: list(values) for fact, values in figures.facts.items()}
    for people in groups.values():
        for fact, values in dealt(len(people), rng).items():
            old = [figures.facts[fact][person] for person in people]
            for person, value in zip(people, _renewed(values, old, rng), strict=True):
                facts[fact][person] = value
    people, shown = [p for members in groups.values() for p in members], {}
    for k, (split, count) in enumerate({"train": 1, "test": TEST_VIEWS}.items()):
        views = figure_views(figures, people, [replicate, 35 + k], split, side, count)
        shown |= {(split, m): [v for v in views if v.modality == m] for m in MODALITIES}
    said = [(v.persona, v.name, v.split, v.index, v.content) for views in shown.values() for v in views]
    about = [facts, groups, [[*at, np.asarray(what).tobytes().hex()] for *at, what in said]]
    return Population(figures.names, facts, groups, shown, fingerprint.values_of(about), replicate)


def _renewed(values: Sequence[str], old: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The same values in an order in which nobody has the old one: whoever has it swaps with somebody for whom that is
    so, too. Raises ValueError where there is nobody."""
    new = list(values)
    for i in [i for i in range(len(new)) if new[i] == old[i]]:
        able = [j for j in range(len(new)) if new[j] != old[i] and new[i] != old[j]]
        if new[i] == old[i]:
            if not able:
                raise ValueError(f"among {len(new)} people, nobody can have another fact than {old[i]!r}")
            j = able[rng.integers(len(able))]
            new[i], new[j] = new[j], new[i]
    return new


def public_population(figures: PublicFigures, side: int, most: int = FIGURES) -> Population:
    """Public figures named in both modalities, with new views: composed questions were practised on some of them."""
    both = figures.where("both")
    groups = {
        WITHHELD: both[~figures.composed[both]][:most].tolist(),
        ASKED: both[figures.composed[both]][:most].tolist(),
    }
    views = figure_views(figures, [p for people in groups.values() for p in people], [0, 31], None, side, TEST_VIEWS)
    shown = {("test", m): [v for v in views if v.modality == m] for m in MODALITIES}
    return Population(figures.names, figures.facts, groups, shown, "", replicate=0)
