"""Estimates, paired comparisons, and one rule for when an effect is shown.

The person is the unit: views of one person are not independent of each other. People are resampled within seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

RESAMPLES = 10_000
LEVEL = 0.05  # below it a test rejects
GATE = 0.9  # source recall below which a run counts as "not memorized"
PERSON = ["seed", "persona"]
INTERVAL = ["estimate", "low", "high"]


def estimate(
    records: pd.DataFrame,
    by: Sequence[str],
    columns: Sequence[str] = (),
    value: str = "exact",
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Mean of `value` over people with its 95 % interval: the columns of `by` and `columns`, estimate, low, high.

    A row for each group of `by`, in order of appearance, and within it for each combination of `columns`, sorted.
    Who has no value for a combination is left out of that one alone.
    """
    parts = []
    for labels, group in records.groupby(list(by), sort=False):
        people = group.pivot_table(index=PERSON, columns=list(columns), values=value, observed=True).astype(float)
        lacking = people.columns[people.isna().any()]
        shared = [people.drop(columns=lacking)] if len(lacking) < people.shape[1] else []
        tables = [cluster_bootstrap(own, resamples) for own in (*shared, *(people[[c]].dropna() for c in lacking))]
        table = pd.concat(tables).loc[people.columns].reset_index(drop=not columns)
        parts.append(table.assign(**dict(zip(by, labels, strict=True))))
    return stacked(parts, [*by, *columns, *INTERVAL])


def stacked(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Tables of intervals below each other, with these columns; of no parts, an empty one."""
    empty = pd.DataFrame(columns=columns).astype(dict.fromkeys(INTERVAL, float))
    return pd.concat(parts, ignore_index=True)[list(columns)] if parts else empty


def own_and_other(records: pd.DataFrame, by: Sequence[str], of: str = "source") -> pd.DataFrame:
    """Exact match asked in the modality of column `of` ("own") and in the other one ("other"), a row a person.

    Indexed by (*by, seed, persona), in order of appearance.
    """
    side = np.where(records["query"] == records[of], "own", "other")
    table = records.pivot_table(index=[*by, *PERSON], columns=side, values="exact", observed=True, sort=False)
    return table.reindex(columns=["own", "other"]).astype(float)


def compare(people: pd.DataFrame, a: str, b: str, by: Sequence[str], resamples: int = RESAMPLES) -> pd.DataFrame:
    """Column `a` less column `b`, paired by person: a row for each group of `by`, in order of appearance.

    `by`, seed and persona are columns or index levels of `people`; several rows of one person are averaged. Returns
    the columns of `by`, the means a and b, a's interval ("<a> low", "<a> high"), the difference with its interval
    (difference, low, high) and p, of the sign-flip test.
    """
    rows = []
    for labels, group in people.groupby(list(by), sort=False):
        pairs = group.groupby(PERSON)[[a, b]].mean().astype(float)
        pairs["difference"] = pairs[a] - pairs[b]
        table = cluster_bootstrap(pairs, resamples)
        p = sign_flip(pairs["difference"])
        rows.append([*labels, *table.loc[a], table.loc[b, "estimate"], *table.loc["difference"], p])
    numbers = [a, f"{a} low", f"{a} high", b, "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=[*by, *numbers]).astype(dict.fromkeys(numbers, float))


def ratio(people: pd.DataFrame, above: str, below: str, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Mean of column `above` over mean of column `below`, and its 95 % interval; NaN where the latter is not above 0.

    `people` is indexed by (seed, persona). With how far target and source recall moved, it is the transfer ratio
    T = (A[s->t] - A0[t]) / (A[s->s] - A0[s]).
    """
    pairs = people[[above, below]].astype(float)
    means = pairs.groupby(level="seed").mean().mean()
    if means[below] <= 0:
        return np.nan, np.nan, np.nan
    draws = resampled_means(pairs, resamples)
    low, high = np.nanpercentile(draws[:, 0] / np.where(draws[:, 1] > 0, draws[:, 1], np.nan), [2.5, 97.5])
    return means[above] / means[below], low, high


def cluster_bootstrap(people: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """95 % percentile intervals for the column means of `people`, who are resampled within seeds.

    `people` is indexed by (seed, persona); every column is one quantity already averaged over the person's views, so
    differences of columns are paired. Each seed keeps its number of people and counts the same. Returns a row a
    column: estimate, low, high (NaN for a column with NaN).
    """
    means = [group.to_numpy(float).mean(0) for _, group in people.groupby(level="seed")]
    low, high = np.percentile(resampled_means(people, resamples), [2.5, 97.5], axis=0)
    return pd.DataFrame({"estimate": sum(means) / len(means), "low": low, "high": high}, index=people.columns)


def resampled_means(people: pd.DataFrame, resamples: int = RESAMPLES) -> np.ndarray:
    """Column means `[resamples, columns]` with people resampled within seeds: the draws of `cluster_bootstrap`."""
    groups = [group.to_numpy(float) for _, group in people.groupby(level="seed")]
    counts = _counts(tuple(len(group) for group in groups), resamples)
    return sum(count @ group / len(group) for count, group in zip(counts, groups, strict=True)) / len(groups)


@lru_cache(maxsize=4)  # the intervals of one table share their resamples
def _counts(sizes: tuple[int, ...], resamples: int) -> list[np.ndarray]:
    """How often each person of a seed is drawn, `[resamples, people]`: a matrix product then does for look-ups."""
    rng = np.random.default_rng(0)
    return [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.int32) for n in sizes]


def sign_flip(differences: pd.Series | np.ndarray, flips: int = RESAMPLES) -> float:
    """Two-sided paired sign-flip test that per-persona differences centre on 0; p in (0, 1].

    Exact, over all 2^k patterns of the k differences that are not 0, where those are no more than `flips`. Else over
    `flips` random ones, as (hits + 1) / (flips + 1), so that p is never 0 (Phipson and Smyth 2010).
    """
    d = np.asarray(differences, float)
    observed = abs(d.mean())
    moved = d[d != 0]
    if 2 ** len(moved) <= flips:
        signs = 1 - 2 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1)
        return float((np.abs(signs @ moved) / len(d) >= observed - 1e-12).mean())
    rng = np.random.default_rng(0)
    hits = 0
    for block in np.array_split(np.arange(flips), max(1, flips * len(d) // 5_000_000)):
        signs = rng.integers(0, 2, size=(len(block), len(d)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ d) / len(d) >= observed - 1e-12).sum())
    return (hits + 1) / (flips + 1)


def holm(p: pd.Series, family: pd.Series | None = None) -> pd.Series:
    """Holm's correction of p values within each family (default: all are one); NaN, of what is not tested, stays."""
    tested = p.dropna().astype(float)
    family = pd.Series(0, p.index) if family is None else family
    corrected = tested.groupby(family).transform(lambda own: multipletests(own, method="holm")[1])
    return corrected.reindex(p.index)


def agreed(low: float, high: float, p: float) -> int:
    """1 or -1, the sign of an effect, where its interval and its test agree that it is not 0; else 0."""
    return 0 if p >= LEVEL or low <= 0 <= high else 1 if low > 0 else -1
