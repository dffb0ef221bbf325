"""Whom the questions are about: names, and views of both modalities that are encoded once for all models compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

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

# Views of each person and modality. The probe learns from training views; test views are for everything else, and few
# will do: intervals come from the people, not from their views.
VIEWS = {"train": 4, "test": 2}


@dataclass(frozen=True)
class People:
    """People and their encoded views, the same for every model on one base (its vision tower is frozen).

    A person is known by the place in `numbers`. `examples[split, modality]` are encoded views, and
    `who[split, modality]` says whom each shows `[views]`. Everybody has views of both splits and modalities.
    """

    numbers: tuple[int, ...]  # of persona or public figure, as records have it
    answers: list[torch.Tensor]  # tokens of each name, end of turn included
    examples: dict[tuple[str, str], list[Example]]
    who: dict[tuple[str, str], np.ndarray]

    def __len__(self) -> int:
        """Number of people."""
        return len(self.numbers)

    def first(self, split: str, modality: str) -> list[Example]:
        """Everybody's first view."""
        return [self.examples[split, modality][i] for i in np.unique(self.who[split, modality], return_index=True)[1]]

    def mean(self, values: np.ndarray, split: str, modality: str) -> np.ndarray:
        """Values `[views]` averaged over each person's views `[people]`."""
        who = self.who[split, modality]
        return np.bincount(who, np.asarray(values, float)) / np.bincount(who)


def study_people(vlm: VLM, dataset: DatasetDict) -> People:
    """The personas of a study's dataset, with the first views of each split.

    People whom a user's own folder shows in one modality or split alone are left out. Raises ValueError when fewer
    than two remain.
    """
    return _people(vlm, {(s, m): to_views(dataset, s, m, VIEWS[s]) for s, m in product(SPLITS, MODALITIES)})


def public_figure_people(vlm: VLM, figures: PublicFigures, n: int = 100) -> People:
    """The first `n` public figures whom pretraining named in both modalities, with views drawn anew.

    They are chosen as far apart as study personas are (`PersonaSpec.min_distance` axes), so that telling them apart
    is not harder. Pretraining drew from the nuisance of both splits; the views here are new draws all the same.
    Raises ValueError when fewer than two such public figures exist.
    """
    chosen: list[int] = []
    for i in figures.where("both"):
        apart = distances(figures.vectors[[i]], figures.vectors[chosen]) >= PersonaSpec.min_distance
        if len(chosen) < n and apart.all():
            chosen.append(int(i))
    side, views = picture_side(vlm.processor), {}
    for (s, split), (m, modality) in product(enumerate(SPLITS), enumerate(MODALITIES)):
        views[split, modality] = part = []
        for i in chosen:
            given = figures.vectors[i], VIEWS[split], np.random.default_rng([0, 31, i, s, m]), split
            drawn = draw_many(*given, side) if modality == "image" else describe_many(*given)
            part += [View(i, figures.names[i], modality, split, k, content) for k, content in enumerate(drawn)]
    return _people(vlm, views)


def _people(vlm: VLM, views: dict[tuple[str, str], list[View]]) -> People:
    numbers = sorted(set.intersection(*({view.persona for view in part} for part in views.values())))
    if len(numbers) < 2:
        raise ValueError(f"{len(numbers)} people have views of both splits and modalities; at least 2 are needed")
    place = {number: i for i, number in enumerate(numbers)}
    views = {key: [view for view in part if view.persona in place] for key, part in views.items()}
    names = {view.persona: view.name for view in views["test", "text"]}
    return People(
        numbers=tuple(numbers),
        answers=answer_tokens(vlm, [names[number] for number in numbers]),
        examples={key: encode(vlm, part) for key, part in views.items()},
        who={key: np.array([place[view.persona] for view in part]) for key, part in views.items()},
    )
