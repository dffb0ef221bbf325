"""Estimates and intervals. The persona is the unit: its views are not independent of each other."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

RESAMPLES = 10_000
GATE = 0.9  # source recall below which a run counts as "not memorized"
LEVEL = 0.05  # below it a test rejects


def cluster_bootstrap(
    values: pd.DataFrame, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Percentile intervals for the column means of per-persona `values`, personas resampled within seeds.

    `values` is indexed by (seed, persona); every column is one quantity already averaged over the
    persona's views, so differences of columns are paired. Each seed keeps its number of personas and
    counts the same. Returns a frame with the columns estimate, low, high (NaN for a column with NaN).
    """
    groups = [group.to_numpy(float) for _, group in values.groupby(level="seed", sort=True)]
    estimates = sum(group.mean(0) for group in groups) / len(groups)
    tail = (1 - level) / 2 * 100
    low, high = np.percentile(resampled_means(values, resamples, seed), [tail, 100 - tail], axis=0)
    return pd.DataFrame({"estimate": estimates, "low": low, "high": high}, index=values.columns)


def resampled_means(values: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Column means `[resamples, columns]` with personas resampled within seeds: the draws of `cluster_bootstrap`."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((resamples, values.shape[1]))
    groups = [group.to_numpy(float) for _, group in values.groupby(level="seed", sort=True)]
    for group in groups:
        # a resample is a count per persona: one matrix product instead of resamples x personas look-ups
        counts = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=resamples)
        sums += counts @ group / len(group)
    return sums / len(groups)


def sign_flip(differences: pd.DataFrame | pd.Series | np.ndarray, flips: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided paired sign-flip test that per-persona differences centre on 0; p in (0, 1].

    Exact, over all 2^k patterns of the k differences that are not 0, where those are no more than `flips`. Else over
    `flips` random ones, as (hits + 1) / (flips + 1), so that p is never 0 (Phipson and Smyth 2010).
    """
    d = np.asarray(differences, float).ravel()
    observed = abs(d.mean())
    moved = d[d != 0]
    if 2 ** len(moved) <= flips:
        signs = np.array([*product((-1, 1), repeat=len(moved))])
        return float((np.abs(signs @ moved) / len(d) >= observed - 1e-12).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for block in np.array_split(np.arange(flips), max(1, flips * len(d) // 5_000_000)):
        signs = rng.integers(0, 2, size=(len(block), len(d)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ d) / len(d) >= observed - 1e-12).sum())
    return (hits + 1) / (flips + 1)


def agreed(low: float, high: float, p: float) -> int:
    """1 or -1, the sign of an effect, where its interval and its test agree that it is not 0; else 0."""
    return 0 if p >= LEVEL or low <= 0 <= high else 1 if low > 0 else -1


def transfer_ratio(source: float, target: float, source_before: float, target_before: float) -> float:
    """T = (A[s->t] - A0[t]) / (A[s->s] - A0[s]); NaN when source recall did not move."""
    moved = source - source_before
    return float("nan") if moved <= 0 else (target - target_before) / moved
