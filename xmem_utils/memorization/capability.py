"""Does the gap close as models get better? Tables over models, and over how many people a base model knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.memorization.tables import RECALL, curves, gaps
from xmem_utils.params import MODALITIES, Profile, other
from xmem_utils.perception import readout
from xmem_utils.pretraining.evaluation import ACCEPTANCE_THRESHOLDS, acceptance
from xmem_utils.replicates import rungs, seeds_of
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
    holm,
    interval_of,
    own_and_other,
    values,
    verdict,
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


def recall_estimates(views: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall in the source and in the target modality."""
    return _by_side(views, "source recall", "target recall", resamples)


def gap_estimates(table: pd.DataFrame) -> pd.DataFrame:
    """Gap and transfer ratio of the runs that memorized, from `tables.gaps`; NaN when none did."""
    ends, by = INTERVAL[1:], ["measure", "source"]
    gap = table[[*by, "gap", *ends]].rename(columns={"gap": "estimate"}).assign(quantity="gap")
    ratio = {"transfer ratio": "estimate"} | {f"ratio {end}": end for end in ends}
    ratio = table[[*by, *ratio]].rename(columns=ratio).assign(quantity="transfer ratio")
    return pd.concat([gap, ratio])[COLUMNS]


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

    `points` are learning curves with a model column. One row a model and source; the interval is over replicates.
    """
    rows = []
    wide = points.pivot_table(index=["model", "source", REPLICATE, "epoch"], columns="query", values="recall")
    for (model, source), part in wide.groupby(level=["model", "source"], sort=False):
        x, y = part[source], part[other(source)]
        slope = (x * y).groupby(level=REPLICATE).sum() / (x * x).groupby(level=REPLICATE).sum().replace(0, np.nan)
        rows.append({"model": model, "source": source} | interval_of(slope.to_numpy()))
    return pd.DataFrame(rows, columns=["model", "source", *INTERVAL])


def changes(persons: pd.DataFrame, models: Sequence[str], resamples: int) -> pd.DataFrame:
    """How the gap changes from each model to the next, on the same people, with verdicts.

    `persons` is the recall by persona of all models. A pair of which one did not memorize is NaN, and so is one
    without replicates in common.
    """
    people = own_and_other(persons, ["measure", "model", "source"], value="value").sort_index()
    gap = people["own"] - people["other"]
    reached = people.loc["said", "own"].groupby(level=["model", "source", REPLICATE]).mean() >= GATE
    pairs = list(pairwise(models)) + ([(models[0], models[-1])] if len(models) > 2 else [])
    rows = []
    for measure, source, (first, second) in product(RECALL, MODALITIES, pairs):
        row = {"measure": measure, "source": source, "from": first, "to": second}
        both = {"first": gap[measure, first, source], "second": gap[measure, second, source]}
        both = pd.DataFrame(both).dropna().assign(source=source)
        if reached[first, source].all() and reached[second, source].all() and len(both):
            row |= compare(both, "second", "first", ["source"], resamples).iloc[0].drop("source")
        rows.append(row)
    kept = ["difference", *INTERVAL[1:], "p", "people p"]
    table = pd.DataFrame(rows).reindex(columns=["measure", "source", "from", "to", *kept])
    table["p holm"] = holm(table, "capability_changes")
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    return table.rename(columns={"difference": "change of gap"})


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `changes`."""
    who = f"Learned from {row['source']}, {row['measure']}, {row['from']} to {row['to']}:"
    if np.isnan(row["change of gap"]):
        return f"{who} one of them did not memorize (source recall below {GATE}), so the gaps are not compared."
    moved = {SUPPORTED: "the gap grows", REVERSED: "the gap shrinks"}.get(row["verdict"], row["verdict"])
    return (
        f"{who} {moved}; {row['change of gap']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], "
        f"p = {row['p holm']:.4f} (Holm), {len(values(row['each']))} replicate(s)."
    )


def thresholds(models: Sequence[str]) -> pd.DataFrame:
    """What each embedded base reached in notebook 00, beside the acceptance thresholds; other models are left out."""
    table = pd.DataFrame({"needed": ACCEPTANCE_THRESHOLDS})
    for base in (f"{model}-{seed}" for model in models for seed in seeds_of(model)):
        table[base] = acceptance(_evaluation(base)).set_index("quantity")["reached"]
    return table


def _evaluation(base: str) -> pd.DataFrame:
    return pd.read_csv(paths.BASE_MODELS / base / "evaluation.csv")


# -- the knowledge ladder --------------------------------------------------------------------------


def knowledge(estimates: pd.DataFrame) -> pd.DataFrame:
    """`estimates` of the rungs with how many figures each knows, and what each base's evaluation says of names."""
    rows = []
    for family, known in rungs().items():
        evaluations = [_evaluation(f"{family}-{seed}").assign(replicate=seed) for seed in seeds_of(family)]
        table = pd.concat(evaluations).groupby(["query", "ability", REPLICATE])["accuracy"].mean()
        rows.append(estimates[estimates["model"] == family].assign(known=known))
        for source, ability in product(MODALITIES, ("alignment probe", "name, known in both")):
            if (other(source), ability) in table.index.droplevel(REPLICATE):
                each = interval_of(table[other(source), ability].to_numpy())
                labels = {"known": known, "model": family, "measure": "said", "source": source, "quantity": ability}
                rows.append(pd.DataFrame([labels | each]))
    return pd.concat(rows, ignore_index=True)[["known", "model", *COLUMNS]]
