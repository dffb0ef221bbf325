"""The tables of the multi-hop analysis: from records (one row a question) to estimates with intervals.

Fixed before the study was run: a composed number is reported of runs alone whose hops were both learned (`gates`); an
arm has headroom when what it gives, asked in the source modality, lies above chance with its whole interval; with
headroom, the claim holds for it when the source gives more than the target, interval and test (Holm over arms)
agreeing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from xmem_utils.gap import GATE
from xmem_utils.multihop.arms import CHAIN, COMPOSED, DIRECT, HOP_1, HOP_2, STEPWISE, chance
from xmem_utils.multihop.people import STUDY
from xmem_utils.params import other
from xmem_utils.stats import cluster_bootstrap, sign_flip
from xmem_utils.store import Run

LEVEL = 0.05
CHAINED = (DIRECT, STEPWISE, CHAIN)  # arms that need both hops
# what can become of a question that needs both, as shares that add up to 1
FATES = ("hop 1 missed", "hop 2 missed", "both right, not composed", "composed")
HOLDS, NOT_SHOWN, REVERSED, NO_HEADROOM = "holds", "not shown", "reversed", "no headroom: at chance in the source, too"


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """All records of some runs, with source and seed as columns."""
    return pd.concat(
        [run.records.assign(source=run.condition.source, seed=run.condition.seed) for run in runs], ignore_index=True
    )


def gates(records: pd.DataFrame) -> pd.DataFrame:
    """Recall of each hop alone, by source and seed, of the study's people; `learned`: both at least the gate."""
    study = records[records["group"] == STUDY]
    rows = []
    for (source, seed), part in study.groupby(["source", "seed"]):
        first = part[(part["arm"] == HOP_1) & (part["asked"] == source)]["exact"].mean()
        second = part[part["arm"] == HOP_2]["exact"].mean()
        rows.append({"source": source, "seed": seed, HOP_1: first, HOP_2: second,
                     "learned": bool(min(first, second) >= GATE)})  # fmt: skip
    return pd.DataFrame(rows)


def learned(records: pd.DataFrame) -> pd.DataFrame:
    """The records of runs whose hops were both learned, and, of the others, those of single hops alone."""
    passed = gates(records).query("learned")[["source", "seed"]].apply(tuple, axis=1)
    keep = records[["source", "seed"]].apply(tuple, axis=1).isin(set(passed)) | records["arm"].isin([HOP_1, HOP_2])
    return records[keep]


def per_person(records: pd.DataFrame, columns: list[str], value: str = "exact") -> pd.DataFrame:
    """Mean of `value` by (seed, persona), a column for each combination of `columns`."""
    return records.pivot_table(index=["seed", "persona"], columns=columns, values=value, observed=True)


def accuracies(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exact match by source, group, arm and asked modality, with 95 % intervals, choice and chance.

    `choice`: how often the right value is the likeliest of its kind, for arms answered with a value alone.
    """
    parts = []
    for (source, group), own in records.groupby(["source", "group"], sort=False):
        for (arm, asked), part in own.groupby(["arm", "asked"], sort=False):
            interval = cluster_bootstrap(per_person(part, ["asked"]).astype(float), resamples).iloc[0]
            parts.append({"source": source, "group": group, "arm": arm, "asked": asked, **interval,
                          "choice": part["choice"].mean(), "chance": chance(arm)})  # fmt: skip
    return pd.DataFrame(parts)


def joined(records: pd.DataFrame) -> pd.DataFrame:
    """Every question of the study that needs both hops, with what each hop alone gives: columns hop 1, hop 2."""
    study = records[records["group"] == STUDY]
    first = study[study["arm"] == HOP_1].set_index(["source", "seed", "persona", "asked", "view"])["exact"]
    second = study[study["arm"] == HOP_2].set_index(["source", "seed", "persona", "fact"])["exact"]
    composed = study[study["arm"].isin(CHAINED)]
    composed = composed.join(first.rename(HOP_1), on=first.index.names)
    return composed.join(second.rename(HOP_2), on=second.index.names)


def decomposition(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Where the chain breaks: by source, arm and asked modality, with 95 % intervals.

    Quantities: `FATES`, which add up to 1 (a question answered right without both hops counts where it broke);
    "composed all the same", the share answered right although a hop was missed; "composed given both", of those with
    both hops right; "expected if independent", mean of hop 1 times mean of hop 2; "composition gap", both right less
    answered right, what the two hops leave unexplained.
    """
    rows = []
    for (source, arm, asked), part in joined(records).groupby(["source", "arm", "asked"], sort=False):
        both = (part[HOP_1] == 1) & (part[HOP_2] == 1)
        right = part["exact"] == 1
        columns = {
            FATES[0]: part[HOP_1] == 0,
            FATES[1]: (part[HOP_1] == 1) & (part[HOP_2] == 0),
            FATES[2]: both & ~right,
            FATES[3]: both & right,
            "composed all the same": ~both & right,
            "composition gap": both.astype(float) - right.astype(float),
            "both": both,
            HOP_1: part[HOP_1],
            HOP_2: part[HOP_2],
        }
        people = part[["seed", "persona"]].assign(**{k: v.astype(float) for k, v in columns.items()})
        people = people.groupby(["seed", "persona"]).mean()
        intervals = cluster_bootstrap(people[list(columns)[:6]], resamples)
        labels = {"source": source, "arm": arm, "asked": asked}
        rows += [{**labels, "quantity": quantity, **values} for quantity, values in intervals.iterrows()]
        of = {"composed given both": _ratio(people, FATES[3], "both", resamples),
              "expected if independent": _product(people, resamples)}  # fmt: skip
        rows += [{**labels, "quantity": q, **dict(zip(("estimate", "low", "high"), v, strict=True))}
                 for q, v in of.items()]  # fmt: skip
    return pd.DataFrame(rows)


def _draws(people: pd.DataFrame, resamples: int) -> np.ndarray:
    """Means of the columns over resampled people, seeds counting the same: `[resamples, columns]`."""
    rng, sums = np.random.default_rng(0), 0.0
    groups = [group.to_numpy(float) for _, group in people.groupby(level="seed", sort=True)]
    for group in groups:
        counts = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=resamples)
        sums = sums + counts @ group / len(group)
    return sums / len(groups)


def _ratio(people: pd.DataFrame, above: str, below: str, resamples: int) -> tuple[float, float, float]:
    means = people[[above, below]].groupby(level="seed").mean().mean()
    if means[below] == 0:
        return float("nan"), float("nan"), float("nan")
    draws = _draws(people[[above, below]], resamples)
    shares = draws[:, 0] / np.where(draws[:, 1] > 0, draws[:, 1], np.nan)
    return means[above] / means[below], *np.nanpercentile(shares, [2.5, 97.5])


def _product(people: pd.DataFrame, resamples: int) -> tuple[float, float, float]:
    means = people[[HOP_1, HOP_2]].groupby(level="seed").mean().mean()
    draws = _draws(people[[HOP_1, HOP_2]], resamples).prod(1)
    return means[HOP_1] * means[HOP_2], *np.percentile(draws, [2.5, 97.5])


def claim(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Source less target accuracy of each composed arm, paired by person, with a verdict.

    Columns: source, arm, in source, in target, difference, low, high, p, p holm (over the arms of a source that have
    headroom), chance, expected (what hop 1 alone explains: its own difference times hop 2, for arms that need both
    hops), verdict.
    """
    study = records[records["group"] == STUDY]
    rows = []
    for source, own in study.groupby("source", sort=False):
        hops = own[own["arm"] == HOP_1].groupby("asked")["exact"].mean()
        second = own[own["arm"] == HOP_2]["exact"].mean()
        for arm in COMPOSED:
            people = per_person(own[own["arm"] == arm], ["asked"])
            if people.empty:
                continue
            people["difference"] = people[source] - people[other(source)]
            interval = cluster_bootstrap(people.astype(float), resamples)
            apart = interval.loc["difference"]
            row = {"source": source, "arm": arm, "in source": interval.loc[source, "estimate"],
                   "in target": interval.loc[other(source), "estimate"], "difference": apart["estimate"],
                   "low": apart["low"], "high": apart["high"], "p": sign_flip(people["difference"]),
                   "chance": chance(arm)}  # fmt: skip
            row["expected"] = (hops[source] - hops[other(source)]) * second if arm in CHAINED else np.nan
            row["headroom"] = interval.loc[source, "low"] > chance(arm)
            rows.append(row)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    for _, group in table[table["headroom"]].groupby("source"):
        table.loc[group.index, "p holm"] = multipletests(group["p"], method="holm")[1]
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    return table


def verdict(row: pd.Series) -> str:
    """Whether an arm shows the gap: see the top of this file."""
    if not row["headroom"]:
        return NO_HEADROOM
    if row["p holm"] >= LEVEL or row["low"] <= 0 <= row["high"]:
        return NOT_SHOWN
    return HOLDS if row["low"] > 0 else REVERSED


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `claim`."""
    shown = {"image": "pictures", "text": "descriptions"}
    text = f"Names from {shown[row['source']]}, {row['arm']}: {row['in source']:.2f} asked with {shown[row['source']]}"
    if row["verdict"] == NO_HEADROOM:
        return f"{text} (chance {row['chance']:.2f}): {row['verdict']}, so the arm cannot say anything."
    return (
        f"{text}, {row['in target']:.2f} with {shown[other(row['source'])]}; difference {row['difference']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], p = {row['p holm']:.4f} (Holm): {row['verdict']}."
    )


def curves(runs: Iterable[Run], epochs: int) -> pd.DataFrame:
    """Exact match along the training: source, seed, trained ("as usual" or longer), epoch, arm, asked, recall."""
    parts = []
    for run in runs:
        times = run.condition.epochs // epochs
        label = "as usual" if times == 1 else f"{times} times as long"
        parts.append(run.curve.assign(source=run.condition.source, seed=run.condition.seed, trained=label))
    table = pd.concat(parts, ignore_index=True)
    return table[["source", "seed", "trained", "epoch", "arm", "asked", "recall"]]
