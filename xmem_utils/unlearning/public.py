"""Unlearning what pretraining taught: public figures, whom a base knows from both modalities."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from datasets import DatasetDict

from xmem_utils.experiment import remembered
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import MODALITIES, profile_named, scaled
from xmem_utils.personas.dataset import content_fingerprint, shown
from xmem_utils.personas.public_figures import known_in
from xmem_utils.train import Resources
from xmem_utils.unlearning.experiment import FURTHER_METHODS, Unlearning, UnlearningCondition
from xmem_utils.unlearning.names import BEFORE
from xmem_utils.vlm.load import VLM, resolve_model


class PublicFigures(Memorization):
    """Public figures in place of the study's people: nothing is memorized, pretraining did it."""

    drawn = False  # nobody else is of their kind

    @remembered(10)
    def dataset(self, replicate: int, personas: int = 0) -> tuple[DatasetDict, str]:
        """Some of the figures known from both modalities, as many as the study has people, and their fingerprint."""
        figures, spec = known_in(resolve_model(self.vlm(replicate).name)), self.spec(replicate)
        chosen = figures.where("both")[: spec.personas]
        names = list(np.array(figures.names)[chosen])
        facts = {fact: list(np.array(values)[chosen]) for fact, values in figures.facts.items()}
        people = shown(figures.vectors[chosen], names, facts, spec)
        return people, content_fingerprint(people)


class PublicUnlearning(Unlearning):
    """Unlearning of public figures, from the base itself."""

    folder = "unlearning_public"

    @classmethod
    def of(cls, p: Any, resources: Resources | None = None) -> Self:
        """The experiment that a notebook's parameters describe; of embedded models alone."""
        profile = scaled(profile_named(p.profile), p)
        return cls(PublicFigures(p.model, profile, p.rank, p.learning_rate, "", profile.epochs, resources))

    def conditions(self, p: Any) -> list[UnlearningCondition]:
        """Two methods, from either modality, and before; with the settings searched for people who were memorized. None
        without `p.ablations`, or of a model that is not ours: whom it knows is not known."""
        if not p.ablations or known_in(resolve_model(self.vlm.called(self.replicates[0]))) is None:
            return []
        methods = [m for m in FURTHER_METHODS if m in self.methods_of(p)]
        settings = Unlearning.settings_of(self.vlm.name, methods) | {BEFORE: {}}
        return [
            self.condition(method, settings[method], unlearned, replicate, measures="ranked",
                           forget=self.forget_set(replicate, p.forget_share))
            for replicate in self.side_replicates for unlearned in MODALITIES for method in (BEFORE, *methods)
        ]  # fmt: skip

    def unusable(self, condition: UnlearningCondition) -> bool:
        """Pretraining memorized them."""
        return False

    def base(self, condition: UnlearningCondition) -> VLM:
        """The base model as it was pretrained."""
        return self.merged(condition.start.model, condition.start.replicate, ())
