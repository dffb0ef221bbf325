"""From a multi-hop condition to its run: two hops learned apart, every arm asked, the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from peft import PeftModel

from xmem_utils import fingerprint, paths, store
from xmem_utils.checkpoint import WholeAdapter
from xmem_utils.multihop.evaluation import MultihopExam, encoded
from xmem_utils.multihop.people import PRACTISED, STUDY, TOGETHER, Cast, cast_of, figures_cast, further
from xmem_utils.multihop.tasks import ALONE, DIRECT, LINES, STEPWISE, taught
from xmem_utils.params import (
    MODALITIES,
    MultihopCondition,
    MultihopParameters,
    Profile,
    profile_named,
    resolve,
    scaled,
)
from xmem_utils.personas.public_figures import PublicFigures
from xmem_utils.progress import progress
from xmem_utils.train import Training, memorize, steps_an_epoch
from xmem_utils.vlm.load import VLM, load_vlm, resolve_model
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import WHO
from xmem_utils.vlm.readable import check_answers

# What the study's people are asked; of the others, whether they compose what was learned together, or practised.
ASKED = {STUDY: ALONE, TOGETHER: (DIRECT, STEPWISE), PRACTISED: (DIRECT, STEPWISE)}
BUCKET = 32  # tokens: questions about a name are a third as long as those about a view
CURVE = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the training at which the hops and two arms are asked


def study_of(p: MultihopParameters) -> MultihopStudy:
    """The study that a notebook's parameters describe, its model loaded. Raises ValueError for too few personas."""
    profile = scaled(profile_named(p.profile), p)
    if profile.personas < LINES:
        raise ValueError(
            f"personas={profile.personas}: a prompt tells of {LINES} people, so at least {LINES} are needed"
        )
    return MultihopStudy(load_vlm(p.model), profile, p.rank, p.learning_rate)


class MultihopStudy:
    """Runs multi-hop conditions on one model; what the store has is not computed again."""

    def __init__(self, vlm: VLM, profile: Profile, rank: int, learning_rate: float) -> None:
        check_answers(vlm)
        self.vlm, self.profile = vlm, profile
        self.rank, self.learning_rate = rank, learning_rate
        self.cast, self.exam = cache(self._cast), cache(self._exam)

    def _cast(self, seed: int) -> Cast:
        return cast_of(self.profile, seed, picture_side(self.vlm.processor))

    def _exam(self, seed: int) -> MultihopExam:
        return MultihopExam(self.vlm, self.cast(seed), ASKED)

    def condition(self, source: str, seed: int, longer: int = 1) -> MultihopCondition:
        """One condition, trained `longer` times as many epochs as the profile says."""
        more = further(self.profile.personas)
        return resolve(
            MultihopCondition,
            model=self.vlm.name,
            weights=self.vlm.fingerprint,
            data=self.cast(seed).fingerprint,
            personas=self.profile.personas,
            together=more[TOGETHER],
            practised=more[PRACTISED],
            source=source,
            seed=seed,
            train_views=self.profile.train_views,
            epochs=self.profile.epochs * longer,
            rank=self.rank,
            learning_rate=self.learning_rate,
            batch_size=32,
            question=WHO,
            code=fingerprint.fingerprint(fingerprint.MULTIHOP),
        )

    def conditions(self, longer: int = 0) -> list[MultihopCondition]:
        """With `longer`, the first seed that many times as long (first, since they take longest); then every seed."""
        first = [self.condition(source, self.profile.seeds[0], longer) for source in MODALITIES] if longer > 1 else []
        return first + [self.condition(source, seed) for seed in self.profile.seeds for source in MODALITIES]

    def run_all(self, conditions: Sequence[MultihopCondition]) -> list[store.Run]:
        """The runs of some conditions, with one progress bar over them."""
        return list(progress(map(self.run, conditions), len(conditions), "multi-hop"))

    def run(self, condition: MultihopCondition) -> store.Run:
        """The run of a condition, trained now if need be."""
        trained: list[PeftModel] = []
        try:
            return store.get(condition, lambda c: self._compute(c, trained), paths.MULTIHOP)
        finally:
            for model in trained:
                model.unload()  # leaves the base model as it was

    def _compute(
        self, condition: MultihopCondition, trained: list[PeftModel]
    ) -> tuple[WholeAdapter, pd.DataFrame, pd.DataFrame]:
        exam = self.exam(condition.seed)
        examples = encoded(self.vlm, list(taught(self.cast(condition.seed), condition.source)))
        an_epoch = steps_an_epoch(examples, condition.batch_size, BUCKET)
        epochs = [share * condition.epochs for share in CURVE]
        checks = {max(1, round(epoch * an_epoch)): epoch for epoch in epochs}
        curve = []

        def on_step(model: PeftModel, step: int, loss: float) -> None:
            if step in checks:
                for (arm, asked), recall in exam.curve_point(model, STUDY).items():
                    curve.append({"epoch": checks[step], "arm": arm, "asked": asked, "recall": recall})

        training = Training(
            epochs=condition.epochs, batch_size=condition.batch_size, learning_rate=condition.learning_rate,
            rank=condition.rank, seed=condition.seed, bucket=BUCKET,
        )  # fmt: skip
        trained.append(memorize(self.vlm, examples, training, on_step, f"two hops from {condition.source}"))
        return WholeAdapter(trained[0]), exam.records(trained[0]), pd.DataFrame(curve)

    def before(self) -> pd.DataFrame:
        """All arms about the first seed's people, before anything is memorized."""
        seed = self.profile.seeds[0]
        return self.exam(seed).records().assign(source="none", seed=seed)

    def figures(self) -> pd.DataFrame | None:
        """All arms about public figures, before anything is memorized; None for a model whose figures are not known."""
        folder = Path(resolve_model(self.vlm.name))
        own, shared = folder / "figures.parquet", paths.BASE_MODELS / "figures.parquet"
        file = own if own.is_file() else shared if folder.parent == paths.BASE_MODELS else None
        if file is None:
            return None
        cast = figures_cast(PublicFigures.load(file), picture_side(self.vlm.processor))
        records = MultihopExam(self.vlm, cast, dict.fromkeys(cast.groups, ALONE)).records()
        return records.assign(source="none", seed=0)
