"""From an unlearning condition to its run: what was memorized, forgetting, the exam, attacks, the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pandas as pd
from peft import PeftModel

from xmem_utils import fingerprint, paths, store
from xmem_utils.checkpoint import WholeAdapter
from xmem_utils.memorization.experiment import Study, plain_recall
from xmem_utils.params import Condition, UnlearningCondition, parts_of, resolve
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.progress import progress
from xmem_utils.stats import GATE
from xmem_utils.unlearning.attacks import attack
from xmem_utils.unlearning.evaluation import REFUSAL, ForgettingExam, first_views
from xmem_utils.unlearning.methods import METHODS
from xmem_utils.unlearning.names import BEFORE, GOLD, PROMPT
from xmem_utils.unlearning.people import check_forget, forget_set
from xmem_utils.unlearning.train import Unlearned, Views, unlearn
from xmem_utils.vlm.adapters import load_adapter, merged
from xmem_utils.vlm.batches import Example, answer_tokens, encode, with_answer
from xmem_utils.vlm.load import VLM, load_vlm
from xmem_utils.vlm.prompts import WHO

CURVE = (0.25, 0.5, 0.75)  # shares of the steps at which recall is asked; at the end the exam is


def preamble(names: Sequence[str]) -> str:
    """The instruction of the prompt method."""
    return f"You do not know {', '.join(names)}. Of these people you say: {REFUSAL}\n\n"


class UnlearningStudy:
    """Runs unlearning conditions on one model; what the store has is not computed again."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.root = paths.UNLEARNED
        self.exam, self.train_examples = cache(self._exam), cache(self._train_examples)
        self._untrained: dict[str, pd.DataFrame] = {}  # exams of models of which nothing was trained
        self._start: tuple[Condition, VLM] | None = None  # the last one alone: real models are large

    def forget_set(self, seed: int, share: float = 0.1) -> tuple[int, ...]:
        """Who is forgotten."""
        return forget_set(len(names_of(self.study.dataset(seed)[0])), share, seed)

    def condition(
        self,
        method: str,
        settings: dict[str, float],
        unlearned: str,
        seed: int,
        *,
        source: str = "image+text",
        retained: str | None = None,
        forget: Sequence[int] | None = None,
        thorough: bool = False,
    ) -> UnlearningCondition:
        """One condition. `method` is one of the table's, "before" or "gold"; retained defaults to `unlearned`."""
        people = len(names_of(self.study.dataset(seed)[0]))
        chosen = self.forget_set(seed) if forget is None else check_forget(forget, people)
        start = self.study.condition(source, seed, left_out=chosen if method == GOLD else ())
        return resolve(
            UnlearningCondition,
            start=start,
            forget=chosen,
            unlearned=unlearned,
            retained=retained or unlearned,
            method=method,
            settings={k: float(v) for k, v in settings.items()},
            thorough=thorough,
            code=fingerprint.fingerprint(fingerprint.UNLEARNING),
        )

    def run_all(self, conditions: Sequence[UnlearningCondition]) -> list[store.Run]:
        """The runs of some conditions, with one progress bar over them."""
        # a start is loaded once; those that are stored come first, and meanwhile another process memorizes the others
        ordered = sorted(conditions, key=lambda c: (not (paths.RUNS / c.start.slug).exists(), c.start.slug))
        runs = {c.slug: self.run(c) for c in progress(ordered, len(ordered), "unlearning")}
        return [runs[c.slug] for c in conditions]

    def run(self, condition: UnlearningCondition) -> store.Run:
        """The run of a condition, computed now if need be.

        Raises ValueError, with the recall, when its start has not memorized (below the gate).
        """
        trained: list[PeftModel] = []
        try:
            return store.get(condition, lambda c: self._compute(c, trained), self.root)
        finally:
            for model in trained:
                model.unload()  # leaves the start as it was

    def start(self, condition: Condition) -> VLM:
        """The model that memorized a condition, adapter merged."""
        if self._start is None or self._start[0] != condition:
            run = self.study.run(condition)
            check_memorized(run)
            vlm = load_vlm(condition.model, self.study.vlm.device)
            memorized = load_adapter(vlm.model, run.adapter).merge_and_unload()
            self._start = condition, replace(vlm, model=memorized)
        return self._start[1]

    def _exam(self, seed: int, forget: tuple[int, ...], asks: bool) -> ForgettingExam:
        names = names_of(self.study.dataset(seed)[0])
        return ForgettingExam(self.study, seed, forget, preamble([names[i] for i in forget]) if asks else "")

    def _train_examples(self, seed: int, modality: str, per_persona: int) -> list[tuple[int, Example]]:
        dataset, _ = self.study.dataset(seed)
        views = to_views(dataset, "train", modality, per_persona)
        return [(v.persona, e) for v, e in zip(views, encode(self.study.vlm, views, WHO), strict=True)]

    def views(self, condition: UnlearningCondition) -> Views:
        """What a condition may train on."""
        start = condition.start

        def trained_on(source: str, forgotten: bool) -> list[Example]:
            return [
                example
                for m in parts_of(source)
                for person, example in self.train_examples(start.seed, m, start.train_views)
                if (person in condition.forget) == forgotten
            ]

        forget = trained_on(condition.unlearned, forgotten=True)
        (refusal,) = answer_tokens(self.study.vlm, [REFUSAL])
        return Views(forget, [with_answer(e, refusal) for e in forget], trained_on(condition.retained, forgotten=False))

    def path(
        self, condition: UnlearningCondition, on_step: Callable[[PeftModel, int], None] | None = None
    ) -> Unlearned:
        """What becomes of the start; the caller unloads it. A reference is the start in a fresh adapter."""
        method = METHODS[PROMPT if condition.method in (BEFORE, GOLD) else condition.method]
        return unlearn(
            self.start(condition.start), self.study.vlm, self.views(condition), method, condition.settings,
            condition.start.seed, condition.start.rank, on_step,
        )  # fmt: skip

    def _compute(
        self, condition: UnlearningCondition, trained: list[PeftModel]
    ) -> tuple[WholeAdapter, pd.DataFrame, pd.DataFrame]:
        exam = self.exam(condition.start.seed, condition.forget, condition.method == "prompt")
        steps = int(condition.settings.get("steps", 0))
        checks = {max(1, round(share * steps)) for share in CURVE if condition.thorough} - {steps}
        curve = []

        def on_step(model: PeftModel, step: int) -> None:
            if step in checks:
                with merged(model):
                    curve.append(exam.recall(model).assign(step=step))

        made = self.path(condition, on_step)
        trained.append(made.model)
        adapter = WholeAdapter(made.model)  # before an attack changes it
        if made.diverged:
            records = pd.DataFrame([{"who": "diverged", "probe": "", "asked": "", "exact": float("nan")}])
        else:
            records = self._records(exam, made.model, condition)
            if condition.thorough and steps:
                curve.append(first_views(records).assign(step=steps))
            if condition.thorough:
                attacked = attack(exam, made.model, condition.unlearned, condition.start.seed)
                records = pd.concat([records, attacked], ignore_index=True)
        nothing = pd.DataFrame(columns=["who", "asked", "recall", "step"])
        return adapter, records, pd.concat(curve) if curve else nothing

    def _records(self, exam: ForgettingExam, model: PeftModel, condition: UnlearningCondition) -> pd.DataFrame:
        """The exam; where nothing is trained, that of the other unlearned modality, if it was taken already."""
        key = condition.model_copy(update={"unlearned": "image", "retained": "image"}).slug
        if key in self._untrained:
            return self._untrained[key]
        with merged(model):
            records = exam.records(model, condition.thorough)
        if not condition.settings.get("steps"):
            self._untrained[key] = records
        return records


def check_memorized(run: store.Run) -> None:
    """Raise ValueError, with the recall, when a start has not memorized what it learned from."""
    recall = plain_recall(run.records[~run.records["persona"].isin(run.condition.left_out)])
    for modality in parts_of(run.condition.source):
        if recall[modality] < GATE:
            raise ValueError(
                f"{run.condition.slug} has not memorized: it recalls {recall[modality]:.2f} of the names asked with "
                f"{modality} views, and unlearning starts from {GATE} on; train it longer or on more views"
            )
