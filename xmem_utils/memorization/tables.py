"""The tables of the gap analysis: from records (one row a view and task) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from xmem_utils.memorization.names import ANSWERS
from xmem_utils.params import MODALITIES, other
from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.stats import (
    GATE,
    INTERVAL,
    PERSON,
    REPLICATE,
    by_measure,
    compare,
    estimate,
    judged,
    named,
    own_and_other,
    ratio,
)

if TYPE_CHECKING:  # tables need no model, so they load none of its libraries
    from xmem_utils.store import Run

RECALL = ("said", "closed-set")  # the measures of the gap
NEAR = ("exposure", "MRR")
DOSES = {"views": "training views per persona, equal steps", "data": "training views per persona, steps grow along",
         "people": "people, each learned as usual", "steps": "times the usual steps"}  # fmt: skip


def matrix(trained: pd.DataFrame, base: pd.DataFrame, personas: int, resamples: int) -> pd.DataFrame:
    """Recall by measure, source, query modality and task, with intervals; source "none" is the base model.

    `trained` and `base` are records; chance is one over the number of personas.
    """
    records = pd.concat([trained, base.assign(source="none")])
    records = by_measure(records[records["query"] != "none"], RECALL).dropna(subset="value")
    table = estimate(records, ["measure", "source"], ["query", "task"], "value", resamples)
    return table.assign(chance=1 / personas)


def rank_table(trained: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exposure in bits and mean reciprocal rank by source and query modality."""
    views = by_measure(trained[trained["task"] == "view"], NEAR)
    return estimate(views, ["measure", "source"], ["query"], "value", resamples)


def by_length(trained: pd.DataFrame, tokens: pd.Series, resamples: int) -> pd.DataFrame:
    """Recall and exposure by how many tokens a name has, and how many people's have so many.

    `tokens` is by replicate and persona.
    """
    views = by_measure(trained[trained["task"] == "view"], (*RECALL, "exposure"))
    views = views.join(tokens.rename("tokens"), on=PERSON)
    table = estimate(views, ["measure", "source"], ["query", "tokens"], "value", resamples)
    return table.join(tokens.value_counts().rename("people"), on="tokens")


_NAMES = {"own": "source recall", "other": "target recall", "difference": "gap"}
_RATIO = named("ratio", "estimate") | {"estimate": "transfer ratio"}
GAPS = ["measure", "source", "target", "replicates", "memorized", *_NAMES.values(), *INTERVAL[1:], "p", "people p",
        "p holm", "verdict", *_RATIO.values()]  # fmt: skip


def gaps(trained: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Gap by measure and source, with intervals, test and verdict, and the transfer ratio.

    Replicates in which names said do not reach the gate in the source are left out; `memorized` counts the others.
    """
    views = by_measure(trained[trained["task"] == "view"], RECALL)
    asked = by_measure(base[base["task"] == "view"], RECALL)
    both = pd.concat([asked.assign(source=source) for source in MODALITIES])
    by = ["measure", "source"]
    people, before = (own_and_other(table, by, value="value") for table in (views, both))
    rows = []
    for (measure, source), own in people.groupby(level=by, sort=False):
        reached = people.loc["said", source]["own"].groupby(level=REPLICATE).mean() >= GATE
        row = {"measure": measure, "source": source, "target": other(source)}
        row |= {"replicates": len(reached), "memorized": reached.sum()}
        kept = own[own.index.get_level_values(REPLICATE).isin(reached.index[reached])]
        if len(kept):
            row |= compare(kept, "own", "other", by, resamples).iloc[0].drop(by).rename(_NAMES)
            moved = (kept - before.reindex(kept.index)).droplevel(by)
            row |= ratio(moved, "other", "own", resamples).rename(_RATIO)
        rows.append(row)
    table = pd.DataFrame(rows, columns=[c for c in GAPS if c not in ("p holm", "verdict")])
    return judged(table, "gaps", trained[REPLICATE].nunique())[GAPS]


def transfers(trained: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall in the target modality after memorizing less before, by measure and source, with test and verdict.

    Of all replicates: who did not memorize the source has nothing to carry over, and counts as that.
    """
    by, on = ["measure", "source"], ["measure", "source", *PERSON]
    both = pd.concat([base.assign(source=source) for source in MODALITIES])
    after, before = (
        own_and_other(by_measure(records[records["task"] == "view"], RECALL), by, value="value")["other"]
        for records in (trained, both)
    )
    people = pd.concat({"after": after, "before": before}, axis=1, join="inner").rename_axis(on)
    table = compare(people, "after", "before", by, resamples)
    table = judged(table, "transfers", trained[REPLICATE].nunique())
    return table[[*by, "after", "before", "difference", *INTERVAL[1:], "p", "people p", "p holm", "verdict"]]


def answers(trained: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """What is answered: the share of each of `ANSWERS` by source and query modality."""
    views = trained[trained["task"] == "view"]
    parts = [views.assign(answer=kind, value=(views["answer"] == kind).astype(float)) for kind in ANSWERS]
    return estimate(pd.concat(parts), ["answer", "source"], ["query"], "value", resamples)


def dose(trained: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall by what grows (column dose), its amount, measure, source and query modality."""
    by = ["dose", "amount", "measure", "source"]
    return estimate(by_measure(trained[trained["task"] == "view"], RECALL), by, ["query"], "value", resamples)


def attributes(trained: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Attributes answered right when somebody is named and nobody shown, by source ("none": the base) and axis."""
    records = pd.concat([trained, base.assign(source="none")])
    asked = records[records["task"] == "attribute by name"].astype({"exact": float})
    asked = asked.assign(axis=asked["view"].map(dict(enumerate(AXIS_NAMES))))
    every = asked.assign(axis="all")
    chance = pd.concat([asked, every]).groupby("axis")["chance"].mean()
    return estimate(pd.concat([every, asked]), ["source", "axis"], resamples=resamples).join(chance, on="axis")


def curves(runs: Iterable[Run], base: pd.DataFrame | None = None) -> pd.DataFrame:
    """Recall along training: one row a source, replicate, query modality and epoch; epoch 0 is of `base` records."""
    parts = []
    for run in runs:
        named = {"source": run.condition.source, REPLICATE: run.condition.replicate}
        if base is not None:
            asked = base[(base[REPLICATE] == run.condition.replicate) & (base["task"] == "view")]
            start = asked.groupby("query")["exact"].mean().rename("recall").reset_index()
            parts.append(start.assign(epoch=0, **named))
        parts.append(run.curve.assign(**named))
    return pd.concat(parts, ignore_index=True)[["source", "query", REPLICATE, "epoch", "recall"]]


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `gaps`."""
    if not row["memorized"]:
        return (
            f"Learned from {row['source']}: not memorized (source recall below {GATE}), so no gap is reported. More "
            "`epochs`, more views a person or another `learning_rate` may help."
        )
    over = f"over {row['memorized']} replicates" if row["memorized"] > 1 else "over people, of one replicate"
    return (
        f"Learned from {row['source']}, {row['measure']}: recall {row['source recall']:.2f} asked in {row['source']}, "
        f"{row['target recall']:.2f} asked in {row['target']}; gap {row['gap']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}] {over}, p = {row['p holm']:.4f} (Holm): {row['verdict']}; transfer "
        f"ratio {row['transfer ratio']:.2f} [{row['ratio low']:.2f}, {row['ratio high']:.2f}]."
    )
