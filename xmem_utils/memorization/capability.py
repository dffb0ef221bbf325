"""Does the gap close as models get better? Tables over models, and over how many people a base model knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.memorization.tables import RECALL, curves, gaps
from xmem_utils.params import MODALITIES, VIEWS, Profile, other
from xmem_utils.perception import readout
from xmem_utils.pretraining.evaluation import ACCEPTANCE_THRESHOLDS, acceptance
from xmem_utils.replicates import replicates_of, rungs, seeds_of
from xmem_utils.stats import (
    GATE,
    INTERVAL,
    PERSON,
    REPLICATE,
    REVERSED,
    SUPPORTED,
    by_measure,
    compare,
    estimate,
    interval_of,
    judged,
    named,
    own_and_other,
    values,
)

COLUMNS = ["measure", "source", "quantity", *INTERVAL]


def all_models(
    names: Sequence[str], profile: Profile, rank: int, learning_rate: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What `per_model` gives, of several models; the bases of one at a time are in memory."""
    parts = [per_model(Memorization(name, profile, rank, learning_rate), name) for name in names]
    return tuple(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))


def per_model(study: Memorization, name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Everything about one model: its estimates (long), its recall by persona and measure, its learning curves."""
    runs = study.run_all(study.conditions())
    records, base, resamples = study.collect(runs), study.base_records(), study.profile.resamples
    views = by_measure(records[records["task"] == "view"], RECALL)
    parts = [recall_estimates(views, resamples), gap_estimates(gaps(records, base, resamples))]
    if study.drawn:
        seen = [readout(study.vlm(r), study.dataset(r)[0]).assign(replicate=r) for r in study.replicates]
        parts.append(readout_estimates(pd.concat(seen), resamples))
    size = sum(p.numel() for p in study.vlm(study.replicates[0]).model.parameters())
    labels = {"model": name, "parameters": size}
    estimates = pd.concat(parts, ignore_index=True).assign(**labels)[[*labels, *COLUMNS]]
    persons = views.groupby(["measure", "source", *PERSON, "query"], as_index=False)["value"].mean()
    return estimates, persons.assign(**labels), curves(runs).assign(**labels)


def real_parts(models: Sequence[str]) -> pd.DataFrame | None:
    """Estimates of the models of real parts, as `make real` left them; none where some of `models` are these."""
    if not paths.REAL_CAPABILITY.exists():
        return None
    table = pd.read_csv(paths.REAL_CAPABILITY)
    return None if set(table["model"]) & set(models) else table


def recall_estimates(views: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall in the source and in the target modality."""
    return _by_side(views, "source recall", "target recall", resamples)


def gap_estimates(table: pd.DataFrame) -> pd.DataFrame:
    """Gap and transfer ratio of the runs that memorized, from `tables.gaps`; NaN when none did."""
    ratio = {"transfer ratio": "estimate"} | {theirs: own for own, theirs in named("ratio").items() if own in INTERVAL}
    gap = table.rename(columns={"gap": "estimate"}).assign(quantity="gap")[COLUMNS]
    other_ends = table.drop(columns=INTERVAL[1:]).rename(columns=ratio).assign(quantity="transfer ratio")
    return pd.concat([gap, other_ends[COLUMNS]])


def readout_estimates(seen: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Attributes read right, mean over axes, from views of the source and of the target modality."""
    both = pd.concat([seen.assign(source=source, value=seen["correct"]) for source in MODALITIES])
    both = both.assign(measure="multiple choice")
    return _by_side(both, "attributes from source", "attributes from target", resamples)


def _by_side(records: pd.DataFrame, own: str, across: str, resamples: int) -> pd.DataFrame:
    side = np.where(records["query"] == records["source"], own, across)
    return estimate(records.assign(quantity=side), ["measure", "source"], ["quantity"], "value", resamples)


def slopes(points: pd.DataFrame) -> pd.DataFrame:
    """Target recall per unit of source recall, least squares through the origin over each run's checkpoints.

    `points` are learning curves with a model column. One row a model and source; the interval is over replicates, of
    those that memorized the source.
    """
    rows = []
    wide = points.pivot_table(index=["model", "source", REPLICATE, "epoch"], columns="query", values="recall")
    for (model, source), part in wide.groupby(level=["model", "source"], sort=False):
        ends = part[source].groupby(level=REPLICATE).transform("last")
        x, y = part.loc[ends >= GATE, source], part.loc[ends >= GATE, other(source)]
        slope = (x * y).groupby(level=REPLICATE).sum() / (x * x).groupby(level=REPLICATE).sum().replace(0, np.nan)
        rows.append({"model": model, "source": source} | interval_of(slope.to_numpy()))
    return pd.DataFrame(rows, columns=["model", "source", *INTERVAL])


def changes(persons: pd.DataFrame, models: Sequence[str], resamples: int) -> pd.DataFrame:
    """By how much the gap is smaller in each next model, and in the last than in the first, with verdicts.

    `persons` is the recall by persona of all models. Of replicates that both memorized, since they have the same
    people; a pair without any is NaN.
    """
    people = own_and_other(persons, ["measure", "model", "source"], value="value").sort_index()
    reached = people.loc["said", "own"].groupby(level=["model", "source", REPLICATE]).transform("mean") >= GATE
    gap = (people["own"] - people["other"])[reached.reindex(people.index.droplevel("measure")).to_numpy()]
    wide = gap.unstack("model").reindex(columns=models)
    groups = dict(list(wide.groupby(level=["measure", "source"])))
    pairs = list(pairwise(models)) + ([(models[0], models[-1])] if len(models) > 2 else [])
    rows = []
    for measure, source, (first, second) in product(RECALL, MODALITIES, pairs):
        row = {"measure": measure, "source": source, "from": first, "to": second}
        both = groups.get((measure, source), wide[:0])[[first, second]].dropna().set_axis(["first", "second"], axis=1)
        if len(both):
            row |= compare(both, "first", "second", ["source"], resamples).iloc[0].drop("source")
        rows.append(row)
    kept = ["difference", *INTERVAL[1:], "p", "people p"]
    table = pd.DataFrame(rows).reindex(columns=["measure", "source", "from", "to", *kept])
    table = judged(table, "capability_changes", persons[REPLICATE].nunique())
    return table.rename(columns={"difference": "decrease of gap"})


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `changes`."""
    who = f"Learned from {row['source']}, {row['measure']}, {row['from']} to {row['to']}:"
    if np.isnan(row["decrease of gap"]):
        return f"{who} no replicate in common that memorized (source recall {GATE}), so the gaps are not compared."
    moved = {SUPPORTED: "the gap shrinks", REVERSED: "the gap grows"}.get(row["verdict"], row["verdict"])
    return (
        f"{who} {moved}, by {row['decrease of gap']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], "
        f"p = {row['p holm']:.4f} (Holm), {len(values(row['each']))} replicate(s)."
    )


def slope_sentence(slopes: pd.DataFrame, models: Sequence[str]) -> str:
    """The slopes of the two ends of the ladder beside what is reported of Gemma 3, in words."""
    found = slopes.set_index(["model", "source"])["estimate"]
    found = found.map("{:.2f}".format).replace("nan", "none (not memorized)")
    ends = {source: [found[model, source] for model in (models[0], models[-1])] for source in MODALITIES}
    grown = [f"{' to '.join(pair)} ({VIEWS[source]})" for source, pair in ends.items()]
    return (
        f"Of Gemma 3 it is reported (second hand, not checked by us) that the slope is about unchanged from 4B to 27B "
        f"parameters. Here, from {models[0]} to {models[-1]}, it goes from {' and from '.join(grown)}."
    )


def thresholds(models: Sequence[str]) -> pd.DataFrame:
    """What each embedded base reached in notebook 00, beside the acceptance thresholds; other models are left out."""
    table = pd.DataFrame({"needed": ACCEPTANCE_THRESHOLDS})
    for base in (f"{model}-{seed}" for model in models for seed in seeds_of(model)):
        table[base] = acceptance(_evaluation(base)).set_index("quantity")["reached"]
    return table


def _evaluation(base: str) -> pd.DataFrame:
    return pd.read_csv(paths.BASE_MODELS / base / "evaluation.csv")


def against_probe(persons: pd.DataFrame) -> pd.DataFrame:
    """Target recall of every embedded base against its alignment probe: figures known in the source alone, asked in the
    target. A row a measure, model, replicate and source, from recall by persona; with Spearman's rank correlation over
    all bases of a measure and source."""
    by, same = ["measure", "model", "source", REPLICATE], ["measure", "source"]
    people = own_and_other(persons, by[:3], value="value")["other"].groupby(level=by).mean().rename("target recall")
    bases = [(model, seed) for model in persons["model"].unique() for seed in seeds_of(model)]
    found = [_evaluation(f"{model}-{seed}").assign(model=model, replicate=seed) for model, seed in bases]
    if not found:
        return pd.DataFrame(columns=[*by, "target recall", "probe", "Spearman"])
    probe = pd.concat(found).query("ability == 'alignment probe'").assign(source=lambda t: t["query"].map(other))
    probe = probe.rename(columns={"accuracy": "probe"})[[*by[1:], "probe"]]
    table = people.reset_index().merge(probe, on=by[1:])
    ranks = table.groupby(same)[["probe", "target recall"]].corr("spearman").xs("probe", level=2)
    return table.join(ranks["target recall"].rename("Spearman"), on=same)


# -- the knowledge ladder --------------------------------------------------------------------------


def knowledge(estimates: pd.DataFrame, replicates: int) -> pd.DataFrame:
    """`estimates` of the rungs with how many figures each knows, and what each base's evaluation says of names."""
    rows = []
    for family, known in rungs().items():
        seeds = replicates_of(family, replicates)
        evaluations = [_evaluation(f"{family}-{seed}").assign(replicate=seed) for seed in seeds]
        table = pd.concat(evaluations).groupby(["query", "ability", REPLICATE])["accuracy"].mean()
        rows.append(estimates[estimates["model"] == family].assign(known=known))
        for source, ability in product(MODALITIES, ("alignment probe", "name, known in both")):
            if (other(source), ability) in table.index.droplevel(REPLICATE):
                each = interval_of(table[other(source), ability].to_numpy())
                labels = {"known": known, "model": family, "measure": "said", "source": source, "quantity": ability}
                rows.append(pd.DataFrame([labels | each]))
    return pd.concat(rows, ignore_index=True)[["known", "model", *COLUMNS]]
