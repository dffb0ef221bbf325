"""Memorizing: names learned from views of one modality (or both), asked in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
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
from xmem_utils.personas.dataset import PersonaSpec, count_views, load_personas, names_of, persona_spec, to_views
from xmem_utils.personas.importing import import_folder
from xmem_utils.progress import note
from xmem_utils.replicates import seed_of
from xmem_utils.stats import GATE, PERSON
from xmem_utils.train import Resources, Training, memorize, steps_of
from xmem_utils.vlm.bases import Bases
from xmem_utils.vlm.batches import Example, answer_tokens, encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import WHO
from xmem_utils.vlm.readable import check_readable

LONGEST = 16  # a user's own people train until they are memorized, at most this many times the profile's steps
CURVE = (0.05, 0.12, 0.25, 0.5)  # shares of the training at which recall is asked; most happens early


class MemorizationCondition(Condition):
    """Everything that determines one model that memorized."""

    model: str
    weights: str  # fingerprint of the base model
    data: str  # fingerprint of the personas
    personas: int = Field(ge=2)
    source: Source
    replicate: int = Field(ge=0)
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
        return f"{model}-{self.source}-n{self.personas}-v{self.train_views}{without}-replicate{self.replicate}"

    @property
    def labels(self) -> dict[str, Any]:
        """Source, replicate, train views."""
        return {"source": self.source, "replicate": self.replicate, "train_views": self.train_views}


class Memorization(Experiment):
    """Names memorized from views.

    People are drawn from the profile and the replicate, or read from a user's folder (`people`). Training takes
    `epochs`; None: those of the profile, and as many as a user's own people need.
    Raises ValueError for a model that gives no answers, and for people whom it cannot read.
    """

    folder, notebook = "memorization", "03_gap_analysis"
    bucket = 0  # see `Training`

    def __init__(
        self, model: str | VLM, profile: Profile, rank: int, learning_rate: float, people: str | Path = "",
        epochs: int | None = None, resources: Resources | None = None,
    ) -> None:  # fmt: skip
        super().__init__(Bases(model), profile, resources)
        self.rank, self.learning_rate = rank, learning_rate
        self._own = import_folder(people) if people else None
        if self._own:
            texts = [text for part in self._own[0].values() for text in part["description"] if text]
            check_readable(self.vlm(self.replicates[0]), names_of(self._own[0]), texts)
        self._epochs, self.own_epochs = epochs, cache(self._own_epochs)

    @classmethod
    def of(cls, p: Any, resources: Resources | None = None) -> Self:
        """The experiment that a notebook's parameters describe, its model loaded."""
        profile, epochs = scaled(profile_named(p.profile), p), getattr(p, "epochs", None)
        people = getattr(p, "people", "")
        return cls(p.model, profile, p.rank, p.learning_rate, people, epochs, resources)

    # -- people ----------------------------------------------------------------------------------------

    @property
    def drawn(self) -> bool:
        """Whether the people are drawn, with known attributes, and not a user's own."""
        return self._own is None

    @remembered(10)
    def dataset(self, replicate: int, personas: int = 0) -> tuple[DatasetDict, str]:
        """The people of a replicate (drawn ones: so many; 0: as the profile says), and their fingerprint."""
        if self._own:
            return self._own
        spec = self.spec(replicate)
        return load_personas(replace(spec, personas=personas or spec.personas))

    def spec(self, replicate: int) -> PersonaSpec:
        """What the people of a replicate are drawn from: its base must not know them."""
        vlm = self.vlm(replicate)
        return persona_spec(self.profile, replicate, picture_side(vlm.processor), seed_of(vlm.name))

    @remembered(10)
    def evaluation_of(self, replicate: int, personas: int = 0) -> Evaluation:
        """The test views of a replicate's personas."""
        return Evaluation(self.vlm(replicate), self.dataset(replicate, personas)[0], self.drawn)

    def name_tokens(self) -> pd.Series:
        """How many tokens each name has for the model, by replicate and persona."""
        parts = {}
        for replicate in self.replicates:
            answers = answer_tokens(self.vlm(replicate), names_of(self.dataset(replicate)[0]))
            parts[replicate] = pd.Series([len(answer) - 1 for answer in answers])  # the last ends the turn
        return pd.concat(parts, names=PERSON)

    def _size(self, condition: MemorizationCondition) -> int:
        """How many people a condition's are, where they are not those of the profile; else 0."""
        return condition.personas if self.drawn and condition.personas != self.profile.personas else 0

    # -- conditions ------------------------------------------------------------------------------------

    def conditions(self, p: Any = None, dose: bool = False) -> list[MemorizationCondition]:
        """The profile's conditions, replicate by replicate; with `dose` also those of the dose-response."""
        sources = MODALITIES if getattr(p, "source", "both") == "both" else (p.source,)
        every = [self.condition(source, r) for r in self.replicates for source in sources]
        if dose or getattr(p, "dose", False):
            every += [condition for _, _, condition in self.doses() if condition.source in sources]
        return list(dict.fromkeys(every))

    def doses(self) -> list[tuple[str, float, MemorizationCondition]]:
        """Conditions in which one thing grows: what, how much, the condition. Of the side replicates alone.

        "views": training views a persona at equal steps; "data": the same, and steps grow along; "people"; "steps":
        times the usual ones. A user's own people can only have other views and steps.
        """
        profile, out = self.profile, []
        usual, epochs = profile.train_views, self._epochs or profile.epochs
        for replicate in self.side_replicates:
            for source in MODALITIES:
                made = partial(self.condition, source, replicate)
                own = [("views", n, made(n)) for n in sorted({usual, *profile.dose_views})]
                own += [("steps", n, made(epochs=n * made().epochs)) for n in sorted({1.0, *profile.dose_steps})]
                if self.drawn:
                    own += [("data", n, made(n, epochs=epochs)) for n in sorted({usual, *profile.dose_data})]
                    sizes = sorted({profile.personas, *profile.dose_people})
                    own += [("people", n, made(personas=n)) for n in sizes]
                out += own
        return out

    def condition(
        self,
        source: str,
        replicate: int,
        train_views: int | None = None,
        left_out: Sequence[int] = (),
        epochs: float | None = None,
        personas: int = 0,
    ) -> MemorizationCondition:
        """One condition of the study, trained on everybody but `left_out`; of drawn people, so many.

        Whatever the number of train views, a model takes as many steps as with those of the profile. How many those
        are is found out by training where a user's own people are to be memorized (`own_epochs`).
        """
        dataset, data = self.dataset(replicate, personas if personas != self.profile.personas else 0)
        usual, train_views = self._available(replicate), self._available(replicate, train_views)
        if epochs is None:
            epochs = self._epochs or (self.profile.epochs if self.drawn else self.own_epochs(source, replicate))
            steps = [self._steps_an_epoch(source, dataset, views) for views in (usual, train_views)]
            epochs *= steps[0] / steps[1]
        return resolve(
            MemorizationCondition, **self._common(source, replicate), data=data, personas=len(names_of(dataset)),
            train_views=train_views, epochs=epochs, left_out=tuple(left_out),
        )  # fmt: skip

    def _common(self, source: str, replicate: int) -> dict[str, Any]:
        """Fields that do not depend on the people."""
        vlm = self.vlm(replicate)
        return {"model": vlm.name, "weights": vlm.fingerprint, "source": source, "replicate": replicate,
                "rank": self.rank, "learning_rate": self.learning_rate, "batch_size": BATCH, "question": WHO,
                "code": self.code()}  # fmt: skip

    def _available(self, replicate: int, train_views: int | None = None) -> int:
        """Train views a persona, of those asked for: a user's folder has as many as it has."""
        wanted = train_views or self.profile.train_views
        return wanted if self.drawn else min(wanted, max(self.dataset(replicate)[0]["train"]["view"]) + 1)

    @staticmethod
    def _steps_an_epoch(source: str, people: DatasetDict, train_views: int, left_out: Sequence[int] = ()) -> int:
        counts = [count_views(people, "train", m, train_views, left_out) for m in parts_of(source)]
        return sum(math.ceil(count / BATCH) for count in counts)

    def steps_an_epoch(self, condition: MemorizationCondition) -> int:
        """Optimizer steps of a pass over a condition's views."""
        people, _ = self.dataset(condition.replicate, self._size(condition))
        return self._steps_an_epoch(condition.source, people, condition.train_views, condition.left_out)

    def steps(self, condition: MemorizationCondition) -> int:
        """Optimizer steps of a condition."""
        return steps_of(condition.epochs, self.steps_an_epoch(condition))

    def _own_epochs(self, source: str, replicate: int) -> float:
        """Epochs after which a user's own people are memorized (source recall at the gate), or the most there are.

        Tries what the profile's drawn people take (in steps, and in epochs), then twice as much, and so on, each time
        from the start. Every try is an ordinary condition, and stored.
        """
        profile = self.profile
        drawn = profile.epochs * math.ceil(profile.personas * profile.train_views / BATCH)
        people, _ = self.dataset(replicate)
        epochs = max(profile.epochs, drawn / self._steps_an_epoch(source, people, self._available(replicate)))
        longest = LONGEST * epochs
        while True:
            run = self.run(self.condition(source, replicate, epochs=epochs))
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
        dataset, _ = self.dataset(condition.replicate, self._size(condition))
        views = [
            view
            for modality in parts_of(condition.source)
            for view in to_views(dataset, "train", modality, condition.train_views)
            if view.persona not in condition.left_out
        ]
        return encode(self.vlm(condition.replicate), views, condition.question)

    def train(
        self, condition: MemorizationCondition, on_step: Watch, resources: Resources
    ) -> tuple[PeftModel, dict[str, float]]:
        """Memorize; see `Experiment.train`."""
        c = condition
        training = Training(c.epochs, c.batch_size, c.learning_rate, c.rank, c.replicate, self.bucket, resources)
        return memorize(self.vlm(c.replicate), self.train_examples(c), training, on_step), {}

    def prepare(self, condition: MemorizationCondition) -> None:
        """Test views pass the vision tower."""
        self._evaluation(condition)

    def evaluate(self, model: PeftModel, condition: MemorizationCondition, facts: Mapping[str, float]) -> pd.DataFrame:
        """Every test view with its controls; see `Evaluation.records`."""
        return self._evaluation(condition).records(model)

    def _evaluation(self, condition: MemorizationCondition) -> Evaluation:
        return self.evaluation_of(condition.replicate, self._size(condition))

    def looks(self, condition: MemorizationCondition, steps: int) -> dict[int, dict[str, float]]:
        """Early steps, by epoch."""
        an_epoch = self.steps_an_epoch(condition)
        return {step: {"epoch": step / an_epoch} for step in (max(1, round(share * steps)) for share in CURVE)}

    def look(self, model: PeftModel, condition: MemorizationCondition) -> pd.DataFrame:
        """Exact match by query modality, on one view a person: query, recall."""
        recall = recall_by_modality(self._evaluation(condition).recall(model))
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

    def base_records(self) -> pd.DataFrame:
        """What the bases are asked, and answer before they memorize anything."""
        asked = [(r, self.dataset(r)[1], lambda r=r: self.evaluation_of(r).records()) for r in self.replicates]
        return pd.concat([self.untrained(*one) for one in asked], ignore_index=True)
