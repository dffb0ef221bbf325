"""One experiment, whatever it asks: from conditions to stored runs, with one bar, one store, one search.

A subclass says which conditions there are, how one is trained and what its model is asked; the rest is here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from peft import PeftModel

from xmem_utils import fingerprint, paths, store
from xmem_utils.checkpoint import adapter_writer
from xmem_utils.params import TUNING_BASE, TUNING_SEEDS, Profile, shard_of
from xmem_utils.paths import BASE_MODELS
from xmem_utils.processes import is_main
from xmem_utils.progress import Bar, progress
from xmem_utils.replicates import LADDER, described, seeds_of
from xmem_utils.store import Condition
from xmem_utils.train import Resources
from xmem_utils.vlm.adapters import load_adapter
from xmem_utils.vlm.bases import Bases
from xmem_utils.vlm.load import VLM, resolve_model

BATCH = 32
Settings = dict[str, float]


@dataclass(frozen=True)
class Method:
    """A row of an experiment's table of methods. Fields out of comparison shape no weights."""

    name: str
    what: str = field(default="", compare=False)  # in one sentence
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict, compare=False)  # what the search tries

    def settings(self) -> list[Settings]:
        """All settings that the search tries."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


def remembered(few: int) -> Callable:
    """A method whose latest `few` results are kept on the instance, by its arguments (which are hashable)."""

    def decorated(method: Callable) -> Callable:
        @wraps(method)
        def wrapper(self: object, *given: object) -> object:
            known = self.__dict__.setdefault(f"_{method.__name__} remembered", {})
            if given not in known:
                made = method(self, *given)
                while len(known) >= few:
                    known.pop(next(iter(known)))
                known[given] = made
            return known[given]

        return wrapper

    return decorated


class Watch:
    """Called after every step of a training: moves its bar, and asks for recall where the curve has a point."""

    def __init__(self, experiment: Experiment, condition: Condition) -> None:
        self._experiment, self._condition = experiment, condition
        self._bar: Bar | None = None
        self.notes: dict[float, list[dict[str, Any]]] = {}  # by step; saved with a checkpoint

    def __call__(self, model: PeftModel, step: int, steps: int, loss: float) -> None:
        """Step `step` of `steps` is done."""
        if self._bar is None:
            shown = is_main() and steps > 0
            self._bar = Bar(steps, f"{self._experiment.doing(self._condition)}, step", shown=shown)
        self._bar.reach(step)
        if (at := self._experiment.looks(self._condition, steps).get(step)) is not None:
            self.notes[step] = self._experiment.look(model, self._condition).assign(**at).to_dict("records")

    def curve(self) -> pd.DataFrame:
        """All points, one below the other."""
        return pd.DataFrame([row for rows in self.notes.values() for row in rows])


class Experiment(ABC):
    """Runs conditions on one model, or the bases of a family; what the store has is not made again.

    The processes of one `accelerate launch` make the same experiment and the same calls: they train together, and each
    evaluates all views, since a sharded model needs everybody in every pass. `resources` are no part of a condition.
    Raises ValueError for a model that gives no answers.
    """

    folder: ClassVar[str]  # of its runs, under paths.RUNS
    notebook: ClassVar[str]
    methods: ClassVar[fingerprint.Table] = fingerprint.Table()

    def __init__(self, bases: Bases, profile: Profile, resources: Resources | None = None) -> None:
        self.vlm, self.profile, self.resources = bases, profile, resources or Resources()

    @property
    def replicates(self) -> tuple[int, ...]:
        """The replicates of the study: each has a base, people and a seed of its own."""
        return self.vlm.replicates(self.profile.replicates)

    @property
    def side_replicates(self) -> tuple[int, ...]:
        """Those that answer side questions, too."""
        return self.replicates[: self.profile.side_replicates]

    @property
    def unit(self) -> str:
        """What a replicate is here, in words."""
        return described(self.vlm.name, self.replicates)

    # -- what a subclass says --------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def of(cls, p: Any, resources: Resources | None = None) -> Self:
        """The experiment that a notebook's parameters describe, its model loaded."""

    @abstractmethod
    def conditions(self, p: Any) -> list[Condition]:
        """All conditions that a notebook's parameters ask for."""

    @abstractmethod
    def train(self, condition: Condition, on_step: Watch, resources: Resources) -> tuple[PeftModel, dict[str, float]]:
        """The trained model in eval mode, and facts about the training (steps, tokens, ...)."""

    @abstractmethod
    def evaluate(self, model: PeftModel, condition: Condition, facts: Mapping[str, float]) -> pd.DataFrame:
        """Records: long format, a row a view and question."""

    def looks(self, condition: Condition, steps: int) -> dict[int, dict[str, float]]:
        """Of `steps` steps those after which recall is asked, with columns that the points get."""
        return {}

    def look(self, model: PeftModel, condition: Condition) -> pd.DataFrame:
        """Recall along the training."""
        raise NotImplementedError

    def curve(self, run: store.Run) -> pd.DataFrame:
        """Recall along the training, its end included."""
        return run.curve

    @abstractmethod
    def prepare(self, condition: Condition) -> None:
        """What must be done before an adapter is on the base model, or FSDP spreads it: encode what is asked."""

    def doing(self, condition: Condition) -> str:
        """What a training does, for its bar."""
        return self.folder

    def ordered(self, conditions: Sequence[Condition]) -> Sequence[Condition]:
        """The order in which conditions run best."""
        return conditions

    def base(self, condition: Condition) -> VLM:
        """The model that a condition's adapter is on."""
        return self.vlm(condition.replicate)

    # -- once for all ----------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """Where runs are stored."""
        return paths.RUNS / self.folder

    @classmethod
    def code(cls, method: Method | None = None) -> str:
        """Hash of the code that trains a condition, that of its method's own losses included."""
        own = fingerprint.code_of(cls.train, cls)
        return fingerprint.values_of([own, method]) if method else own

    @classmethod
    def codes(cls) -> list[str]:
        """Hashes of the code of all methods, or of the one way there is."""
        return [cls.code(method) for method in cls.methods.values() or (None,)]

    @classmethod
    def evaluation(cls) -> str:
        """Hash of the code that evaluates."""
        return fingerprint.code_of(cls.evaluate, cls)

    @fingerprint.by_content
    def run(self, condition: Condition) -> store.Run:
        """The run of a condition, trained and evaluated now if need be."""
        models: list[PeftModel] = []
        saved = self.root / f".{condition.slug}.checkpoint"
        resources = replace(self.resources, checkpoint=saved) if self.resources.save_every else self.resources

        def train() -> tuple[Callable[[Path], None], pd.DataFrame, dict[str, float]]:
            self.prepare(condition)
            watch = Watch(self, condition)
            model, facts = self.train(condition, watch, resources)
            models.append(model)
            return adapter_writer(model), watch.curve(), facts

        def evaluate() -> pd.DataFrame:
            if not models:
                self.prepare(condition)
                models.append(self.model_of(found))
            return self.evaluate(models[0], condition, found.facts)

        try:
            found = store.trained(condition, train, self.root)
            if is_main():
                saved.unlink(missing_ok=True)
            run = store.evaluated(found, self.evaluation(), evaluate)
            return replace(run, curve=self.curve(run))
        finally:
            for model in models:
                model.unload()  # leaves the base model as it was

    def untrained(self, replicate: int, about: object, ask: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """What a replicate's base answers before anything is trained, stored like a run's records, with the replicate
        as a column. `about` (plain data) is what beside the base and the code that evaluates determines it."""
        vlm = self.vlm(replicate)
        key = fingerprint.values_of([vlm.fingerprint, self.evaluation(), about])
        name, root = f"{Path(vlm.name).name}-{self.folder}-{key}", paths.RUNS / "untrained"
        return store.kept(root / f"{name}.parquet", ask, name, root).assign(replicate=replicate)

    def run_all(self, conditions: Sequence[Condition]) -> list[store.Run]:
        """The runs of some conditions, with a bar over them."""
        runs = {c.slug: self.run(c) for c in progress(self.ordered(conditions), self.folder)}
        return [runs[c.slug] for c in conditions]

    def model_of(self, run: store.Trained) -> PeftModel:
        """The model of a run, in eval mode; `.unload()` gives the base back."""
        return load_adapter(self.base(run.condition).model, run.adapter).eval()

    @staticmethod
    def collect(runs: Iterable[store.Run]) -> pd.DataFrame:
        """All records of some runs, with what identifies the condition as columns."""
        return pd.concat([run.records.assign(**run.condition.labels) for run in runs], ignore_index=True)

    # -- settings by search, on people whom no reported number uses ------------------------------------

    def search_conditions(self, methods: Sequence[str]) -> list[Condition]:
        """All runs of the search for some methods."""
        raise NotImplementedError

    def tried(self, run: store.Run) -> pd.DataFrame:
        """What the search learns from a run: long, with columns method and settings (JSON)."""
        raise NotImplementedError

    @staticmethod
    def choose(tried: pd.DataFrame) -> pd.DataFrame:
        """The rule: one row a method, with its settings and whether it `kept` what it must."""
        raise NotImplementedError

    def search(self, methods: Sequence[str], shard: str = "1/1") -> pd.DataFrame:
        """Try the settings of some methods; with a shard, a part alone. What was run before is read."""
        runs = self.run_all(shard_of(self.search_conditions(methods), shard))
        return pd.concat([self.tried(run) for run in runs], ignore_index=True)

    @classmethod
    def table(cls, model: str, name: str = "settings") -> pd.DataFrame:
        """What the search tried ("search") or chose for a model; without one of its own, for the study's."""
        own = cls._own_table(model, name)
        return pd.read_csv(own if own.exists() else cls._own_table(LADDER, name))

    @classmethod
    def searched(cls, model: str) -> bool:
        """Whether a model has had a search of its own."""
        return cls._own_table(model, "settings").exists()

    @classmethod
    def _own_table(cls, model: str, name: str) -> Path:
        return tuning_folder(model) / f"{cls.folder}_{name}.csv"

    def write(self, tried: pd.DataFrame) -> pd.DataFrame:
        """Write a search, of all methods or of some, and what was chosen into the model's folder; returns the latter.

        Rows of other methods stay as they are. Column weights: on which they were found.
        """
        weights, model = self.vlm(TUNING_SEEDS[0]).fingerprint, self.vlm.name
        chosen = self.choose(tried).assign(weights=weights)
        place = {name: i for i, name in enumerate(self.methods)}
        for name, table in (("search", tried), ("settings", chosen)):
            if self.searched(model):
                kept = self.table(model, name)
                table = pd.concat([kept[~kept["method"].isin(table["method"])], table])
            table = table.sort_values("method", key=lambda names: names.map(place).fillna(-1), kind="stable")
            table.to_csv(self._own_table(model, name), index=False, float_format="%.4f")
        return chosen

    @classmethod
    def settings_of(cls, model: str, methods: Sequence[str]) -> dict[str, Settings]:
        """Settings by method, as the search chose them. Raises ValueError for a method with settings but no search."""
        table, out = cls.table(model).set_index("method"), {}
        for name in methods:
            like = getattr(cls.methods[name], "like", "") or name
            if like in table.index:
                row = table.loc[like]
                out[name] = json.loads(row["settings"]) | ({"steps": float(row["steps"])} if "steps" in row else {})
            elif cls.methods[like].grid:
                command = f"python -m xmem_utils search {cls.notebook} --model {model} --method {like!r}"
                raise ValueError(f"no settings for {like}: run `{command}` first")
            else:
                out[name] = {}
        return out


def tuning_folder(model: str) -> Path:
    """Where a model's tables of tuning lie: in its folder, of a family in that of its tuning base (there or not)."""
    family = BASE_MODELS / f"{model}-{TUNING_BASE}"
    return family if seeds_of(model) or family.is_dir() else Path(resolve_model(model))


def summary(records: pd.DataFrame) -> dict[str, float]:
    """Recall of names by query modality, of whom an experiment is about: what a list of runs shows."""
    if records.empty:
        return {}
    shown = records[records["task"].isin(["view", "hop 1"]) & records["group"].isin(["study", "forget"])]
    return shown.groupby("query")["exact"].mean().add_prefix("recall asked in ").to_dict()
