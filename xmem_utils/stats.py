"""Estimates, paired comparisons, and one rule for what a comparison says.

The replicate (a base, people and a training seed of its own) is the unit of inference: intervals and tests are
Student's t over replicate means. Beside each stands the interval over people, resampled within replicates, which does
not see the luck of a pretraining; with one replicate it stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

RESAMPLES = 10_000
LEVEL = 0.05  # below it a test rejects
MARGIN = 0.05  # an effect whose whole interval is this near to 0 is none that matters
GATE = 0.9  # source recall below which a run counts as "not memorized"
REPLICATE, PERSON = "replicate", ["replicate", "persona"]
# low, high: over replicates, of one alone over people; each: the replicates' own values, in their order
INTERVAL = ["estimate", "low", "high", "people low", "people high", "each"]
SUPPORTED, REVERSED, EQUIVALENT, UNSAID = "supported", "reversed", "equivalent", "cannot say"

# Holm's correction is within a family: the rows of a table that agree in these columns.
FAMILIES: dict[str, tuple[str, ...]] = {
    "transfers": ("measure",),
    "gaps": ("measure",),
    "capability_changes": ("measure",),
    "unlearning_headline": ("measure", "unlearned"),
    "multihop_claim": (),
    "multihop_practice": ("source",),
    "mitigation_tests": ("measure", "source"),
    "mitigation_pairs": ("source",),
    "mitigation_hard": ("source",),
}

# What is said of a recall: the column of records that has it. Closed-set: the true name ranks first among the study's.
MEASURES = {"said": "exact", "closed-set": "first", "exposure": "exposure", "MRR": "reciprocal rank"}


def with_measures(records: pd.DataFrame) -> pd.DataFrame:
    """Records with what the true name's `rank` among `names` names says: whether it is first; exposure in bits, log2
    names - log2 rank (Carlini et al. 2019, arXiv 1802.08232); the reciprocal rank. NaN where nothing was ranked."""
    rank, names = records["rank"].astype(float), records["names"].astype(float)
    first = (rank == 1).astype(float).where(rank.notna())
    bits = {"exposure": np.log2(names) - np.log2(rank), "reciprocal rank": 1 / rank}
    return records.assign(exact=records["exact"].astype(float), first=first, **bits)


def by_measure(records: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Records once for each measure: the columns measure and value."""
    full = with_measures(records)
    return pd.concat([full.assign(measure=name, value=full[MEASURES[name]]) for name in measures], ignore_index=True)


def estimate(
    records: pd.DataFrame,
    by: Sequence[str],
    columns: Sequence[str] = (),
    value: str = "exact",
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Mean of `value` over people and replicates with its 95 % intervals: `by`, `columns` and those of `INTERVAL`.

    A row for each group of `by`, in order of appearance, and within it for each combination of `columns`, sorted.
    Who has no value for a combination is left out of that one alone.
    """
    parts = []
    for labels, group in records.groupby(list(by), sort=False):
        people = group.pivot_table(index=PERSON, columns=list(columns), values=value, observed=True).astype(float)
        lacking = people.columns[people.isna().any()]
        shared = [people.drop(columns=lacking)] if len(lacking) < people.shape[1] else []
        tables = [summary(own, resamples=resamples) for own in (*shared, *(people[[c]].dropna() for c in lacking))]
        table = pd.concat(tables).loc[people.columns].reset_index(drop=not columns)
        parts.append(table.assign(**dict(zip(by, labels, strict=True))))
    return stacked(parts, [*by, *columns, *INTERVAL])


def stacked(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Tables of intervals below each other, with these columns; of no parts, an empty one."""
    empty = pd.DataFrame(columns=columns).astype(dict.fromkeys(INTERVAL[:-1], float))
    return pd.concat(parts, ignore_index=True)[list(columns)] if parts else empty


def own_and_other(records: pd.DataFrame, by: Sequence[str], of: str = "source", value: str = "exact") -> pd.DataFrame:
    """`value` asked in the modality of column `of` ("own") and in the other one ("other"), a row a person.

    Indexed by (*by, replicate, persona), in order of appearance.
    """
    side = np.where(records["query"] == records[of], "own", "other")
    table = records.pivot_table(index=[*by, *PERSON], columns=side, values=value, observed=True, sort=False)
    return table.reindex(columns=["own", "other"]).astype(float)


def compare(people: pd.DataFrame, a: str, b: str, by: Sequence[str], resamples: int = RESAMPLES) -> pd.DataFrame:
    """Column `a` less column `b`, paired by person: a row for each group of `by`, in order of appearance.

    `by`, replicate and persona are columns or index levels of `people`; several rows of one person are averaged.
    Returns the columns of `by`, the means a and b, a's interval ("<a> low", "<a> high"), the difference with what
    `INTERVAL` names beside it, and p: of the t test over replicates, of one alone the sign-flip test over people,
    which stands beside it in any case ("people p"), and of several that coincide: they do not say how far others lie
    apart. Who lacks a or b is left out.
    """
    rows = []
    for labels, group in people.groupby(list(by), sort=False):
        pairs = group.groupby(PERSON)[[a, b]].mean().astype(float).dropna()
        if pairs.empty:
            continue
        pairs["difference"] = pairs[a] - pairs[b]
        table = summary(pairs, resamples=resamples)
        each = values(table.loc["difference", "each"])
        people = pairs.groupby(level=REPLICATE)["difference"].transform("size")
        flipped = sign_flip(pairs["difference"] * len(pairs) / len(each) / people)  # replicates count the same
        p = flipped if np.isnan(tested := t_test(each)) else tested
        ends = table.loc[a, ["estimate", "low", "high"]]
        rows.append([*labels, *ends, table.loc[b, "estimate"], *table.loc["difference"], p, flipped])
    numbers = [a, f"{a} low", f"{a} high", b, "difference", *INTERVAL[1:-1]]
    table = pd.DataFrame(rows, columns=[*by, *numbers, "each", "p", "people p"])
    return table.astype(dict.fromkeys([*numbers, "p", "people p"], float))


def ratio(people: pd.DataFrame, above: str, below: str, resamples: int = RESAMPLES) -> pd.Series:
    """Mean of column `above` over that of `below`, by replicate, as `INTERVAL`; NaN where the latter is not above 0.

    `people` is indexed by (replicate, persona). With how far target and source recall moved, it is the transfer ratio
    T = (A[s->t] - A0[t]) / (A[s->s] - A0[s]).
    """

    def divided(means: np.ndarray) -> np.ndarray:
        return means[..., :1] / np.where(means[..., 1:] > 0, means[..., 1:], np.nan)

    return summary(people[[above, below]], divided, resamples).iloc[0]


def summary(
    people: pd.DataFrame, function: Callable[[np.ndarray], np.ndarray] | None = None, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Column means of `people` with their 95 % intervals: a row a column, the columns of `INTERVAL`.

    `people` is indexed by (replicate, persona); every column is one quantity already averaged over the person's views,
    so differences of columns are paired. Each replicate counts the same. A `function` makes other quantities
    of a replicate's means: `[..., columns]` -> `[..., quantities]`, a row each; replicates for which one is NaN are
    left out of it. Where replicates coincide the interval is that over people. Raises ValueError where somebody has no
    value.
    """
    if people.isna().any(axis=None):
        raise ValueError("a person without a value can be in no mean")
    groups = [group.to_numpy(float) for _, group in people.groupby(level=REPLICATE)]
    means = np.stack([group.mean(0) for group in groups])
    counts = _counts(tuple(len(group) for group in groups), resamples)
    draws = np.stack([count @ group / len(group) for count, group in zip(counts, groups, strict=True)])
    if function:
        means, draws = function(means), function(draws)
    rows = []
    for each, drawn in zip(means.T, np.moveaxis(draws, 2, 0), strict=True):
        there = ~np.isnan(each)
        own, drawn = each[there], drawn[there].mean(0) if there.any() else np.full(resamples, np.nan)
        inner = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
        outer = t_interval(own) if len(own) > 1 and np.ptp(own) > 0 else inner
        rows.append([own.mean() if len(own) else np.nan, *outer, *inner, written(own)])
    index = people.columns if not function else None
    return pd.DataFrame(rows, columns=INTERVAL, index=index).astype(dict.fromkeys(INTERVAL[:-1], float))


def interval_of(each: np.ndarray) -> dict[str, float | str]:
    """`INTERVAL` of a quantity that replicates have and people have not; NaN where there is one replicate."""
    each = each[~np.isnan(each)]
    low, high = t_interval(each) if len(each) > 1 else (np.nan, np.nan)
    mean = each.mean() if len(each) else np.nan
    return dict(zip(INTERVAL, (mean, low, high, np.nan, np.nan, written(each)), strict=True))


def named(of: str, first: str = "difference") -> dict[str, str]:
    """New names for the columns of `INTERVAL` (`first` is what it calls the estimate): those of a quantity."""
    return {first: of} | {end: f"{of} {end}" for end in INTERVAL[1:]}


def written(each: np.ndarray) -> str:
    """Values of replicates as the column `each` has them."""
    return " ".join(f"{value:.4f}" for value in each)


def values(each: str) -> np.ndarray:
    """The replicates' own values, from the column `each`."""
    return np.array(str(each).split() if pd.notna(each) else [], float)  # of one, a table that was read has a number


@lru_cache(maxsize=4)  # the intervals of one table share their resamples
def _counts(sizes: tuple[int, ...], resamples: int) -> list[np.ndarray]:
    """How often each person of a replicate is drawn, `[resamples, people]`: a matrix product then does for look-ups."""
    rng = np.random.default_rng(0)
    return [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.int32) for n in sizes]


def t_interval(each: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of two or more replicates, Student's t."""
    half = student.ppf(1 - LEVEL / 2, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
    return each.mean() - half, each.mean() + half


def t_test(each: np.ndarray) -> float:
    """p of Student's t test over replicates that they centre on 0; NaN of one, or where they coincide."""
    each = each[~np.isnan(each)]
    return float(ttest_1samp(each, 0).pvalue) if len(each) > 1 and np.ptp(each) > 0 else np.nan


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


def holm(table: pd.DataFrame, name: str, p: pd.Series | None = None) -> pd.Series:
    """Holm's correction of a table's p values within its `FAMILIES`; NaN, of what is not tested, stays."""
    p = table["p"] if p is None else p
    tested = p.dropna().astype(float)
    family = [table.loc[tested.index, column] for column in FAMILIES[name]] or np.zeros(len(tested))
    corrected = tested.groupby(family).transform(lambda own: multipletests(own, method="holm")[1])
    return corrected.reindex(p.index)


def judged(
    table: pd.DataFrame, name: str, replicates: int, said: Callable[[pd.Series], str] | None = None,
    p: pd.Series | None = None, of: str = "",
) -> pd.DataFrame:  # fmt: skip
    """A table of comparisons with Holm's correction within its `FAMILIES` ("p holm") and verdicts.

    `replicates` is how many the study has. `said` gives a row's verdict where it is another than `verdict`; `p` stands
    in for column p; `of` is as in `verdict`.
    """
    table = without_lone(table, replicates, of)
    p = table["p"] if p is None else p.where(table["p"].notna())
    table = table.assign(**{"p holm": holm(table, name, p)})
    return table.assign(verdict=[(said or verdict)(row) for _, row in table.iterrows()])


def without_lone(table: pd.DataFrame, replicates: int, of: str = "", p: str = "p") -> pd.DataFrame:
    """The table without interval and p where of several replicates one alone is left: it stands for itself."""
    lone = np.array([len(values(each)) < min(2, replicates) for each in table[f"{of}each"]], bool)
    ends = [f"{of}low", f"{of}high", p]
    return table.assign(**{column: table[column].astype(float).mask(lone) for column in ends})


def verdict(row: pd.Series, p: str = "p holm", of: str = "", margin: float = MARGIN) -> str:
    """What a difference says: "supported" where its (adjusted) p is below 0.05 and all replicates are above 0,
    "reversed" where all are below; "equivalent" where its whole interval is within `margin` of 0; else "cannot say".

    `row` is one of `compare`; `of` stands before its columns low, high and each where they were renamed.
    """
    each = values(row[f"{of}each"])
    if row[p] < LEVEL and len(each) and abs(np.sign(each).sum()) == len(each):
        return SUPPORTED if each[0] > 0 else REVERSED
    return EQUIVALENT if row[f"{of}low"] >= -margin and row[f"{of}high"] <= margin else UNSAID
