"""Whom the questions are about: names, and views of both modalities that are encoded once for all models compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import DatasetDict

from xmem_utils.params import MODALITIES
from xmem_utils.personas.attributes import distances
from xmem_utils.personas.dataset import SPLITS, PersonaSpec, to_views
from xmem_utils.personas.descriptions import describe_many
from xmem_utils.personas.portraits import draw_many
from xmem_utils.personas.public_figures import PublicFigures
from xmem_utils.personas.views import View
from xmem_utils.vlm.batches import Example, answer_tokens, encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import WHO

TRAIN_VIEWS = 4  # of each person and modality, for the probe to learn from
TEST_VIEWS = 2  # for everything else: intervals come from the people, not from their views


@dataclass(frozen=True)
class People:
    """People and their encoded views, the same for every model on one base (its vision tower is frozen).

    A person is known by the place in `names`. `examples[split, modality]` are encoded views, and
    `who[split, modality]` says whom each shows `[views]`. Everybody has views of both splits and modalities.
    """

    numbers: tuple[int, ...]  # persona or figure number of each, as records have it
    names: tuple[str, ...]
    answers: tuple[torch.Tensor, ...]  # tokens of each name, end of turn included
    examples: dict[tuple[str, str], list[Example]]
    who: dict[tuple[str, str], np.ndarray]

    def __len__(self) -> int:
        """Number of people."""
        return len(self.names)

    def rows(self, split: str, modality: str, place: int) -> np.ndarray:
        """For everybody, the row of their view number `place` `[people]`; those with fewer start again."""
        who = self.who[split, modality]
        own = [np.flatnonzero(who == person) for person in range(len(self))]
        return np.array([mine[place % len(mine)] for mine in own])


def study_people(
    vlm: VLM,
    dataset: DatasetDict,
    train_views: int = TRAIN_VIEWS,
    test_views: int = TEST_VIEWS,
    personas: Sequence[int] | None = None,
    question: str = WHO,
) -> People:
    """The personas of a study's dataset, or some of them, with the first views of each split.

    People whom a user's own folder shows in one modality or split alone are left out. Raises ValueError when fewer
    than two remain.
    """
    counts = dict(zip(SPLITS, (train_views, test_views), strict=True))
    views = {(s, m): to_views(dataset, s, m, counts[s]) for s in SPLITS for m in MODALITIES}
    return _people(vlm, views, question, personas)


def figure_people(
    vlm: VLM,
    figures: PublicFigures,
    n: int = 100,
    seed: int = 0,
    train_views: int = TRAIN_VIEWS,
    test_views: int = TEST_VIEWS,
    question: str = WHO,
) -> People:
    """The first `n` public figures whom pretraining named in both modalities, with views drawn anew from `seed`.

    They are chosen as far apart as study personas are (`PersonaSpec.min_distance` axes), so that telling them apart
    is not harder. Pretraining drew from the nuisance of both splits; the views here are new draws all the same.
    Raises ValueError when fewer than two such figures exist.
    """
    chosen: list[int] = []
    for i in figures.where("both"):
        apart = distances(figures.vectors[[i]], figures.vectors[chosen]) >= PersonaSpec.min_distance
        if len(chosen) < n and apart.all():
            chosen.append(int(i))
    side, views = picture_side(vlm.processor), {}
    draws: dict[str, Callable] = {
        "image": lambda vector, count, rng, split: draw_many(vector, count, rng, split, side),
        "text": describe_many,
    }
    for s, (split, count) in enumerate(zip(SPLITS, (train_views, test_views), strict=True)):
        for m, modality in enumerate(MODALITIES):
            views[split, modality] = [
                View(i, figures.names[i], modality, split, k, content)
                for i in chosen
                for k, content in enumerate(
                    draws[modality](figures.vectors[i], count, np.random.default_rng([seed, 31, i, s, m]), split)
                )
            ]
    return _people(vlm, views, question)


def _people(
    vlm: VLM, views: dict[tuple[str, str], list[View]], question: str, wanted: Sequence[int] | None = None
) -> People:
    everywhere = set.intersection(*({view.persona for view in part} for part in views.values()))
    numbers = sorted(everywhere if wanted is None else everywhere & set(wanted))
    if len(numbers) < 2:
        raise ValueError(f"{len(numbers)} people have views of both splits and modalities; at least 2 are needed")
    place = {number: i for i, number in enumerate(numbers)}
    views = {key: [view for view in part if view.persona in place] for key, part in views.items()}
    name = {view.persona: view.name for view in views["test", "text"]}
    names = tuple(name[number] for number in numbers)
    return People(
        numbers=tuple(numbers),
        names=names,
        answers=tuple(answer_tokens(vlm, names)),
        examples={key: encode(vlm, part, question) for key, part in views.items()},
        who={key: np.array([place[view.persona] for view in part]) for key, part in views.items()},
    )
