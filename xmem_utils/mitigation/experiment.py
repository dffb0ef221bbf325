"""From a mitigation condition to its run: what had been memorized, the material, training, the exam, the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
import torch
from peft import PeftModel

from xmem_utils import fingerprint, paths, store
from xmem_utils.checkpoint import WholeAdapter
from xmem_utils.memorization.experiment import Study
from xmem_utils.mitigation import data as make
from xmem_utils.mitigation.data import Material
from xmem_utils.mitigation.evaluation import MitigationExam
from xmem_utils.mitigation.methods import METHODS, PAIRED, PLAIN, Method
from xmem_utils.mitigation.train import Recipe, length, train
from xmem_utils.params import MODALITIES, Condition, MitigationCondition, resolve
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.personas.views import View
from xmem_utils.progress import progress
from xmem_utils.vlm.adapters import adapt, load_adapter
from xmem_utils.vlm.batches import Example, answer_tokens, encode

FURTHER = 0.4  # training tokens after the start, as a share of the start's own
RATE = 1e-3  # peak learning rate after the start
PAIR_MATERIAL = ("captions", "matching", "labels", "own labels", "pairs")
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)  # of the study's people that are paired then


class MitigationStudy:
    """Runs mitigation conditions on one model; what the store has is not computed again."""

    def __init__(self, study: Study) -> None:
        self.study = study
        # few at a time: pictures of real models are large
        self.exam, self._source_views = lru_cache(2)(self._exam), lru_cache(2)(self._source_views)
        self._asked = lru_cache(2)(self._asked_of)
        self._labelled: tuple[Condition, make.Labels] | None = None

    def condition(
        self, method: str, settings: dict[str, float], source: str, seed: int, paired: int | None = None
    ) -> MitigationCondition:
        """One condition; `paired`, the number of people of whom there are pairs, defaults to all where pairs are used.

        Pairs of no one are nothing but source views: that is the plain condition.
        """
        start, uses = self.study.condition(source, seed), METHODS[method].material in PAIR_MATERIAL
        if paired == 0 and uses:
            method, settings, uses = PLAIN, {}, False
        return resolve(
            MitigationCondition,
            start=start,
            method=method,
            settings={k: float(v) for k, v in settings.items()},
            paired=(start.personas if paired is None else paired) if uses else 0,
            epochs=FURTHER * start.epochs,
            code=fingerprint.fingerprint(fingerprint.MITIGATION),
        )

    def conditions(self, settings: dict[str, dict[str, float]], doses: bool = False) -> list[MitigationCondition]:
        """Every method of `settings` in both directions, seed by seed; with `doses`, also fewer people paired."""
        out = []
        for seed in self.study.profile.seeds:
            for source in MODALITIES:
                out += [self.condition(m, own, source, seed) for m, own in settings.items()]
                if doses:
                    out += self.doses(source, seed)
        return list({c.slug: c for c in out}.values())

    def doses(self, source: str, seed: int) -> list[MitigationCondition]:
        """Conditions by the number of people paired, from none to all."""
        people = len(names_of(self.study.dataset(seed)[0]))
        counts = dict.fromkeys(round(share * people) for share in SHARES)
        return [self.condition(PAIRED, {}, source, seed, paired=n) for n in counts]

    def run_all(self, conditions: Sequence[MitigationCondition]) -> list[store.Run]:
        """The runs of some conditions, with one progress bar over them."""
        return list(progress(map(self.run, conditions), len(conditions), "mitigation"))

    def run(self, condition: MitigationCondition) -> store.Run:
        """The run of a condition, trained now if need be."""
        trained: list[PeftModel] = []
        try:
            return store.get(condition, lambda c: self._compute(c, trained), paths.MITIGATED)
        finally:
            for model in trained:
                model.unload()  # leaves the base model as it was

    def before(self) -> pd.DataFrame:
        """The same exams of the base model, before anything is memorized."""
        parts = [
            self.exam(seed, source).records().assign(source=source, seed=seed)
            for seed in self.study.profile.seeds
            for source in MODALITIES
        ]
        return pd.concat(parts, ignore_index=True)

    def model_of(self, run: store.Run) -> PeftModel:
        """The model of a run, in eval mode; `.unload()` gives the base back."""
        return load_adapter(self.study.vlm.model, run.adapter).eval()

    def _exam(self, seed: int, source: str) -> MitigationExam:
        return MitigationExam(self.study, seed, source)

    def _source_views(self, condition: Condition) -> tuple[list[View], list[Example]]:
        views = to_views(self.study.dataset(condition.seed)[0], "train", condition.source, condition.train_views)
        return views, encode(self.study.vlm, views)

    def material(self, condition: MitigationCondition, model: PeftModel) -> tuple[list[Example], Material]:
        """The named source views and what is mixed in; `model` has memorized, and labels where labels are asked for."""
        start, vlm, kind = condition.start, self.study.vlm, METHODS[condition.method].material
        views, named = self._source_views(start)
        if kind == "own words":
            with model.disable_adapter():
                mixed, read = make.own_words(vlm, views)
            return encode(vlm, mixed), Material([], read=read)
        if kind == "replay":
            return named, make.replayed(self.study, start)
        if not kind:
            return named, Material([])
        if kind == "captions of others":
            return named, make.captions(vlm, make.pairs_of_others(self.study, start))
        if kind == "labels":
            soft, threshold = METHODS[condition.method].loss == "soft", condition.settings.get("threshold", 0.0)
            return named, make.labelled(self._labels(start, model), condition.paired, threshold, soft)
        if kind == "own labels":
            answered = make.label(vlm, model, self._asked(start).target_alone())
            return named, make.labelled(answered, condition.paired, threshold=0.0, soft=False)
        if kind == "pairs":
            asked = self._asked(start).first(condition.paired)
            return named, Material(asked.target, partners=asked.source)
        own = [p for p in self._asked(start).pairs if p.source.persona < condition.paired]
        return named, {"captions": make.captions, "matching": make.matching}[kind](vlm, own)

    def _asked_of(self, start: Condition) -> make.Asked:
        return make.Asked.of(self.study.vlm, make.pairs(self.study, start))

    def _labels(self, start: Condition, model: PeftModel) -> make.Labels:
        """Labels by the model that memorized `start`: the same for every method that uses them."""
        if self._labelled is None or self._labelled[0] != start:
            self._labelled = start, make.label(self.study.vlm, model, self._asked(start))
        return self._labelled[1]

    def _compute(
        self, condition: MitigationCondition, trained: list[PeftModel]
    ) -> tuple[WholeAdapter, pd.DataFrame, pd.DataFrame]:
        method, start = METHODS[condition.method], condition.start
        exam = self.exam(start.seed, start.source)  # made while no adapter is on the base model
        model = self._before(condition, method)
        trained.append(model)
        began = time.perf_counter()
        named, mixed = self.material(condition, model)
        made = time.perf_counter() - began
        an_epoch, own = length(self._source_views(start)[1]), condition.settings
        before = 0 if method.fresh else start.epochs * an_epoch
        budget = start.epochs * an_epoch + round(condition.epochs * an_epoch)
        recipe = Recipe(
            tokens=budget - before,
            learning_rate=own.get("learning_rate", start.learning_rate if method.fresh else RATE),
            seed=start.seed,
            loss=method.loss,
            weight=own.get("weight", 1.0),
            depth=own.get("depth", 0.0),
        )
        cost = train(self.study.vlm, model, named, mixed, recipe)
        if "keep" in own:
            shrink(model, own["keep"])
        spent = {
            "tokens": before + cost.tokens,
            "budget": budget,
            "of the start": before,
            "last step": cost.last,
            "read": mixed.read + cost.read,
            "steps": cost.steps,
            "seconds": cost.seconds,
            "seconds for material": mixed.seconds or made,
            "material": len(mixed.examples),
            "labels right": self._labels_right(start, mixed),
        }
        return WholeAdapter(model), exam.records(model), pd.DataFrame([spent])

    def _labels_right(self, start: Condition, mixed: Material) -> float:
        """Share of the labels in use that are the true name; NaN where nothing is labelled. Nobody trains on this."""
        names = answer_tokens(self.study.vlm, names_of(self.study.dataset(start.seed)[0]))
        right = [torch.equal(e.answer, names[i]) for e, i in zip(mixed.examples, mixed.people, strict=False)]
        return sum(right) / len(right) if right else float("nan")

    def _before(self, condition: MitigationCondition, method: Method) -> PeftModel:
        """What a method trains on: the adapter that has memorized, or a new one."""
        start = condition.start
        if not method.fresh:
            run = self.study.run(start)
            return load_adapter(self.study.vlm.model, run.adapter, trainable=True)
        torch.manual_seed(start.seed)
        return adapt(self.study.vlm.model, int(condition.settings.get("rank", start.rank)))


def shrink(model: PeftModel, keep: float) -> None:
    """Leave a share of what LoRA changed: the weights' average with the base (WiSE-FT, Wortsman et al. 2022,
    arXiv 2109.01903, equation 1), which for a product of two factors is one of them scaled."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(keep)
