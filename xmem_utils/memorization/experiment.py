"""Memorizing: names learned from views of one modality (or both), asked in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import pandas as pd
from datasets import DatasetDict
from peft import PeftModel
from pydantic import Field

from xmem_utils import store
from xmem_utils.experiment import BATCH, Condition, Experiment, Watch, remembered
from xmem_utils.memorization.evaluation import Evaluation, recall_by_modality
from xmem_utils.params import MODALITIES, Profile, Source, parts_of, profile_named, resolve, scaled
from xmem_utils.personas.dataset import count_views, load_personas, names_of, persona_spec, to_views
from xmem_utils.personas.importing import import_folder
from xmem_utils.progress import note
from xmem_utils.stats import GATE
from xmem_utils.train import Resources, Training, memorize, steps_of
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.load import VLM, load_vlm
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import WHO
from xmem_utils.vlm.readable import check_readable

LONGEST = 8  # a user's own people train until they are memorized, at most this many times the profile's steps
CURVE = (0.05, 0.12, 0.25, 0.5)  # shares of the training at which recall is asked; most happens early


class MemorizationCondition(Condition):
    """Everything that determines one model that memorized."""

    model: str = "xmem-tiny-s"
    weights: str  # fingerprint of the base model
    data: str  # fingerprint of the personas
    personas: int = Field(ge=2)
    source: Source
    seed: int = Field(ge=0)
    train_views: int = Field(ge=1)
    epochs: float = Field(gt=0)  # passes over the training views; the last may end early
    rank: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    question: str
    left_out: tuple[int, ...] = ()  # personas nobody trains on: the retain-only model of unlearning

    @property
    def name(self) -> str:
        """A readable folder name."""
        model, without = Path(self.model).name, f"-without{len(self.left_out)}" if self.left_out else ""
        return f"{model}-{self.source}-n{self.personas}-v{self.train_views}{without}-seed{self.seed}"

    @property
    def labels(self) -> dict[str, Any]:
        """Source, seed, train views."""
        return {"source": self.source, "seed": self.seed, "train_views": self.train_views}


class Memorization(Experiment):
    """Names memorized from views.

    People are drawn from the profile and the seed, or read from a user's folder (`people`). Training takes `epochs`; 0:
    those of the profile, and as many as a user's own people need.
    Raises ValueError for a model that gives no answers, and for people whom it cannot read.
    """

    folder, notebook = "memorization", "03_gap_analysis"
    bucket = 0  # see `Training`

    def __init__(
        self, vlm: VLM, profile: Profile, rank: int, learning_rate: float, people: str | Path = "", epochs: int = 0,
        resources: Resources | None = None,
    ) -> None:  # fmt: skip
        super().__init__(vlm, profile, resources)
        self.rank, self.learning_rate = rank, learning_rate
        self._own = import_folder(people) if people else None
        if self._own:
            texts = [text for part in self._own[0].values() for text in part["description"] if text]
            check_readable(vlm, names_of(self._own[0]), texts)
        self._epochs, self.own_epochs = epochs, cache(self._own_epochs)

    @classmethod
    def of(cls, p: Any, resources: Resources | None = None) -> Self:
        """The experiment that a notebook's parameters describe, its model loaded."""
        profile, epochs = scaled(profile_named(p.profile), p), getattr(p, "epochs", 0)
        people = getattr(p, "people", "")
        return cls(load_vlm(p.model), profile, p.rank, p.learning_rate, people, epochs, resources)

    # -- people ----------------------------------------------------------------------------------------

    @property
    def drawn(self) -> bool:
        """Whether the people are drawn, with known attributes, and not a user's own."""
        return self._own is None

    @remembered(10)
    def dataset(self, seed: int) -> tuple[DatasetDict, str]:
        """The people of a seed, and their fingerprint."""
        return self._own or load_personas(persona_spec(self.profile, seed, picture_side(self.vlm.processor)))

    @remembered(10)
    def evaluation_of(self, seed: int) -> Evaluation:
        """The test views of a seed's personas."""
        return Evaluation(self.vlm, self.dataset(seed)[0])

    # -- conditions ------------------------------------------------------------------------------------

    def conditions(self, p: Any = None, dose: bool = False) -> list[MemorizationCondition]:
        """The profile's conditions, seed by seed; with `dose` also those of the dose-response."""
        sources = MODALITIES if getattr(p, "source", "both") == "both" else (p.source,)
        doses = {self.profile.train_views, *(self.profile.dose_views if dose or getattr(p, "dose", False) else ())}
        every = [self.condition(s, seed, n) for seed in self.profile.seeds for s in sources for n in sorted(doses)]
        return list(dict.fromkeys(every))

    def condition(
        self,
        source: str,
        seed: int,
        train_views: int | None = None,
        left_out: Sequence[int] = (),
        epochs: float | None = None,
    ) -> MemorizationCondition:
        """One condition of the study, trained on everybody but `left_out`.

        Whatever the number of train views, a model takes as many steps as with those of the profile. How many those
        are is found out by training where a user's own people are to be memorized (`own_epochs`).
        """
        dataset, data = self.dataset(seed)
        usual, train_views = self._available(seed), self._available(seed, train_views)
        if epochs is None:
            epochs = self._epochs or (self.profile.epochs if self.drawn else self.own_epochs(source, seed))
            epochs *= self._steps_an_epoch(source, seed, usual) / self._steps_an_epoch(source, seed, train_views)
        return resolve(
            MemorizationCondition, **self._common(source, seed), data=data, personas=len(names_of(dataset)),
            train_views=train_views, epochs=epochs, left_out=tuple(left_out),
        )  # fmt: skip

    def _common(self, source: str, seed: int) -> dict[str, Any]:
        """Fields that do not depend on the people."""
        return {"model": self.vlm.name, "weights": self.vlm.fingerprint, "source": source, "seed": seed,
                "rank": self.rank, "learning_rate": self.learning_rate, "batch_size": BATCH, "question": WHO,
                "code": self.code()}  # fmt: skip

    def _available(self, seed: int, train_views: int | None = None) -> int:
        """Train views a persona, of those asked for: a user's folder has as many as it has."""
        wanted = train_views or self.profile.train_views
        return wanted if self.drawn else min(wanted, max(self.dataset(seed)[0]["train"]["view"]) + 1)

    def _steps_an_epoch(self, source: str, seed: int, train_views: int, left_out: Sequence[int] = ()) -> int:
        counts = [count_views(self.dataset(seed)[0], "train", m, train_views, left_out) for m in parts_of(source)]
        return sum(math.ceil(count / BATCH) for count in counts)

    def steps_an_epoch(self, condition: MemorizationCondition) -> int:
        """Optimizer steps of a pass over a condition's views."""
        return self._steps_an_epoch(condition.source, condition.seed, condition.train_views, condition.left_out)

    def steps(self, condition: MemorizationCondition) -> int:
        """Optimizer steps of a condition."""
        return steps_of(condition.epochs, self.steps_an_epoch(condition))

    def _own_epochs(self, source: str, seed: int) -> float:
        """Epochs after which a user's own people are memorized (source recall at the gate), or the most there are.

        Tries what the profile's drawn people take (in steps, and in epochs), then twice as much, and so on, each time
        from the start. Every try is an ordinary condition, and stored.
        """
        profile = self.profile
        drawn = profile.epochs * math.ceil(profile.personas * profile.train_views / BATCH)
        epochs = max(profile.epochs, drawn / self._steps_an_epoch(source, seed, self._available(seed)))
        longest = LONGEST * epochs
        while True:
            run = self.run(self.condition(source, seed, epochs=epochs))
            recall = min(recall_by_modality(run.records)[m] for m in parts_of(source))
            if epochs >= longest or recall >= GATE:
                return epochs
            note(
                f"from {source}: recall {recall:.2f} after {self.steps(run.condition)} steps, again with twice as many"
            )
            epochs *= 2

    # -- training and evaluation -----------------------------------------------------------------------

    def train_examples(self, condition: MemorizationCondition) -> list[Example]:
        """What a condition trains on."""
        dataset, _ = self.dataset(condition.seed)
        views = [
            view
            for modality in parts_of(condition.source)
            for view in to_views(dataset, "train", modality, condition.train_views)
            if view.persona not in condition.left_out
        ]
        return encode(self.vlm, views, condition.question)

    def train(
        self, condition: MemorizationCondition, on_step: Watch, resources: Resources
    ) -> tuple[PeftModel, dict[str, float]]:
        """Memorize; see `Experiment.train`."""
        c = condition
        training = Training(c.epochs, c.batch_size, c.learning_rate, c.rank, c.seed, self.bucket, resources)
        return memorize(self.vlm, self.train_examples(c), training, on_step), {}

    def prepare(self, condition: MemorizationCondition) -> None:
        """Test views pass the vision tower."""
        self.evaluation_of(condition.seed)

    def evaluate(self, model: PeftModel, condition: MemorizationCondition, facts: Mapping[str, float]) -> pd.DataFrame:
        """Every test view with its controls; see `Evaluation.records`."""
        return self.evaluation_of(condition.seed).records(model)

    def looks(self, condition: MemorizationCondition, steps: int) -> dict[int, dict[str, float]]:
        """Early steps, by epoch."""
        an_epoch = self.steps_an_epoch(condition)
        return {step: {"epoch": step / an_epoch} for step in (max(1, round(share * steps)) for share in CURVE)}

    def look(self, model: PeftModel, condition: MemorizationCondition) -> pd.DataFrame:
        """Exact match by query modality, on one view a person: query, recall."""
        recall = recall_by_modality(self.evaluation_of(condition.seed).recall(model, views=1))
        return pd.DataFrame({"query": list(recall), "recall": list(recall.values())})

    def curve(self, run: store.Run) -> pd.DataFrame:
        """Recall along the training, the end included: query, recall, epoch."""
        c, recall = run.condition, recall_by_modality(run.records)
        end = self.steps(c) / self.steps_an_epoch(c)
        last = [{"query": asked, "recall": value, "epoch": end} for asked, value in recall.items()]
        return pd.concat([run.curve, pd.DataFrame(last)], ignore_index=True)

    def doing(self, condition: MemorizationCondition) -> str:
        """What a training does, for its bar."""
        return f"memorizing from {condition.source}"

    # -- before memorizing -----------------------------------------------------------------------------

    def base_records(self, seeds: Sequence[int], controls: bool = True) -> pd.DataFrame:
        """What the model is asked and answers before it memorizes anything, one set of personas a seed; without
        `controls`, exact match alone."""
        evaluations = {seed: self.evaluation_of(seed) for seed in seeds}
        parts = [(e.records() if controls else e.recall()).assign(seed=seed) for seed, e in evaluations.items()]
        return pd.concat(parts, ignore_index=True)
