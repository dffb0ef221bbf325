"""From a condition to its run: personas, memorizing, recall in both modalities, controls, the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict
from peft import PeftModel
from PIL import Image

from xmem_utils import fingerprint, paths, store
from xmem_utils.checkpoint import WholeAdapter
from xmem_utils.params import MODALITIES, Condition, Profile, parts_of, resolve
from xmem_utils.personas.dataset import PersonaSpec, count_views, load_personas, names_of, to_views
from xmem_utils.personas.importing import import_folder
from xmem_utils.personas.views import View
from xmem_utils.processes import is_main
from xmem_utils.progress import note, progress
from xmem_utils.score import exact_match, ranked, ranks, recall_of_all
from xmem_utils.train import Training, memorize, steps_an_epoch, steps_of
from xmem_utils.vlm.adapters import for_evaluation
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import WHO
from xmem_utils.vlm.readable import check_answers, check_readable

GATE = 0.9  # source recall below which a run counts as "not memorized"
BATCH = 32
LONGEST = 8  # a user's own people train until they are memorized, at most this many times the profile's steps
CURVE = (0.05, 0.12, 0.25, 0.5)  # shares of the training at which recall is asked; most happens early


def persona_spec(profile: Profile, seed: int, size: int = 64) -> PersonaSpec:
    """The personas of a profile and seed, drawn at `size` px; enough train views for its dose-response."""
    return PersonaSpec(
        personas=profile.personas,
        seed=seed,
        train_views=max((profile.train_views, *profile.dose_views)),
        test_views=profile.test_views,
        size=size,
    )


class Exam:
    """The test views of one dataset, tokenised once, with their controls."""

    def __init__(self, vlm: VLM, dataset: DatasetDict, question: str = WHO) -> None:
        self.vlm = vlm
        self.names = names_of(dataset)
        self.views: dict[str, list[View]] = {m: to_views(dataset, "test", m) for m in MODALITIES}
        self.examples = {m: encode(vlm, views, question) for m, views in self.views.items()}
        first = self.views["image"][0]
        blank = replace(first, content=Image.new("RGB", first.content.size, (127, 127, 127)))
        self.blank = encode(vlm, [blank], question)

    def curve_point(self, model: PeftModel | None = None) -> dict[str, float]:
        """Exact match by asked modality, on one view a person."""
        recall = {}
        with for_evaluation(model):
            for modality, examples in self.examples.items():
                first = [e for e, view in zip(examples, self.views[modality], strict=True) if view.index == 0]
                recall[modality] = float(exact_match(self.vlm, first, model).exact.mean())
        return recall

    def records(self, model: PeftModel | None = None) -> pd.DataFrame:
        """One row a view and probe: persona, asked, probe, view, exact, logprob, rank among all names.

        Probe "shuffled views" asks for the name of the persona before with the same view, so what it
        leaves is not read off the view (it has no rank); "blank image" asks for every name with a grey picture.
        """
        parts = []
        with for_evaluation(model):
            for modality, examples in self.examples.items():
                views = pd.DataFrame({"persona": v.persona, "view": v.index} for v in self.views[modality])
                asked = views["persona"].to_numpy()
                before = previous_persona(asked)
                found = ranked(self.vlm, examples, self.names, np.stack([asked, before], 1), model)
                own = {"probe": "view", "exact": found.exact[:, 0], "logprob": found.logprob[:, 0], "rank": found.rank}
                other = {"probe": "shuffled views", "exact": found.exact[:, 1], "logprob": found.logprob[:, 1]}
                parts.append(views.assign(asked=modality, **own))
                parts.append(views.assign(persona=before, asked=modality, **other).sort_values(["persona", "view"]))
            nothing = recall_of_all(self.vlm, self.blank, self.names, model)
            asked = np.array([v.persona for v in self.views["image"]])
            blank = {"persona": asked, "asked": "image", "probe": "blank image"}
            blank |= {"view": [v.index for v in self.views["image"]], "exact": nothing.exact[0, asked]}
            blank |= {"logprob": nothing.logprob[0, asked], "rank": ranks(nothing.logprob.repeat(len(asked), 0), asked)}
            parts.append(pd.DataFrame(blank))
        columns = ["persona", "asked", "probe", "view", "exact", "logprob", "rank"]
        return pd.concat(parts, ignore_index=True)[columns]


def previous_persona(asked: np.ndarray) -> np.ndarray:
    """For each view, of persona `asked[i]` `[views]`, the persona before, in a circle."""
    people = np.unique(asked)
    return np.roll(people, 1)[np.searchsorted(people, asked)]


def plain_recall(records: pd.DataFrame) -> dict[str, float]:
    """Exact match by asked modality, controls left out."""
    return records[records["probe"] == "view"].groupby("asked")["exact"].mean().to_dict()


class Study:
    """Runs conditions on one model; what the store has is not computed again.

    People are drawn from the profile and the seed, or read from a user's folder (`people`). Training takes `epochs`; 0:
    those of the profile, and as many as a user's own people need. `accumulation` and `gradient_checkpointing` save
    memory, and `checkpoint` lets an interrupted training go on; none of them is part of a condition. The processes of
    one `accelerate launch` make the same study and the same calls: they train together, and each evaluates all views,
    since a sharded model needs everybody in every pass.

    Raises ValueError for a model that gives no answers, and for people whom it cannot read.
    """

    def __init__(
        self,
        vlm: VLM,
        profile: Profile,
        rank: int,
        learning_rate: float,
        people: str | Path = "",
        accumulation: int = 1,
        gradient_checkpointing: bool = False,
        checkpoint: bool = False,
        epochs: int = 0,
    ) -> None:
        check_answers(vlm)
        self.vlm, self.profile = vlm, profile
        self._memory = {"accumulation": accumulation, "gradient_checkpointing": gradient_checkpointing}
        self._checkpoint = checkpoint
        self.rank, self.learning_rate = rank, learning_rate
        self._own = import_folder(people) if people else None
        if self._own:
            texts = [text for part in self._own[0].values() for text in part["description"] if text]
            check_readable(vlm, names_of(self._own[0]), texts)
        self._epochs, self.own_epochs = epochs, cache(self._own_epochs)
        self._datasets: dict[int, tuple[DatasetDict, str]] = {}
        self._exams: dict[int, Exam] = {}

    @property
    def drawn(self) -> bool:
        """Whether the people are drawn, with known attributes, and not a user's own."""
        return self._own is None

    def dataset(self, seed: int) -> tuple[DatasetDict, str]:
        """The people of a seed, and their fingerprint."""
        if self._own:
            return self._own
        if seed not in self._datasets:
            side = picture_side(self.vlm.processor)
            self._datasets[seed] = load_personas(persona_spec(self.profile, seed, side))
        return self._datasets[seed]

    def exam(self, seed: int) -> Exam:
        """The test views of a seed's personas."""
        if seed not in self._exams:
            self._exams[seed] = Exam(self.vlm, self.dataset(seed)[0])
        return self._exams[seed]

    def condition(
        self,
        source: str,
        seed: int,
        train_views: int | None = None,
        left_out: Sequence[int] = (),
        epochs: float | None = None,
    ) -> Condition:
        """One condition of the study, trained on everybody but `left_out`.

        Whatever the number of train views, a model takes as many steps as with those of the profile. How many those
        are is found out by training where a user's own people are to be memorized (`own_epochs`).
        """
        dataset, people = self.dataset(seed)
        usual, train_views = self._available(seed), self._available(seed, train_views)
        if epochs is None:
            epochs = self._epochs or (self.own_epochs(source, seed) if self._own else self.profile.epochs)
            epochs *= self._steps_an_epoch(source, seed, usual) / self._steps_an_epoch(source, seed, train_views)
        return resolve(
            Condition,
            model=self.vlm.name,
            weights=self.vlm.fingerprint,
            data=people,
            personas=len(names_of(dataset)),
            source=source,
            seed=seed,
            train_views=train_views,
            epochs=epochs,
            rank=self.rank,
            learning_rate=self.learning_rate,
            batch_size=BATCH,
            question=WHO,
            left_out=tuple(left_out),
            code=fingerprint.fingerprint(),
        )

    def _available(self, seed: int, train_views: int | None = None) -> int:
        """Train views a persona, of those asked for: a user's folder has as many as it has."""
        wanted = train_views or self.profile.train_views
        return min(wanted, max(self.dataset(seed)[0]["train"]["view"]) + 1) if self._own else wanted

    def _steps_an_epoch(self, source: str, seed: int, train_views: int) -> int:
        counts = [count_views(self.dataset(seed)[0], "train", m, train_views) for m in parts_of(source)]
        return sum(math.ceil(count / BATCH) for count in counts)

    def steps(self, condition: Condition) -> int:
        """Optimizer steps of a condition that leaves nobody out."""
        an_epoch = self._steps_an_epoch(condition.source, condition.seed, condition.train_views)
        return steps_of(condition.epochs, an_epoch)

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
            recall = min(plain_recall(run.records)[m] for m in parts_of(source))
            if epochs >= longest or recall >= GATE:
                return epochs
            note(
                f"from {source}: recall {recall:.2f} after {self.steps(run.condition)} steps, again with twice as many"
            )
            epochs *= 2

    def train_examples(self, condition: Condition) -> list[Example]:
        """What a condition trains on."""
        dataset, _ = self.dataset(condition.seed)
        views = [
            view
            for modality in parts_of(condition.source)
            for view in to_views(dataset, "train", modality, condition.train_views)
            if view.persona not in condition.left_out
        ]
        return encode(self.vlm, views, condition.question)

    def conditions(self, sources: Sequence[str] = MODALITIES, dose: bool = False) -> list[Condition]:
        """The profile's conditions, seed by seed; with `dose` also those of the dose-response."""
        doses = {self.profile.train_views, *(self.profile.dose_views if dose else ())}
        every = [self.condition(s, seed, n) for seed in self.profile.seeds for s in sources for n in sorted(doses)]
        return list(dict.fromkeys(every))

    def run_all(self, conditions: Sequence[Condition]) -> list[store.Run]:
        """The runs of some conditions, with a progress bar over them, and one over each training."""
        return list(progress(map(self.run, conditions), len(conditions), "conditions"))

    def base_records(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Records of the model before it memorizes anything, one set of personas a seed."""
        return pd.concat([self.exam(seed).records().assign(seed=seed) for seed in seeds], ignore_index=True)

    def base_recall(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Exact match of the model before it memorizes anything: `base_records` without controls and ranks."""
        parts = []
        for seed in seeds:
            exam = self.exam(seed)
            for modality, examples in exam.examples.items():
                asked = [v.persona for v in exam.views[modality]]
                frame = pd.DataFrame({"persona": asked, "exact": exact_match(self.vlm, examples).exact})
                parts.append(frame.assign(asked=modality, probe="view", seed=seed))
        return pd.concat(parts, ignore_index=True)

    def run(self, condition: Condition) -> store.Run:
        """The run of a condition, trained now if need be."""

        trained: list[PeftModel] = []
        unfinished = paths.RUNS / f".{condition.slug}.checkpoint" if self._checkpoint else None

        def compute(condition: Condition) -> tuple[WholeAdapter, pd.DataFrame, pd.DataFrame]:
            exam = self.exam(condition.seed)
            examples = self.train_examples(condition)
            an_epoch = steps_an_epoch(examples, condition.batch_size)
            steps = steps_of(condition.epochs, an_epoch)
            checks = {max(1, round(share * steps)) for share in CURVE}
            curve: dict[float, dict[str, float]] = {}  # recall by epoch and asked modality

            def on_step(model: PeftModel, step: int, loss: float) -> None:
                if step in checks:
                    curve[step / an_epoch] = exam.curve_point(model)

            training = Training(
                epochs=condition.epochs,
                batch_size=condition.batch_size,
                learning_rate=condition.learning_rate,
                rank=condition.rank,
                seed=condition.seed,
                **self._memory,
            )
            trained.append(
                memorize(
                    self.vlm, examples, training, on_step, f"memorizing from {condition.source}", unfinished, curve
                )
            )  # fmt: skip
            records = exam.records(trained[0])
            curve[steps / an_epoch] = plain_recall(records)
            points = [
                {"epoch": epoch, "asked": asked, "recall": recall}
                for epoch, point in curve.items()
                for asked, recall in point.items()
            ]
            return WholeAdapter(trained[0]), records, pd.DataFrame(points)

        try:
            run = store.get(condition, compute)
            if unfinished and is_main():
                unfinished.unlink(missing_ok=True)
            return run
        finally:
            for adapter in trained:
                adapter.unload()  # leaves the base model as it was
