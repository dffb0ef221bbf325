"""The tables of the gap analysis: from records (one row a view) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from xmem_utils.memorization.experiment import GATE
from xmem_utils.params import other
from xmem_utils.stats import cluster_bootstrap, resampled_means, sign_flip, transfer_ratio
from xmem_utils.store import Run


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """All records of some runs, with the condition's source, seed and train views as columns."""
    parts = [
        run.records.assign(
            source=run.condition.source,
            seed=run.condition.seed,
            train_views=run.condition.train_views,
        )
        for run in runs
    ]
    return pd.concat(parts, ignore_index=True)


def per_persona(records: pd.DataFrame, columns: list[str], value: str = "exact") -> pd.DataFrame:
    """Mean of `value` by (seed, persona), one column for each combination of `columns`."""
    return records.pivot_table(index=["seed", "persona"], columns=columns, values=value, aggfunc="mean", observed=True)


def matrix(trained: pd.DataFrame, base: pd.DataFrame, personas: int, resamples: int) -> pd.DataFrame:
    """Recall by source, asked modality and probe, with 95 % intervals; source "none" is the base model.

    `trained` and `base` are records; chance is one over the number of personas.
    """
    parts = []
    for source, records in [*trained.groupby("source", sort=True), ("none", base)]:
        table = per_persona(records, ["asked", "probe"])
        part = cluster_bootstrap(table.astype(float), resamples).reset_index()
        parts.append(part.assign(source=source))
    out = pd.concat(parts, ignore_index=True)
    out["chance"] = 1 / personas
    return out[["source", "asked", "probe", "estimate", "low", "high", "chance"]]


def rank_table(trained: pd.DataFrame, personas: int, resamples: int) -> pd.DataFrame:
    """Exposure (log2 N - log2 rank, Carlini et al. 2019), MRR and top-5 recall by source and asked modality."""
    views = trained[trained["probe"] == "view"].copy()
    rank = views["rank"].astype(float)
    views["exposure"] = np.log2(personas) - np.log2(rank)
    views["reciprocal rank"] = 1 / rank
    views["top 5"] = (rank <= 5).astype(float)
    parts = []
    for measure in ("exposure", "reciprocal rank", "top 5"):
        for source, records in views.groupby("source", sort=True):
            table = per_persona(records, ["asked"], measure)
            part = cluster_bootstrap(table, resamples).reset_index()
            parts.append(part.assign(source=source, measure=measure))
    return pd.concat(parts, ignore_index=True)[["measure", "source", "asked", "estimate", "low", "high"]]


_ESTIMATES = ("source recall", "target recall", "gap", "gap low", "gap high", "gap p",
              "transfer ratio", "ratio low", "ratio high")  # fmt: skip


def gaps(trained: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Gap and transfer ratio by source, with paired intervals and a sign-flip test that the gap is 0.

    Runs whose source recall is below the gate are left out, and `memorized` counts those that remain.
    """
    rows = []
    before = per_persona(base[base["probe"] == "view"], ["asked"])
    for source, records in trained[trained["probe"] == "view"].groupby("source", sort=True):
        target = other(source)
        table = per_persona(records, ["asked"])
        reached = table[source].groupby(level="seed").mean()
        kept = reached.index[reached >= GATE]
        row = {"source": source, "target": target, "seeds": len(reached), "memorized": len(kept)}
        row |= dict.fromkeys(_ESTIMATES, float("nan"))
        if len(kept):
            table = table[table.index.get_level_values("seed").isin(kept)]
            start = before.loc[table.index]
            difference = table[source] - table[target]
            interval = cluster_bootstrap(difference.to_frame("gap").astype(float), resamples).loc["gap"]
            row |= {"source recall": table[source].mean(), "target recall": table[target].mean()}
            row |= {"gap": interval.estimate, "gap low": interval.low, "gap high": interval.high}
            row["gap p"] = sign_flip(difference)
            row |= ratio(table[source] - start[source], table[target] - start[target], resamples)
        rows.append(row)
    return pd.DataFrame(rows)


def ratio(source_moved: pd.Series, target_moved: pd.Series, resamples: int) -> dict[str, float]:
    """Transfer ratio and its 95 % interval, from how far each person's recall moved, by (seed, persona).

    NaN when source recall did not move.
    """
    both = pd.DataFrame({"source": source_moved, "target": target_moved}).astype(float)
    sums = resampled_means(both, resamples)
    draws = sums[:, 1] / np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    means = both.groupby(level="seed").mean().mean()
    estimate = transfer_ratio(means["source"], means["target"], 0.0, 0.0)
    return {"transfer ratio": estimate, "ratio low": low, "ratio high": high}


def dose(trained: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall by source, asked modality and number of train views a persona, with intervals."""
    parts = []
    plain = trained[trained["probe"] == "view"]
    for (source, views), records in plain.groupby(["source", "train_views"], sort=True):
        part = cluster_bootstrap(per_persona(records, ["asked"]).astype(float), resamples).reset_index()
        parts.append(part.assign(source=source, train_views=views))
    return pd.concat(parts, ignore_index=True)[["source", "asked", "train_views", "estimate", "low", "high"]]


def curves(runs: Iterable[Run], base: pd.DataFrame | None = None) -> pd.DataFrame:
    """Recall along training: one row a source, seed, asked modality and epoch; epoch 0 comes from `base` records."""
    parts = []
    for run in runs:
        named = {"source": run.condition.source, "seed": run.condition.seed}
        if base is not None:
            plain = base[(base["seed"] == run.condition.seed) & (base["probe"] == "view")]
            start = plain.groupby("asked")["exact"].mean().rename("recall").reset_index()
            parts.append(start.assign(epoch=0, **named))
        parts.append(run.curve.assign(**named))
    return pd.concat(parts, ignore_index=True)[["source", "asked", "seed", "epoch", "recall"]]


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
