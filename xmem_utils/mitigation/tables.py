"""The tables of the mitigation analysis: from records (one row a view and task) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from xmem_utils import stats
from xmem_utils.memorization.names import OTHER
from xmem_utils.mitigation.names import (
    AMONG,
    BASELINE,
    BASELINE_START,
    CEILING,
    DESCRIBED,
    FRESH,
    PAIRED,
    PUBLIC,
    STUDY,
    VIEW,
)
from xmem_utils.params import VIEWS

if TYPE_CHECKING:  # tables need no model, so they load none of its libraries
    from xmem_utils.store import Run

SOURCE, TARGET, TOP = "source recall", "target recall", "perception ceiling"
SPLIT = ("perception part", "recall part")  # of the gap
QUANTITIES = [SOURCE, TARGET, TOP, "gap", *SPLIT]
RATIO, BEFORE, START = "transfer ratio", "before", "as memorized"
FORGOT = "not memorized"


def costs(runs: Iterable[Run]) -> pd.DataFrame:
    """What each run took: training tokens (those of the start included), tokens that were only read, seconds. Where
    data is on top of the named views, theirs alone are counted against the budget.

    Training tokens passed forward and back, which is three times the work of reading; `work` is the sum of both in
    tokens read. Raises AssertionError when a run trained for fewer tokens than its budget or on
    after it, or when two methods on the same people had different budgets.
    """
    table = pd.DataFrame([{**run.facts, **run.condition.labels} for run in runs])
    table["work"] = 3 * table["tokens"] + table["read"]
    for (source, replicate, _), part in table.groupby(["source", "replicate", "start epochs"]):
        assert part["budget"].nunique() == 1, (
            f"budgets differ from {source}, replicate {replicate}: {part['budget'].unique()}"
        )
    over = table["counted"] - table["budget"]
    assert (over >= 0).all() and (over < table["last step"]).all(), "a run is off its budget of training tokens"
    return table


def bake_off(runs: Iterable[Run], methods: Collection[str]) -> list[Run]:
    """The runs of some methods in which everybody or nobody is paired, from who memorized as usual."""
    whole = [run for run in _as_usual(runs) if run.condition.paired in (0, run.condition.start.personas)]
    return [run for run in whole if run.condition.method in methods]


def dose_runs(runs: Iterable[Run]) -> list[Run]:
    """The runs that differ by how many people are paired."""
    return [run for run in _as_usual(runs) if run.condition.method in (BASELINE, PAIRED)]


def _as_usual(runs: Iterable[Run]) -> list[Run]:
    runs = list(runs)
    usual = max(run.condition.start.epochs for run in runs)
    return [run for run in runs if run.condition.start.epochs == usual]


def hard(runs: Iterable[Run], memorized: Callable[[Run], float], resamples: int) -> pd.DataFrame:
    """Self-labelling where it is hard: by how long was memorized before (a share of the usual) and method.

    `compare` of target recall with plain training from the same start; beside it `of the start`, source recall there
    (`memorized` of a run), how many labels there were (none: it is plain training), the share that was right, and in
    the end source recall and the share of target views answered with another's name, with labels and without; with
    verdicts.
    """
    runs = [run for run in runs if run.condition.paired in (0, run.condition.start.personas)]
    longest = max(run.condition.start.epochs for run in runs)
    facts = pd.DataFrame(
        [
            run.condition.labels
            | {"of the start": memorized(run)}
            | {k: run.facts[k] for k in ("material", "labels right")}
            for run in runs
        ]
    ).assign(after=lambda table: table["start epochs"] / longest)
    records = pd.concat([run.records.assign(**run.condition.labels) for run in runs], ignore_index=True)
    parts, by = [], ["source", "after", "method"]
    for epochs, own in records.groupby("start epochs", sort=True):
        parts.append(per_persona(own).reset_index().assign(after=epochs / longest))
    people = pd.concat(parts)
    plain = people[people["method"] == BASELINE].set_index(["source", "after", *stats.PERSON])[TARGET]
    people = people[people["method"] != BASELINE].join(plain.rename("plain"), on=plain.index.names)
    table = stats.compare(people.rename(columns={TARGET: "labelled"}), "labelled", "plain", by, resamples)
    table = table.join(people.groupby(by)[SOURCE].mean(), on=by)
    asked = _studied(records).assign(after=lambda table: table["start epochs"] / longest)
    asked = asked[asked["query"] != asked["source"]]
    wrong = (asked["answer"] == OTHER).astype(float).groupby([asked[column] for column in by]).mean()
    table = table.join(wrong.rename("another's name"), on=by)
    plain = wrong.xs(BASELINE, level="method").rename("another's name, plain")
    table = table.join(plain, on=by[:2])
    table = stats.judged(table, "mitigation_hard", people["replicate"].nunique())
    return table.join(facts.groupby(by)[["of the start", "material", "labels right"]].mean(), on=by)


def _studied(records: pd.DataFrame) -> pd.DataFrame:
    """Test views of the study's people."""
    return records[(records["group"] == STUDY) & (records["task"] == VIEW)]


def per_persona(records: pd.DataFrame, measure: str = "said") -> pd.DataFrame:
    """Source and target recall, ceiling, gap and its two parts, by source, method, replicate and persona.

    G = A[s->s] - A[s->t] = (A[s->s] - ceiling) + (ceiling - A[s->t]).
    """
    by = ["source", "method"]
    full, value = stats.with_measures(records), stats.MEASURES[measure]
    table = stats.own_and_other(_studied(full), by, value=value).rename(columns={"own": SOURCE, "other": TARGET})
    table[TOP] = stats.own_and_other(full[full["task"] == CEILING], by, value=value)["other"]
    return _split(table)


def _split(table: pd.DataFrame) -> pd.DataFrame:
    perceived, recalled = table[SOURCE] - table[TOP], table[TOP] - table[TARGET]
    return table.assign(**{"gap": table[SOURCE] - table[TARGET], SPLIT[0]: perceived, SPLIT[1]: recalled})


def with_inference(records: pd.DataFrame, measure: str = "said") -> pd.DataFrame:
    """`per_persona` with what trains nothing: the baseline, asked in other ways.

    Shown target views in the source modality: what it recalls then is the ceiling, so no recall part is left. And
    writing nothing but the study's names, which changes what is said alone.
    """
    people = per_persona(records, measure)
    own = people.xs(BASELINE, level="method", drop_level=False).rename(index={BASELINE: DESCRIBED}, level="method")
    parts = [people, _split(own.assign(**{TARGET: own[TOP]}))]
    asked = records[
        (records["method"] == BASELINE) & records["task"].isin([VIEW, CEILING]) & (records["group"] == STUDY)
    ]
    if measure == "said" and asked["among"].notna().all():
        parts.append(per_persona(asked.assign(exact=asked["among"], method=AMONG)))
    return pd.concat(parts)


def estimates(records: pd.DataFrame, base: pd.DataFrame, start: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every quantity with a 95 % interval: source, method, quantity, estimate, low, high.

    `base` are records of the model before memorizing, with a column source: what it recalled is taken off both sides of
    the transfer ratio, and whom it knew stands beside the methods as method "before". `start` are those of the
    models that most methods go on from: source and target recall as method "as memorized". Public figures have a
    quantity for each query modality. Gap, its parts and transfer ratio are of the replicates that memorized.
    """
    before = stats.own_and_other(_studied(base), ["source"]).rename(columns={"own": SOURCE, "other": TARGET})
    parts = []
    for (source, method), people in with_inference(records).groupby(level=["source", "method"], sort=False):
        own = people.droplevel("method")
        table = stats.summary(own[QUANTITIES], resamples=resamples)
        memorized = own[own[SOURCE].groupby(level="replicate").transform("mean") >= stats.GATE]
        table = table.reindex([*QUANTITIES, RATIO])
        table.loc[QUANTITIES[3:]] = np.nan
        if len(memorized):
            table.loc[QUANTITIES[3:]] = stats.summary(memorized[QUANTITIES[3:]], resamples=resamples)
            moved = memorized[[SOURCE, TARGET]] - before.reindex(memorized.index)
            table.loc[RATIO] = stats.ratio(moved, TARGET, SOURCE, resamples)
        parts.append(table.reset_index(names="quantity").assign(source=source, method=method))
    shown = _studied(start)
    shown = shown.assign(quantity=np.where(shown["query"] == shown["source"], SOURCE, TARGET), method=START)
    parts.append(stats.estimate(shown, ["source", "method"], ["quantity"], resamples=resamples))
    known = pd.concat([base.assign(method=BEFORE), records])
    known = known[known["group"] == PUBLIC].assign(quantity=lambda table: f"{PUBLIC}, " + table["query"])
    known = stats.estimate(known, ["source", "method", "quantity"], resamples=resamples)
    described = known[known["method"] == BASELINE].assign(method=DESCRIBED)  # the same weights
    parts.append(pd.concat([known, described]).sort_index(kind="stable"))
    return pd.concat(parts, ignore_index=True)[["source", "method", "quantity", *stats.INTERVAL]]


def comparison(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """`_comparison` of names said, and closed-set below it. Whether a method memorized, names said tell."""
    said, first = (_comparison(records, measure, resamples) for measure in ("said", "closed-set"))
    memorized = said.set_index(["source", "method"])["memorized"]
    first = first.drop(columns="memorized").join(memorized, on=memorized.index.names)
    table, replicates = pd.concat([said, first], ignore_index=True), records["replicate"].nunique()
    return stats.judged(table, "mitigation_tests", replicates, _verdict, of=f"change of {TARGET} ")


def _comparison(records: pd.DataFrame, measure: str, resamples: int) -> pd.DataFrame:
    """Every method against the baseline, on the same people: change of target recall and of the gap, intervals, tests.

    What trains from the start is held against the baseline from the start. p is that of the change of target recall.
    The verdict needs source recall to stay at the gate in every replicate ("not memorized" otherwise).
    """
    people = with_inference(records, measure).reset_index()
    people["against"] = [BASELINE_START if m in FRESH and m != BASELINE_START else BASELINE for m in people["method"]]
    by, on = ["source", "method", "against"], ["source", "against", *stats.PERSON]
    baseline = people.drop(columns="against").rename(columns={"method": "against"})[[*on, TARGET, "gap"]]
    pairs = people[people["method"] != BASELINE].merge(baseline, on=on, suffixes=("", " before"))
    pairs = pairs.assign(change=pairs[TARGET] - pairs[f"{TARGET} before"]).sort_values("source", kind="stable")
    names = {quantity: stats.named(f"change of {quantity}") for quantity in (TARGET, "gap")}
    changes = [stats.compare(pairs, quantity, f"{quantity} before", by, resamples).rename(columns=own)
               for quantity, own in names.items()]  # fmt: skip
    table = changes[0].merge(changes[1].drop(columns=["p", "people p"]), on=by)
    replicates = pairs.groupby([*by, "replicate"])[SOURCE].mean().groupby(level=by)
    table = table.join(replicates.agg(**{SOURCE: "mean", "lowest source": "min"}), on=by)
    table["memorized"] = table["lowest source"] >= stats.GATE
    changed = [*names[TARGET].values(), *names["gap"].values()]
    return table.assign(measure=measure)[["measure", *by, SOURCE, TARGET, *changed, "p", "people p", "memorized"]]


def _verdict(row: pd.Series) -> str:
    return stats.verdict(row, of=f"change of {TARGET} ") if row["memorized"] else FORGOT


def doses(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Target recall by the number of people paired: of everybody, of the paired and of the others, with intervals.

    Of the replicates in which all these numbers were paired. `change` is against nobody paired, on the same people,
    with interval, test and verdict; `source recall` is that of everybody.
    """
    shown, by = _studied(records), ["source", "paired", "group"]
    asked = shown.groupby("replicate")["paired"].nunique()
    shown = shown[shown["replicate"].isin(asked.index[asked == asked.max()])]
    own = shown[shown["query"] == shown["source"]].groupby(by[:2])["exact"].mean().rename(SOURCE)
    people = stats.own_and_other(shown, by[:2])["other"].rename("dose").reset_index()
    none = people[people["paired"] == 0].rename(columns={"dose": "none"}).drop(columns="paired")
    people = people.merge(none, on=["source", *stats.PERSON])
    halves = people.assign(group=np.where(people["persona"] < people["paired"], "paired", "not paired"))
    groups = pd.concat([people.assign(group="everybody"), halves]).sort_values(by[:2], kind="stable")
    table = stats.compare(groups, "dose", "none", by, resamples).join(own, on=by[:2])
    # Nobody paired is the baseline itself, and where everybody is, "everybody" would be tested twice.
    whole = (table["group"] == "everybody") & (table.groupby(by[:2])["group"].transform("size") == 2)
    tested = (table["paired"] > 0) & ~whole
    table["p"] = table["p"].where(tested)
    table = stats.judged(table, "mitigation_pairs", shown["replicate"].nunique())
    table["verdict"] = table["verdict"].where(tested, "")
    table = table.rename(columns=stats.named("change"))
    level = stats.estimate(groups, ["source", "paired"], ["group"], "dose", resamples)
    table = table.drop(columns=["dose", "dose low", "dose high"]).merge(level, on=by)
    change = stats.named("change").values()
    return table[[*by, SOURCE, *stats.INTERVAL, *change, "p", "people p", "p holm", "verdict"]]


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `comparison`."""
    change = [row[f"change of {TARGET}{end}"] for end in ("", " low", " high")]
    return (
        f"Names from {VIEWS[row['source']]}, {row['method']}, {row['measure']}: source recall {row[SOURCE]:.2f}, "
        f"target recall {row[TARGET]:.2f}; against {row['against']} {change[0]:+.2f} "
        f"[{change[1]:+.2f}, {change[2]:+.2f}], p = {row['p holm']:.4f} (Holm): {row['verdict']}."
    )
