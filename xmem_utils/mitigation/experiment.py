"""Mitigation: what closes the gap, at equal training tokens.

Settings are chosen by one rule, fixed before any search was run, on people whom no reported number uses. Among the
settings that keep source recall at the gate in both directions, the one with the highest target recall, mean over the
directions; of equal ones the earlier row of the grid. A method without such a setting takes the one with the highest
source recall. The same people say which method is looked into as the best one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from peft import PeftModel
from pydantic import Field

from xmem_utils import store
from xmem_utils.experiment import BATCH, Condition, Experiment, Settings, Watch, remembered
from xmem_utils.memorization.evaluation import recall_by_modality
from xmem_utils.memorization.experiment import Memorization, MemorizationCondition
from xmem_utils.mitigation.data import STRANGER, Around, Mixed, length
from xmem_utils.mitigation.evaluation import MitigationEvaluation
from xmem_utils.mitigation.methods import HARD, MAIN, METHODS, method_named
from xmem_utils.mitigation.names import AMONG, BASELINE, BASELINE_START, DESCRIBED, PAIRED
from xmem_utils.mitigation.tables import SOURCE, TARGET, per_persona
from xmem_utils.params import MODALITIES, TUNING_SEEDS, resolve
from xmem_utils.personas.dataset import names_of
from xmem_utils.stats import GATE
from xmem_utils.train import Objective, Resources, Step, endless, fresh, names_nll, rate, train
from xmem_utils.vlm.adapters import for_evaluation, load_adapter
from xmem_utils.vlm.batches import answer_tokens
from xmem_utils.vlm.load import VLM

FURTHER = 0.4  # training tokens after the start, as a share of the start's own
RATE = 1e-3  # peak learning rate after the start
SHARES = (0.0, 0.1, 0.5, 1.0)  # of the study's people that are paired then
EARLIER = (0.4, 0.5, 0.6)  # of the usual steps, after which labels are asked for, too


class MitigationCondition(Condition):
    """Everything that determines one model that was to recall across modalities."""

    start: MemorizationCondition  # what had been memorized; a method that trains from the start does so instead
    method: str
    settings: dict[str, float]  # of the method
    paired: int = Field(ge=0)  # how many people of the study have nameless pairs
    epochs: float = Field(gt=0)  # training tokens after the start, in epochs of its source views

    @property
    def name(self) -> str:
        """A readable folder name."""
        s, method = self.start, "".join(c if c.isalnum() else "-" for c in self.method)
        return f"{Path(s.model).name}-{s.source}-n{s.personas}-replicate{s.replicate}-{method}-pairs{self.paired}"

    @property
    def labels(self) -> dict[str, Any]:
        """Source, method, replicate, number of people paired."""
        start = self.start
        return {"source": start.source, "method": self.method, "replicate": start.replicate, "paired": self.paired,
                "start epochs": start.epochs}  # fmt: skip


class Mitigation(Experiment):
    """Ways to close the gap, for models that `memorization` makes."""

    folder, notebook = "mitigation", "07_mitigation"
    methods = METHODS
    memorization: Memorization

    def __init__(self, memorization: Memorization) -> None:
        super().__init__(memorization.vlm, memorization.profile, memorization.resources)
        self.memorization = memorization

    @classmethod
    def of(cls, p: Any, resources: Resources | None = None) -> Self:
        """The experiment that a notebook's parameters describe, its model loaded."""
        return cls(Memorization.of(p, resources))

    # -- conditions ------------------------------------------------------------------------------------

    @staticmethod
    def methods_of(p: Any) -> list[str]:
        """The methods asked for, after what they are held against. Raises ValueError naming the known ones.

        Describe-then-recall and decoding among the names train nothing: they come with the baseline.
        """
        named = {"all": METHODS, "main": MAIN}.get(p.methods, p.methods.split(";"))
        chosen = [method_named(name) for name in map(str.strip, named) if name not in (DESCRIBED, AMONG)]
        against = [BASELINE, *[BASELINE_START] * any(m.fresh for m in chosen)]
        return list(dict.fromkeys([*against, *(m.name for m in chosen)]))

    def conditions(self, p: Any) -> list[MitigationCondition]:
        """Every method in both directions, replicate by replicate; with `p.pairs`, also, of the side replicates, fewer
        people paired, and labels where they are hard to come by."""
        out, settings = [], self.settings_of(self.vlm.name, self.methods_of(p))
        for replicate, source in product(self.replicates, MODALITIES):
            out += [self.condition(m, own, source, replicate) for m, own in settings.items()]
            if p.pairs and replicate in self.side_replicates:
                out += self.doses(source, replicate) + self.hard(source, replicate)
        return list({c.slug: c for c in out}.values())

    def condition(
        self, method: str, settings: Settings, source: str, replicate: int, paired: int | None = None,
        after: float = 1.0,
    ) -> MitigationCondition:  # fmt: skip
        """One condition; `paired`, the number of people of whom there are pairs, defaults to all where pairs are used.
        `after` which share of the usual memorizing it goes on.

        Pairs of no one are nothing but source views: that is the baseline.
        """
        usual, row = self.memorization.condition(source, replicate), self.methods[method]
        start = usual if after == 1 else self.memorization.condition(source, replicate, epochs=after * usual.epochs)
        if paired == 0 and row.pairs:
            method, settings, row = BASELINE, {}, self.methods[BASELINE]
        return resolve(
            MitigationCondition,
            start=start,
            method=method,
            settings={k: float(v) for k, v in settings.items()},
            paired=(start.personas if paired is None else paired) if row.pairs else 0,
            epochs=FURTHER * usual.epochs,
            code=self.code(row),
        )

    def doses(self, source: str, replicate: int) -> list[MitigationCondition]:
        """Conditions by the number of people paired, from none to all."""
        people = len(names_of(self.memorization.dataset(replicate)[0]))
        counts = dict.fromkeys(round(share * people) for share in SHARES)
        return [self.condition(PAIRED, {}, source, replicate, paired=n) for n in counts]

    def hard(self, source: str, replicate: int) -> list[MitigationCondition]:
        """Self-labelling by models that have not yet memorized, beside plain training from there; with strangers."""
        settings = self.settings_of(self.vlm.name, HARD)
        every = [self.condition(method, settings[method], source, replicate) for method in HARD]
        early = [BASELINE, *HARD[:2]]
        return every + [
            self.condition(m, settings.get(m, {}), source, replicate, after=share) for share in EARLIER for m in early
        ]

    # -- training --------------------------------------------------------------------------------------

    def base(self, condition: MitigationCondition) -> VLM:
        """The model that a condition's adapter is on."""
        return self.vlm(condition.start.replicate)

    @remembered(2)  # pictures of real models are large
    def around(self, start: MemorizationCondition) -> Around:
        """What auxiliary data is made of."""
        return Around(self.memorization, start)

    def data(self, condition: MitigationCondition, model: PeftModel) -> Mixed:
        """The named source views and what is mixed in; `model` has memorized, and labels where labels are asked for."""
        threshold = condition.settings.get("threshold", 0.0)
        return self.methods[condition.method].data(self.around(condition.start), model, condition.paired, threshold)

    def train(
        self, condition: MitigationCondition, on_step: Watch, resources: Resources
    ) -> tuple[PeftModel, dict[str, float]]:
        """Train on until the budget of tokens is spent; facts say what it took."""
        start, own, method = condition.start, condition.settings, self.methods[condition.method]
        model = self._before(condition)
        began = time.perf_counter()
        mixed = self.data(condition, model)
        made = time.perf_counter() - began
        an_epoch = length(self.around(start).named)
        before = 0 if method.fresh else start.epochs * an_epoch
        budget = start.epochs * an_epoch + round(condition.epochs * an_epoch)
        peak = own.get("learning_rate", start.learning_rate if method.fresh else RATE)
        steps, spent = budgeted_steps(mixed, budget - before, peak, start.replicate, method.on_top)
        objective = Objective((names_nll,))
        if mixed.auxiliary:
            depth = own.get("depth", 0.0) if mixed.partners else None
            objective = Objective((method.loss,), read=("partners",), depth=depth, settings=own)
        began = time.perf_counter()
        model = train(self.base(condition), model, steps, objective, on_step, resources)
        seconds = time.perf_counter() - began
        if "keep" in own:
            shrink(model, own["keep"])
        facts = {"tokens": before + spent["tokens"], "counted": before + spent["counted"], "budget": budget,
                 "of the start": before, "last step": spent["last step"], "read": mixed.read + spent["read"],
                 "steps": len(steps), "seconds": seconds, "seconds for material": mixed.seconds or made,
                 "material": len(mixed.auxiliary),
                 "labels right": self._labels_right(start, mixed)}  # fmt: skip
        return model, facts

    def _before(self, condition: MitigationCondition) -> PeftModel:
        """What a method trains on: the adapter that has memorized, or a new one."""
        start = condition.start
        if self.methods[condition.method].fresh:
            return fresh(self.base(condition), int(condition.settings.get("rank", start.rank)), start.replicate)
        return load_adapter(self.base(condition).model, self.memorization.run(start).adapter, trainable=True)

    def _labels_right(self, start: MemorizationCondition, mixed: Mixed) -> float:
        """Share of the labels in use that are the true name (a stranger has none); NaN where nothing is labelled.
        Nobody trains on this."""
        names = answer_tokens(self.vlm(start.replicate), names_of(self.memorization.dataset(start.replicate)[0]))
        right = [
            i != STRANGER and torch.equal(e.answer, names[i])
            for e, i in zip(mixed.auxiliary, mixed.people, strict=False)
        ]
        return sum(right) / len(right) if right else float("nan")

    # -- evaluation ------------------------------------------------------------------------------------

    @remembered(2)
    def evaluation_of(self, replicate: int, source: str) -> MitigationEvaluation:
        """The questions about one replicate's people, learned from `source`."""
        return MitigationEvaluation(self.memorization, replicate, source)

    def evaluate(self, model: PeftModel, condition: MitigationCondition, facts: Mapping[str, float]) -> pd.DataFrame:
        """Both modalities, the perception ceiling, public figures; see `MitigationEvaluation.records`."""
        with for_evaluation(model):
            return self.evaluation_of(condition.start.replicate, condition.start.source).records(model)

    def prepare(self, condition: MitigationCondition) -> None:
        """The base model perceives target views while no adapter is on it."""
        self.evaluation_of(condition.start.replicate, condition.start.source)

    def before(self) -> pd.DataFrame:
        """The same questions, answered by the base model before anything is memorized."""
        parts = []
        for replicate, source in product(self.replicates, MODALITIES):
            about = [self.memorization.dataset(replicate)[1], source]
            found = self.untrained(replicate, about, lambda r=replicate, s=source: self.evaluation_of(r, s).records())
            parts.append(found.assign(source=source))
        return pd.concat(parts, ignore_index=True)

    def memorized(self) -> pd.DataFrame:
        """Records of the models that most methods go on from, those of notebook 03, by source and replicate."""
        starts = [self.memorization.condition(source, r) for r in self.replicates for source in MODALITIES]
        return self.memorization.collect(self.memorization.run(c) for c in starts)

    def hard_runs(self, runs: Iterable[store.Run]) -> list[store.Run]:
        """The runs where labels are hard to come by, and what they are held against: those of the side replicates."""
        methods, replicates = (BASELINE, *HARD), self.side_replicates
        return [r for r in runs if r.condition.method in methods and r.condition.start.replicate in replicates]

    def of_the_start(self, run: store.Run) -> float:
        """Source recall of the model that a run went on from."""
        start = run.condition.start
        return recall_by_modality(self.memorization.run(start).records)[start.source]

    # -- search ----------------------------------------------------------------------------------------

    def search_conditions(self, methods: Sequence[str]) -> list[MitigationCondition]:
        """All settings of some methods in both directions."""
        tried = [(name, settings) for name in methods for settings in self.methods[name].settings()]
        return [self.condition(name, own, source, TUNING_SEEDS[0]) for source in MODALITIES for name, own in tried]

    def tried(self, run: store.Run) -> pd.DataFrame:
        """Source and target recall by method, settings and source."""
        c = run.condition
        row = {"method": c.method, "settings": json.dumps(c.settings, sort_keys=True), "source": c.start.source}
        return pd.DataFrame([row | per_persona(self.collect([run]))[[SOURCE, TARGET]].mean().to_dict()])

    @staticmethod
    def choose(tried: pd.DataFrame) -> pd.DataFrame:
        """The rule: one row a method, with its settings, worst source recall, target recall (mean, and from each
        source), and whether the source was `kept`."""
        wide = tried.pivot_table(index=["method", "settings"], columns="source", values=[SOURCE, TARGET], sort=False)
        table = pd.DataFrame({SOURCE: wide[SOURCE].min(axis=1), TARGET: wide[TARGET].mean(axis=1)})
        table = table.join(wide[TARGET].add_prefix(f"{TARGET} from ")).reset_index()
        rows = []
        for _, part in table.groupby("method", sort=False):
            kept = part[part[SOURCE] >= GATE]
            best = kept.loc[kept[TARGET].idxmax()] if len(kept) else part.loc[part[SOURCE].idxmax()]
            rows.append({**best, "kept": len(kept) > 0})
        return pd.DataFrame(rows)

    def best(self, source: str, methods: Sequence[str]) -> str:
        """Of some methods with the usual budget, the one with the highest target recall in the search among those that
        memorized; of equal ones the first. Chosen on people whom no reported number uses, so what is reported of it is
        no winner's luck. Where the search has none of them, the first; without any beside the baselines, the baseline.
        """
        own = [m for m in methods if m not in (BASELINE, BASELINE_START) and not self.methods[m].on_top]
        found = self.table(self.vlm.name).set_index("method").query("kept")[f"{TARGET} from {source}"]
        found = found.reindex(own).dropna()
        return str(found.idxmax()) if len(found) else (own or [BASELINE])[0]


def budgeted_steps(
    mixed: Mixed, budget: float, peak: float, seed: int, on_top: bool = False
) -> tuple[list[Step], dict[str, int]]:
    """Steps until `budget` tokens have passed, less than one batch more, and what they cost.

    Each step takes named source views and, when there is auxiliary data, as many examples of it, together a batch;
    `on_top`, the named views are a batch, and theirs alone are the "counted" tokens. Tokens are those of prompts and
    answers, padding left out; "last step" are the counted ones of the last, "read" those that pass forward alone (views
    that states are drawn to), which are no training tokens.
    """
    share = BATCH // 2 if mixed.auxiliary and not on_top else BATCH
    named, auxiliary = endless(mixed.named, share, seed), endless(mixed.auxiliary, share, seed + 1)
    steps, counted, spent, last, read = [], 0, 0, 0, 0
    while counted < budget:
        batch, rows = {"names": [mixed.named[i] for i in next(named)]}, next(auxiliary) if mixed.auxiliary else ()
        batch["auxiliary"] = [mixed.auxiliary[i] for i in rows]
        batch["partners"] = [mixed.partners[i] for i in rows if mixed.partners]
        steps.append(Step({name: part for name, part in batch.items() if part}, peak * rate(counted / budget)))
        named_tokens, more = length(batch["names"]), length(batch["auxiliary"])
        last = named_tokens if on_top else named_tokens + more
        read += length(batch["partners"])
        counted, spent = counted + last, spent + named_tokens + more
    return steps, {"tokens": spent, "counted": counted, "last step": last, "read": read}


def shrink(model: PeftModel, keep: float) -> None:
    """Leave a share of what LoRA changed: the weights' average with the base (WiSE-FT, Wortsman et al. 2022,
    arXiv 2109.01903, equation 1), which for a product of two factors is one of them scaled."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(keep)
