"""Unlearning: some of the people that were memorized are to be forgotten, from views of one modality.

Settings are chosen by one rule, on people whom no reported number uses. Among the settings that keep retain recall,
asked in either modality and unlearning either, within 5 points of before, the one with the lowest forget recall asked
in the unlearned modality; settings within 1 point of it tie, and the highest retain recall wins; within 1 point of
that, too, the one nearest to the first values of the grid, then the one of fewest steps. A method without such a
setting takes the one that retains most, and is marked.

What was changed after first results, and why, stands in notebook 05.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import torch
from peft import PeftModel
from pydantic import Field

from xmem_utils import fingerprint, store
from xmem_utils.experiment import Condition, Experiment, Settings, Watch, remembered
from xmem_utils.memorization.evaluation import recall_by_modality
from xmem_utils.memorization.experiment import Memorization, MemorizationCondition
from xmem_utils.params import MODALITIES, TUNING_SEEDS, Source, listed, parts_of, resolve
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.stats import GATE
from xmem_utils.train import Diverged, Resources, Step, Training, endless, fresh, memorize, train
from xmem_utils.unlearning.attacks import attack
from xmem_utils.unlearning.evaluation import ForgettingEvaluation, first_views
from xmem_utils.unlearning.frontier import AIMED
from xmem_utils.unlearning.methods import METHODS, Method, method_named
from xmem_utils.unlearning.names import BEFORE, BOTH, PROMPT, RETAIN_ONLY
from xmem_utils.unlearning.people import by_name, forget_set
from xmem_utils.vlm.adapters import for_evaluation, load_adapter
from xmem_utils.vlm.batches import Example, answer_tokens, encode, with_answer
from xmem_utils.vlm.load import VLM, load_vlm
from xmem_utils.vlm.prompts import REFUSAL, WHO

BATCH = 16  # views of each kind a step
CURVE = (0.25, 0.5, 0.75)  # shares of the steps at which recall is asked; at the end all is asked
FURTHER_METHODS = ("GradDiff", "IDK")  # what the ablations are asked of
FURTHER_SHARES = (0.05, 0.2)  # of people forgotten
REQUESTS, REQUEST_SHARE = 4, 0.05  # one after the other, so many people each
POINTS, TIE = 0.05, 0.01  # of the search's rule


class UnlearningCondition(Condition):
    """Everything that determines one model that unlearned."""

    start: MemorizationCondition  # what had been memorized
    forget: tuple[int, ...] = Field(min_length=1)  # personas, those of earlier requests included
    earlier: tuple[tuple[int, ...], ...] = ()  # requests met before, one after the other; what is left is this one's
    unlearned: Source  # modality of the views it unlearns from
    retained: Source  # modality of the views it rehearses
    method: str
    settings: dict[str, float]  # of the method: learning rate, steps and its own
    # all and attacks; exact match, ranks and answers; exact match alone; along the steps alone
    measures: Literal["thorough", "ranked", "brief", "search"]

    @property
    def name(self) -> str:
        """A readable folder name."""
        s, method = self.start, self.method.replace(" ", "-")
        start = f"{Path(s.model).name}-{s.source}-n{s.personas}-replicate{s.replicate}"
        return f"{start}-forgets{len(self.forget)}-{self.unlearned}-{method}"

    @property
    def labels(self) -> dict[str, Any]:
        """What had been memorized, what is unlearned and rehearsed, the share of people, in how many requests, who they
        are, method and replicate."""
        share = round(len(self.forget) / self.start.personas, 3)
        return {"start": self.start.source, "unlearned": self.unlearned, "retained": self.retained,
                "share": share, "requests": 1 + len(self.earlier), "forgets": self._forgets,
                "method": self.method, "replicate": self.start.replicate}  # fmt: skip

    @property
    def _forgets(self) -> str:
        """Who is forgotten, request by request."""
        asked = *self.earlier, tuple(person for person in self.forget if person not in chain(*self.earlier))
        return "|".join(" ".join(map(str, people)) for people in asked)

    @property
    def before(self) -> list[Self]:
        """The conditions of the earlier requests."""
        upto = [self.earlier[: k + 1] for k in range(len(self.earlier))]
        return [self.model_copy(update={"forget": tuple(sorted(chain(*p))), "earlier": p[:-1]}) for p in upto]


def preamble(names: Sequence[str]) -> str:
    """The instruction of the prompt method."""
    return f"You do not know {', '.join(names)}. Of these people you say: {REFUSAL}\n\n"


class Unlearning(Experiment):
    """Unlearning, on models that `memorization` makes; ValueError, with the recall, where one has not memorized."""

    folder, notebook = "unlearning", "05_unlearning"
    methods = METHODS
    memorization: Memorization

    def __init__(self, memorization: Memorization) -> None:
        super().__init__(memorization.vlm, memorization.profile, memorization.resources)
        self.memorization = memorization
        self._untrained: dict[str, pd.DataFrame] = {}  # records of models of which nothing was trained

    @classmethod
    def of(cls, p: Any, resources: Resources | None = None) -> Self:
        """The experiment that a notebook's parameters describe, its model loaded."""
        return cls(Memorization.of(p, resources))

    # -- conditions ------------------------------------------------------------------------------------

    @staticmethod
    def methods_of(p: Any) -> list[str]:
        """The methods asked for. Raises ValueError naming the known ones."""
        wanted = METHODS if p.methods == "all" else listed(p.methods)
        return list(dict.fromkeys(method_named(name).name for name in wanted))

    def forget_set(self, replicate: int, share: float = 0.1, which: int = 0) -> tuple[int, ...]:
        """Who is forgotten: `which` of the disjoint sets."""
        return forget_set(self._people(replicate), share, replicate, which)

    def _people(self, replicate: int) -> int:
        return len(names_of(self.memorization.dataset(replicate)[0]))

    def condition(
        self, method: str, settings: Settings, unlearned: str, replicate: int, source: str = BOTH, **fields: Any
    ) -> UnlearningCondition:
        """One condition. `method` is one of the table's, "before", "retain-only"; who memorized learned from `source`.

        Further `fields` of the condition default to: forget, a tenth; retained, as `unlearned`; measures, "brief".
        """
        fields = {"retained": unlearned, "measures": "brief"} | fields
        if "forget" not in fields:
            fields["forget"] = self.forget_set(replicate)
        start = self.memorization.condition(
            source, replicate, left_out=fields["forget"] if method == RETAIN_ONLY else ()
        )
        code = self.code(self._method(method))
        if fields["measures"] == "search":  # whose results are its looks
            code = fingerprint.values_of([code, *self._looked(self._method(method))])
        return resolve(
            UnlearningCondition, start=start, unlearned=unlearned, method=method, settings=settings, code=code, **fields
        )

    @classmethod
    def code(cls, method: Method | None = None) -> str:
        """Hash of the code that trains, that of its method's losses and of their turns included."""
        turns = [fingerprint.code_of(part, Method) for part in (Method.objective, Method.parts)]
        return fingerprint.values_of([super().code(method), *turns])

    @classmethod
    def _looked(cls, method: Method) -> list[object]:
        return [fingerprint.code_of(cls.look, cls), list(method.points)]

    @classmethod
    def codes(cls) -> list[str]:
        """Hashes of the code of all methods, and of their search."""
        every = {cls.code(method): cls._looked(method) for method in cls.methods.values()}
        return [*every, *(fingerprint.values_of([code, *looked]) for code, looked in every.items())]

    def _method(self, name: str) -> Method:
        """A row of the table; references are the start in a fresh adapter, as the prompt is."""
        return self.methods[PROMPT if name in (BEFORE, RETAIN_ONLY) else name]

    def conditions(self, p: Any) -> list[UnlearningCondition]:
        """All conditions, replicate by replicate.

        Mainly, who was memorized in both modalities is unlearned in either by every method, with both references:
        further forget sets than the first by those that `reach`, the first one of the side replicates with all measures
        and attacks. Of the first also: who was memorized in one modality alone, which is then unlearned; and, of the
        side replicates, both modalities at once. Ablations (`p.ablations`, of the side replicates, exact match alone)
        are, for two methods, other shares, request after request, and both modalities rehearsed.
        """
        methods, reaching = self.methods_of(p), self.reaching(self.vlm.name)
        settings = self.settings_of(self.vlm.name, methods) | {BEFORE: {}, RETAIN_ONLY: {}}
        out = []
        for replicate in self.replicates:
            named = by_name(listed(p.forget), names_of(self.memorization.dataset(replicate)[0])) if p.forget else ()
            sets = 1 if named else min(self.profile.forget_sets, int(1 / p.forget_share))
            aside = replicate in self.side_replicates
            for which in range(sets):
                forget = named or self.forget_set(replicate, p.forget_share, which)

                def made(method: str, unlearned: str, r=replicate, own=forget, **more) -> UnlearningCondition:
                    return self.condition(method, settings[method], unlearned, r, **{"forget": own} | more)

                chosen = [m for m in methods if not which or m in reaching]
                every = (BEFORE, RETAIN_ONLY, *chosen) if chosen else ()
                measures = "thorough" if aside and not which else "ranked"
                out += [made(m, unlearned, measures=measures) for unlearned in MODALITIES for m in every]
                if which:
                    continue
                out += [made(m, u, source=u, measures="ranked") for u in MODALITIES for m in every]
                if aside:
                    out += [made(m, BOTH, measures="ranked") for m in methods]
                if aside and p.ablations:
                    out += self._ablations(made, replicate, [m for m in FURTHER_METHODS if m in methods], len(forget))
        return list({c.slug: c for c in out}.values())

    @classmethod
    def reaching(cls, model: str) -> set[str]:
        """The methods that, as the search chose them, forgot what they aimed at and kept the retained."""
        chosen = cls.table(model)
        return set(chosen["method"][chosen["kept"] & (chosen["forget recall"] <= 1 - AIMED)])

    def _ablations(
        self, made: Callable[..., UnlearningCondition], replicate: int, methods: Sequence[str], usual: int
    ) -> list[UnlearningCondition]:
        """Both modalities rehearsed, other numbers of people forgotten than the `usual` one; and request after request,
        from the first one on, beside all of them at once."""
        people = self._people(replicate)
        counts = [share for share in FURTHER_SHARES if round(share * people) not in (0, usual)]
        fields = [{"retained": BOTH}, *({"forget": self.forget_set(replicate, share)} for share in counts)]
        if round(REQUEST_SHARE * people):
            asked = [self.forget_set(replicate, REQUEST_SHARE, which) for which in range(REQUESTS)]
            met = [tuple(asked[:k]) for k in range(REQUESTS)]
            fields += [{"forget": tuple(sorted(chain(*r, asked[len(r)]))), "earlier": r} for r in met]
            fields += [{"forget": tuple(sorted(chain(*asked)))}]
        return [made(m, u, **own) for u in MODALITIES for own in fields for m in methods]

    def ordered(self, conditions: Sequence[UnlearningCondition]) -> list[UnlearningCondition]:
        """A start is loaded once; those that are stored come first, and meanwhile another process memorizes others."""
        stored = self.memorization.root
        return sorted(conditions, key=lambda c: (not (stored / c.start.slug).exists(), c.start.slug))

    # -- training --------------------------------------------------------------------------------------

    def base(self, condition: UnlearningCondition) -> VLM:
        """The model that memorized, and met earlier requests, adapters merged; the plain one where `unusable`."""
        if self.unusable(condition):
            return self.vlm(condition.start.replicate)
        adapters = self.memorization.run(condition.start).adapter, *(self.run(c).adapter for c in condition.before)
        return self.merged(condition.start.model, condition.start.replicate, adapters)

    def unusable(self, condition: UnlearningCondition) -> bool:
        """Whether there is nothing to go on from: one modality alone was not memorized, or an earlier request diverged.
        Raises ValueError where both modalities were not memorized."""
        run = self.memorization.run(condition.start)
        if condition.start.source == BOTH:
            check_memorized(run)
        return not memorized(run) or any("diverged" in self.run(c).facts for c in condition.before)

    @remembered(1)  # real models are large
    def merged(self, name: str, replicate: int, adapters: Sequence[Path]) -> VLM:
        """A base with adapters merged, each on top of those before."""
        vlm = load_vlm(name, self.vlm(replicate).device)
        for adapter in adapters:
            vlm = replace(vlm, model=load_adapter(vlm.model, adapter).merge_and_unload())
        return vlm

    @remembered(8)
    def _train_examples(self, replicate: int, modality: str, per_persona: int) -> list[tuple[int, Example]]:
        dataset, _ = self.memorization.dataset(replicate)
        views = to_views(dataset, "train", modality, per_persona)
        return [(v.persona, e) for v, e in zip(views, encode(self.vlm(replicate), views, WHO), strict=True)]

    def views(self, condition: UnlearningCondition) -> dict[str, list[Example]]:
        """What a condition may train on, by part; "refusal" has the prompts of "forget" with another answer."""
        start, earlier = condition.start, set(chain(*condition.earlier))

        def trained_on(source: str, people: set[int]) -> list[Example]:
            return [
                example
                for m in parts_of(source)
                for person, example in self._train_examples(start.replicate, m, start.train_views)
                if person in people
            ]

        forget = trained_on(condition.unlearned, {*condition.forget} - earlier)
        retained = {*range(start.personas)} - {*condition.forget}
        (refusal,) = answer_tokens(self.vlm(start.replicate), [REFUSAL])
        refused = [with_answer(e, refusal) for e in forget]
        return {"forget": forget, "refusal": refused, "retain": trained_on(condition.retained, retained)}

    def train(
        self, condition: UnlearningCondition, on_step: Watch, resources: Resources
    ) -> tuple[PeftModel, dict[str, float]]:
        """Unlearn; a fact "diverged" is the step at which loss or gradients stopped being finite, 0 where there was
        nothing to go on from.

        The learning rate is constant, so that a run of n steps is the beginning of a longer one.
        """
        method, start, own = self._method(condition.method), self.base(condition), condition.start
        if self.unusable(condition):
            return fresh(start, own.rank, own.replicate).eval(), {"diverged": 0}
        if method.negates:
            return self._negated(condition, start, on_step), {}
        model = fresh(start, own.rank, own.replicate)
        if method.asks:
            on_step(model, 0, 0, 0.0)
            return model.eval(), {}
        steps = unlearning_steps(self.views(condition), method, condition.settings, own.replicate)
        width = start.model.config.get_text_config().hidden_size
        objective = method.objective(condition.settings, width, own.replicate)
        try:
            return train(start, model, steps, objective, on_step, resources), {}
        except Diverged as stopped:
            return fresh(start, own.rank, own.replicate).eval(), {"diverged": stopped.step}

    def _negated(self, condition: UnlearningCondition, start: VLM, on_step: Watch) -> PeftModel:
        """Task-vector negation: LoRA that has learned the forget set alone, subtracted `steps` times `scale`.

        Ilharco et al. 2023 (arXiv 2212.04089), with adapters as in Zhang et al. 2023 (arXiv 2306.14870).
        """
        rank, seed, settings = condition.start.rank, condition.start.replicate, condition.settings
        learned = memorize(self.vlm(seed), self.views(condition)["forget"], Training(epochs=5, rank=rank, seed=seed))
        task = {name: p.detach().clone() for name, p in learned.named_parameters() if p.requires_grad}
        learned.unload()
        model, steps = fresh(start, rank, seed).eval(), int(settings["steps"])
        for step in range(1, steps + 1):
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if p.requires_grad:  # the product of both factors is what is subtracted: one of them has the sign
                        p.copy_(-settings["scale"] * step * task[name] if "lora_B" in name else task[name])
            on_step(model, step, steps, 0.0)
        return model

    # -- evaluation ------------------------------------------------------------------------------------

    @remembered(4)
    def evaluation_of(self, replicate: int, forget: tuple[int, ...], told: bool = False) -> ForgettingEvaluation:
        """The questions for one replicate and forget set; `told` whom not to know, or not."""
        names = names_of(self.memorization.dataset(replicate)[0])
        instruction = preamble([names[i] for i in forget]) if told else ""
        return ForgettingEvaluation(self.memorization, replicate, forget, instruction)

    def _evaluation(self, condition: UnlearningCondition) -> ForgettingEvaluation:
        return self.evaluation_of(condition.start.replicate, condition.forget, condition.method == PROMPT)

    def looks(self, condition: UnlearningCondition, steps: int) -> dict[int, dict[str, float]]:
        """Three steps on the way, or all that the search looks at."""
        if condition.measures == "search":
            return {step: {"step": step} for step in self._method(condition.method).points}
        shares = CURVE if condition.measures == "thorough" and steps else ()
        return {s: {"step": s} for s in {max(1, round(share * steps)) for share in shares} - {steps}}

    def look(self, model: PeftModel, condition: UnlearningCondition) -> pd.DataFrame:
        """Recall from first test views: group, query, recall; in the search also exposure of the forgotten."""
        evaluation, searching = self._evaluation(condition), condition.measures == "search"
        with for_evaluation(model):
            points = evaluation.recall(model, everybody=searching)
            return points.merge(evaluation.exposure(model), "left") if searching else points

    def prepare(self, condition: UnlearningCondition) -> None:
        """Test views pass the vision tower."""
        self._evaluation(condition)

    def evaluate(self, model: PeftModel, condition: UnlearningCondition, facts: Mapping[str, float]) -> pd.DataFrame:
        """All measures and attacks, or exact match alone; an attack changes the adapter."""
        if condition.measures == "search":
            return pd.DataFrame()
        if "diverged" in facts:
            return pd.DataFrame([{"group": "diverged", "task": "", "query": "", "exact": float("nan")}])
        evaluation, measures = self._evaluation(condition), condition.measures
        # where nothing is trained, the other unlearned modality gives the same records
        key = condition.model_copy(update={"unlearned": "image", "retained": "image"}).slug
        records = self._untrained.get(key)
        if records is None:
            with for_evaluation(model):
                records = evaluation.records(model, measures)
        if not condition.settings.get("steps"):
            self._untrained[key] = records
        if measures != "thorough":
            return records
        attacked = attack(evaluation, model, condition.unlearned, condition.start.replicate)
        return pd.concat([records, attacked], ignore_index=True)

    def curve(self, run: store.Run) -> pd.DataFrame:
        """Recall along the steps: group, query, recall, step."""
        steps = int(run.condition.settings.get("steps", 0))
        if run.condition.measures != "thorough" or "diverged" in run.facts or not steps:
            return run.curve
        return pd.concat([run.curve, first_views(run.records).assign(step=steps)], ignore_index=True)

    # -- search ----------------------------------------------------------------------------------------

    def search_conditions(self, methods: Sequence[str]) -> list[UnlearningCondition]:
        """All runs of the search, those of the start among them; each is looked at after several numbers of steps."""
        tried = [(BEFORE, {}), (RETAIN_ONLY, {})]
        tried += [
            (m, {**own, "steps": max(self.methods[m].points)}) for m in methods for own in self.methods[m].settings()
        ]
        return [
            self.condition(name, settings, unlearned, replicate, measures="search")
            for replicate in TUNING_SEEDS for unlearned in MODALITIES for name, settings in tried
        ]  # fmt: skip

    def tried(self, run: store.Run) -> pd.DataFrame:
        """A row a number of steps: what was tried, unlearned, replicate, and recall by group and query modality."""
        c = run.condition
        settings = json.dumps({k: v for k, v in c.settings.items() if k != "steps"}, sort_keys=True)
        labels = ["method", "settings", "steps", "unlearned", "replicate"]
        own = run.curve
        if not own.empty:  # until its turns are over, a run is the one whose turns never end
            own = own[(own["step"] > 2 * c.settings.get("forget_turns", 0)) | (c.settings.get("steps", 0) == 0)]
        if own.empty:
            return pd.DataFrame(columns=labels)
        points = own.melt(["step", "group", "query"], ["recall", "exposure"], "measure").dropna()
        points["column"] = (
            points["group"].where(points["measure"] == "recall", "exposure") + " asked in " + points["query"]
        )
        wide = points.pivot_table(index="step", columns="column", values="value", sort=False)
        table = wide.reset_index(names="steps")
        table = table.assign(method=c.method, settings=settings, unlearned=c.unlearned, replicate=c.start.replicate)
        return table[[*labels, *wide.columns]]

    @staticmethod
    def choose(tried: pd.DataFrame) -> pd.DataFrame:
        """The rule: one row a method, with its settings, what they did, and whether retain recall was `kept`."""
        key, retained = ["method", "settings", "steps"], [f"retain asked in {m}" for m in MODALITIES]
        before = tried.loc[tried["method"] == BEFORE, retained].mean()
        own = tried.assign(
            forget=tried["forget asked in image"].where(tried["unlearned"] == "image", tried["forget asked in text"]),
            retain=tried[retained].mean(axis=1),
        )
        runs = own.groupby(key)
        table = runs["forget"].mean().to_frame("forget recall")
        worst = (own.groupby([*key, "unlearned"])[retained].mean() - before).min(axis=1)
        table["retain change"] = worst.groupby(level=key).min()
        table["retain recall"] = runs["retain"].mean()
        whole = runs.size() == own["replicate"].nunique() * own["unlearned"].nunique()  # diverged nowhere
        table = table[whole].reset_index()
        grids = [METHODS[method].grid if method in METHODS else {} for method in table["method"]]
        table["off"] = [
            sum(value != grid.get(name, (None,))[0] for name, value in json.loads(settings).items())
            for settings, grid in zip(table["settings"], grids, strict=True)
        ]
        rows = []
        for method in (m for m in METHODS if m in set(table["method"])):
            part = table[table["method"] == method]
            kept = part[part["retain change"] >= -POINTS - 1e-9]
            if kept.empty:
                best = part.sort_values("retain recall", kind="stable").iloc[-1]
            else:
                ties = kept[kept["forget recall"] <= kept["forget recall"].min() + TIE]
                ties = ties[ties["retain recall"] >= ties["retain recall"].max() - TIE]
                best = ties.sort_values(["off", "steps"], kind="stable").iloc[0]
            rows.append({**best.drop("off"), "kept": not kept.empty})
        return pd.DataFrame(rows)


def unlearning_steps(
    views: Mapping[str, Sequence[Example]], method: Method, settings: Mapping[str, float], seed: int
) -> list[Step]:
    """Batches of the parts that a method's loss takes, at a constant learning rate."""
    order = {part: endless(views[part], BATCH, seed + k) for k, part in enumerate(("forget", "retain"))}
    steps = []
    for step in range(1, int(settings["steps"]) + 1):
        rows = {part: next(indices) for part, indices in order.items()}
        rows["refusal"] = rows["forget"]
        batch = {part: [views[part][i] for i in rows[part]] for part in method.parts(step, settings)}
        steps.append(Step(batch, settings["learning_rate"]))
    return steps


def _recalled(run: store.Run) -> dict[str, float]:
    """Recall of those whom a start learned, by modality learned from."""
    recall = recall_by_modality(run.records[~run.records["persona"].isin(run.condition.left_out)])
    return {modality: recall[modality] for modality in parts_of(run.condition.source)}


def memorized(run: store.Run) -> bool:
    """Whether a start has memorized what it learned from."""
    return min(_recalled(run).values()) >= GATE


def check_memorized(run: store.Run) -> None:
    """Raise ValueError, with the recall, when a start has not memorized what it learned from."""
    recall = _recalled(run)
    for modality in recall:
        if recall[modality] < GATE:
            raise ValueError(
                f"{run.condition.slug} has not memorized: it recalls {recall[modality]:.2f} of the names asked with "
                f"{modality} views, and unlearning starts from {GATE} on; train it longer or on more views"
            )
