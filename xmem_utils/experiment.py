"""From a condition to its run: personas, memorizing, recall in both modalities, controls, the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict
from peft import PeftModel
from PIL import Image
from tqdm.auto import tqdm

from xmem_utils import store
from xmem_utils.memorize import Training, memorize
from xmem_utils.params import MODALITIES, Condition, Profile
from xmem_utils.personas.dataset import PersonaSpec, load_personas, names_of, to_views
from xmem_utils.personas.importing import import_folder
from xmem_utils.personas.views import View
from xmem_utils.recall import exact_match, name_logprobs, ranks
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.prompts import WHO

CURVE_POINTS = 8


def persona_spec(profile: Profile, seed: int) -> PersonaSpec:
    """The personas of a profile and seed; enough train views for its dose-response."""
    return PersonaSpec(
        personas=profile.personas,
        seed=seed,
        train_views=max(profile.train_views, *profile.dose_views),
        test_views=profile.test_views,
    )


class Exam:
    """The test views of one dataset, tokenised once, with their controls."""

    def __init__(self, vlm: VLM, dataset: DatasetDict, question: str = WHO) -> None:
        self.vlm = vlm
        self.names = names_of(dataset)
        self.views: dict[str, list[View]] = {m: to_views(dataset, "test", m) for m in MODALITIES}
        self.examples = {m: encode(vlm, views, question) for m, views in self.views.items()}
        self.controls: dict[tuple[str, str], list[Example]] = {}
        for modality, views in self.views.items():
            # everybody is asked with the views of the next persona: what is left is not read off the view
            step = len(views) // len(self.names)
            shifted = [views[(i + step) % len(views)].name for i in range(len(views))]
            self.controls[modality, "shuffled views"] = encode(vlm, views, question, shifted)
        first = self.views["image"][0].content if self.views["image"] else Image.new("RGB", (64, 64))
        blank = [
            View(v.persona, v.name, "image", "test", v.index, Image.new("RGB", first.size, (127, 127, 127)))
            for v in self.views["image"]
        ]
        self.controls["image", "blank image"] = encode(vlm, blank, question)

    def curve_point(self, model: PeftModel | None = None) -> dict[str, float]:
        """Exact match by asked modality."""
        return {m: float(exact_match(self.vlm, ex, model).exact.mean()) for m, ex in self.examples.items()}

    def records(self, model: PeftModel | None = None) -> pd.DataFrame:
        """One row a view and probe: persona, asked, probe, view, exact, logprob, rank (plain views only)."""
        parts = []
        for modality, examples in self.examples.items():
            recall = exact_match(self.vlm, examples, model)
            scores = name_logprobs(self.vlm, examples, self.names, model)
            true = np.array([v.persona for v in self.views[modality]])
            parts.append(self._frame(modality, "view", recall, ranks(scores, true)))
        for (modality, probe), examples in self.controls.items():
            parts.append(self._frame(modality, probe, exact_match(self.vlm, examples, model), None))
        return pd.concat(parts, ignore_index=True)

    def _frame(self, modality: str, probe: str, recall, rank) -> pd.DataFrame:
        views = self.views[modality]
        return pd.DataFrame(
            {
                "persona": [v.persona for v in views],
                "asked": modality,
                "probe": probe,
                "view": [v.index for v in views],
                "exact": recall.exact,
                "logprob": recall.logprob,
                "rank": pd.array(rank if rank is not None else [pd.NA] * len(views), dtype="Int64"),
            }
        )


class Study:
    """Runs conditions on one model; what the store has is not computed again.

    People are drawn from the profile and the seed, or read from a user's folder (`people`).
    """

    def __init__(self, vlm: VLM, profile: Profile, rank: int, learning_rate: float, people: str | Path = "") -> None:
        self.vlm, self.profile = vlm, profile
        self.rank, self.learning_rate = rank, learning_rate
        self._own = import_folder(people) if people else None
        self._datasets: dict[int, tuple[DatasetDict, str]] = {}
        self._exams: dict[int, Exam] = {}

    def dataset(self, seed: int) -> tuple[DatasetDict, str]:
        """The people of a seed, and their fingerprint."""
        if self._own:
            return self._own
        if seed not in self._datasets:
            self._datasets[seed] = load_personas(persona_spec(self.profile, seed))
        return self._datasets[seed]

    def exam(self, seed: int) -> Exam:
        """The test views of a seed's personas."""
        if seed not in self._exams:
            self._exams[seed] = Exam(self.vlm, self.dataset(seed)[0])
        return self._exams[seed]

    def condition(self, source: str, seed: int, train_views: int | None = None) -> Condition:
        """One condition of the study. Fewer train views mean more epochs: every dose gets equal steps."""
        dataset, fingerprint = self.dataset(seed)
        train_views = train_views or self.profile.train_views
        return Condition(
            model=self.vlm.name,
            weights=self.vlm.fingerprint,
            data=fingerprint,
            personas=len(names_of(dataset)),
            source=source,
            seed=seed,
            train_views=train_views,
            epochs=max(1, round(self.profile.epochs * self.profile.train_views / train_views)),
            rank=self.rank,
            learning_rate=self.learning_rate,
            batch_size=32,
            question=WHO,
        )

    def run_all(self, conditions: Sequence[Condition]) -> list[store.Run]:
        """The runs of some conditions, with one progress bar over them."""
        bar = tqdm(conditions, desc="conditions", unit="condition", mininterval=1)
        return [self.run(condition) for condition in bar]

    def base_records(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Records of the model before it memorizes anything, one set of personas a seed."""
        return pd.concat([self.exam(seed).records().assign(seed=seed) for seed in seeds], ignore_index=True)

    def run(self, condition: Condition, progress: bool = False) -> store.Run:
        """The run of a condition, trained now if need be."""

        trained: list[PeftModel] = []

        def compute(condition: Condition) -> tuple[PeftModel, pd.DataFrame, pd.DataFrame]:
            exam = self.exam(condition.seed)
            dataset, _ = self.dataset(condition.seed)
            views = to_views(dataset, "train", condition.source, condition.train_views)
            checks = np.unique(np.linspace(0, condition.epochs, CURVE_POINTS).round().astype(int))
            curve = []

            def on_epoch(model: PeftModel, epoch: int) -> None:
                if epoch in checks:
                    for asked, recall in exam.curve_point(model).items():
                        curve.append({"epoch": epoch, "asked": asked, "recall": recall})

            training = Training(
                epochs=condition.epochs,
                batch_size=condition.batch_size,
                learning_rate=condition.learning_rate,
                rank=condition.rank,
                seed=condition.seed,
            )
            examples = encode(self.vlm, views, condition.question)
            trained.append(memorize(self.vlm, examples, training, on_epoch, progress))
            return trained[0], exam.records(trained[0]), pd.DataFrame(curve)

        try:
            return store.get(condition, compute)
        finally:
            for adapter in trained:
                adapter.unload()  # leaves the base model as it was
