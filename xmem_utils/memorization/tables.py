"""The tables of the gap analysis: from records (one row a view) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from xmem_utils.params import MODALITIES, other
from xmem_utils.stats import GATE, INTERVAL, compare, estimate, own_and_other, ratio

if TYPE_CHECKING:  # tables need no model, so they load none of its libraries
    from xmem_utils.store import Run


def matrix(trained: pd.DataFrame, base: pd.DataFrame, personas: int, resamples: int) -> pd.DataFrame:
    """Recall by source, query modality and task, with 95 % intervals; source "none" is the base model.

    `trained` and `base` are records; chance is one over the number of personas.
    """
    records = pd.concat([trained, base.assign(source="none")])
    return estimate(records, ["source"], ["query", "task"], resamples=resamples).assign(chance=1 / personas)


def rank_table(trained: pd.DataFrame, personas: int, resamples: int) -> pd.DataFrame:
    """Exposure (log2 N - log2 rank, Carlini et al. 2019), MRR and top-5 recall by source and query modality."""
    views = trained[trained["task"] == "view"]
    rank = views["rank"].astype(float)
    measures = {"exposure": np.log2(personas) - np.log2(rank), "reciprocal rank": 1 / rank, "top 5": 1.0 * (rank <= 5)}
    long = pd.concat([views.assign(measure=name, value=values) for name, values in measures.items()])
    return estimate(long, ["measure", "source"], ["query"], "value", resamples)


_NAMES = {"own": "source recall", "other": "target recall", "difference": "gap", "low": "gap low", "high": "gap high",
          "p": "gap p"}  # fmt: skip
_RATIO = ["transfer ratio", "ratio low", "ratio high"]


def gaps(trained: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Gap and transfer ratio by source, with paired intervals and a sign-flip test that the gap is 0.

    Runs whose source recall is below the gate are left out, and `memorized` counts those that remain.
    """
    people = own_and_other(trained[trained["task"] == "view"], ["source"])
    asked = base[base["task"] == "view"]
    before = own_and_other(pd.concat([asked.assign(source=source) for source in MODALITIES]), ["source"])
    rows = []
    for source, own in people.groupby(level="source"):
        reached = own["own"].groupby(level="seed").mean() >= GATE
        row = {"source": source, "target": other(source), "seeds": len(reached), "memorized": reached.sum()}
        kept = own[own.index.get_level_values("seed").isin(reached.index[reached])]
        if len(kept):
            row |= compare(kept, "own", "other", ["source"], resamples).iloc[0][list(_NAMES)].rename(_NAMES)
            row |= kept.mean().rename(_NAMES)
            moved = kept - before.reindex(kept.index)
            row |= zip(_RATIO, ratio(moved, "other", "own", resamples), strict=True)
        rows.append(row)
    return pd.DataFrame(rows, columns=["source", "target", "seeds", "memorized", *_NAMES.values(), *_RATIO])


def dose(trained: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall by source, query modality and number of train views a persona, with intervals."""
    by = ["source", "train_views"]
    shown = trained[trained["task"] == "view"].sort_values(by, kind="stable")
    return estimate(shown, by, ["query"], resamples=resamples)[["source", "query", "train_views", *INTERVAL]]


def curves(runs: Iterable[Run], base: pd.DataFrame | None = None) -> pd.DataFrame:
    """Recall along training: one row a source, seed, query modality and epoch; epoch 0 comes from `base` records."""
    parts = []
    for run in runs:
        named = {"source": run.condition.source, "seed": run.condition.seed}
        if base is not None:
            asked = base[(base["seed"] == run.condition.seed) & (base["task"] == "view")]
            start = asked.groupby("query")["exact"].mean().rename("recall").reset_index()
            parts.append(start.assign(epoch=0, **named))
        parts.append(run.curve.assign(**named))
    return pd.concat(parts, ignore_index=True)[["source", "query", "seed", "epoch", "recall"]]


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `gaps`."""
    if not row["memorized"]:
        return (
            f"Learned from {row['source']}: not memorized (source recall below {GATE}), so no gap is reported. More "
            "`epochs`, more views a person or another `learning_rate` may help."
        )
    return (
        f"Learned from {row['source']}: recall {row['source recall']:.2f} asked in {row['source']}, "
        f"{row['target recall']:.2f} asked in {row['target']}; gap {row['gap']:.2f} "
        f"[{row['gap low']:.2f}, {row['gap high']:.2f}], p = {row['gap p']:.4f}; transfer ratio "
        f"{row['transfer ratio']:.2f} [{row['ratio low']:.2f}, {row['ratio high']:.2f}]."
    )
