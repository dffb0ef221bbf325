"""The tables of the mitigation analysis: from records (one row a view and probe) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from xmem_utils.gap import GATE
from xmem_utils.mitigate.exam import CEILING, FIGURE, VIEW
from xmem_utils.mitigate.methods import DESCRIBED, PAIRED, PLAIN
from xmem_utils.mitigate.train import BATCH
from xmem_utils.params import MODALITIES, MitigationCondition, other
from xmem_utils.stats import cluster_bootstrap, resampled_means, sign_flip
from xmem_utils.store import Run

LEVEL = 0.05
SOURCE, TARGET = "source recall", "target recall"
SPLIT = ("perception part", "recall part")  # of the gap
QUANTITIES = (SOURCE, TARGET, "perception ceiling", "gap", *SPLIT)
RATIO, FIGURES = "transfer ratio", "public figures"
HELPS, HURTS, SAME, FORGOT = "helps", "hurts", "no difference shown", "not memorized"


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """All records of some runs, with what identifies the condition as columns."""
    return pd.concat([run.records.assign(**_labels(run.condition)) for run in runs], ignore_index=True)


def _labels(condition: MitigationCondition) -> dict[str, object]:
    return {"source": condition.start.source, "method": condition.method, "seed": condition.start.seed,
            "paired": condition.paired}  # fmt: skip


def costs(runs: Iterable[Run]) -> pd.DataFrame:
    """What each run took: training tokens (those of the start included), tokens that were only read, seconds.

    Raises AssertionError when a run trained for fewer tokens than its budget, for a whole batch more, or when two
    methods on the same people had different budgets.
    """
    table = pd.concat([run.curve.assign(**_labels(run.condition)) for run in runs], ignore_index=True)
    for (source, seed), part in table.groupby(["source", "seed"]):
        assert part["budget"].nunique() == 1, f"budgets differ from {source}, seed {seed}: {part['budget'].unique()}"
    over = table["tokens"] - table["budget"]
    longest = table["tokens"] / table["steps"] * BATCH  # no batch is longer than this
    assert (over >= 0).all() and (over <= longest).all(), "a run is off its budget of training tokens"
    return table


def bake_off(runs: Iterable[Run]) -> list[Run]:
    """The runs in which everybody or nobody is paired."""
    return [run for run in runs if run.condition.paired in (0, run.condition.start.personas)]


def dose_runs(runs: Iterable[Run]) -> list[Run]:
    """The runs that differ by how many people are paired."""
    return [run for run in runs if run.condition.method in (PLAIN, PAIRED)]


def per_persona(records: pd.DataFrame) -> pd.DataFrame:
    """Source and target recall, ceiling, gap and its two parts of one method, by seed and persona.

    G = A[s->s] - A[s->t] = (A[s->s] - ceiling) + (ceiling - A[s->t]). The ceiling is asked of fewer views.
    """
    (source,) = records["source"].unique()
    mean = records.groupby(["probe", "asked", "seed", "persona"])["exact"].mean()
    table = pd.DataFrame({
        SOURCE: mean[VIEW, source],
        TARGET: mean[VIEW, other(source)],
        "perception ceiling": mean[CEILING, other(source)],
    }).astype(float)  # fmt: skip
    table["gap"] = table[SOURCE] - table[TARGET]
    table[SPLIT[0]] = table[SOURCE] - table["perception ceiling"]
    table[SPLIT[1]] = table["perception ceiling"] - table[TARGET]
    return table


def with_described(people: dict[tuple[str, str], pd.DataFrame]) -> dict[tuple[str, str], pd.DataFrame]:
    """Adds the method that trains nothing: the plain model, shown target views in the source modality.

    What it recalls of a target view is the ceiling, so no recall part is left.
    """
    out = dict(people)
    for (source, method), table in people.items():
        if method == PLAIN:
            own = table.assign(**{TARGET: table["perception ceiling"]})
            out[source, DESCRIBED] = own.assign(
                **{"gap": own[SOURCE] - own[TARGET], SPLIT[0]: own[SOURCE] - own[TARGET], SPLIT[1]: 0.0}
            )
    return out


def by_method(records: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """`per_persona` by source and method, the method that trains nothing included."""
    groups = records.groupby(["source", "method"], sort=False)
    return with_described({key: per_persona(part) for key, part in groups})


def estimates(records: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every quantity with a 95 % interval: source, method, quantity, estimate, low, high.

    `base` are records of the model before memorizing (seed, persona, asked, exact): what it recalled is taken off both
    sides of the transfer ratio. Public figures have a quantity for each asked modality.
    """
    start = base.groupby(["asked", "seed", "persona"])["exact"].mean()
    rows = []
    for (source, method), people in by_method(records).items():
        table = cluster_bootstrap(people[list(QUANTITIES)], resamples)
        moved = pd.DataFrame({
            "target": people[TARGET] - start[other(source)].reindex(people.index),
            "source": people[SOURCE] - start[source].reindex(people.index),
        })  # fmt: skip
        table.loc[RATIO] = _ratio(moved, resamples)
        rows.append(table.reset_index(names="quantity").assign(source=source, method=method))
    known = records[records["probe"] == FIGURE]
    for (source, method, asked), part in known.groupby(["source", "method", "asked"], sort=False):
        figures = part.groupby(["seed", "persona"])["exact"].mean().astype(float).to_frame(f"{FIGURES}, {asked}")
        row = cluster_bootstrap(figures, resamples).reset_index(names="quantity")
        rows.append(row.assign(source=source, method=method))
        if method == PLAIN:  # the same weights
            rows.append(row.assign(source=source, method=DESCRIBED))
    return pd.concat(rows, ignore_index=True)[["source", "method", "quantity", "estimate", "low", "high"]]


def _ratio(moved: pd.DataFrame, resamples: int) -> list[float]:
    means = moved.groupby(level="seed").mean().mean()
    if means["source"] <= 0:
        return [np.nan] * 3
    draws = resampled_means(moved, resamples)
    low, high = np.nanpercentile(draws[:, 0] / np.where(draws[:, 1] > 0, draws[:, 1], np.nan), [2.5, 97.5])
    return [means["target"] / means["source"], low, high]


def comparison(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every method against plain, on the same people: change of target recall and of the gap, intervals, tests.

    p: paired sign-flip test of the change of target recall; p holm: Holm's correction over the methods of a source. The
    verdict needs interval and test to agree, and source recall to stay at the gate in every seed ("not memorized"
    otherwise).
    """
    people = by_method(records)
    rows = []
    for source in MODALITIES:
        if (plain := people.get((source, PLAIN))) is None:
            continue
        for method in [m for s, m in people if s == source and m != PLAIN]:
            own = people[source, method]
            change = (own - plain)[[TARGET, "gap"]]
            interval = cluster_bootstrap(change, resamples)
            reached = own[SOURCE].groupby(level="seed").mean().min()
            rows.append({"source": source, "method": method, SOURCE: own[SOURCE].groupby(level="seed").mean().mean(),
                         TARGET: own[TARGET].groupby(level="seed").mean().mean(),
                         **{f"change of {q}{'' if c == 'estimate' else ' ' + c}": interval.loc[q, c]
                            for q in change for c in interval}, "p": sign_flip(change[TARGET]),
                         "memorized": reached >= GATE})  # fmt: skip
    table = pd.DataFrame(rows)
    for _, group in table.groupby("source"):
        table.loc[group.index, "p holm"] = multipletests(group["p"], method="holm")[1]
    table["verdict"] = [_verdict(row) for _, row in table.iterrows()]
    return table


def _verdict(row: pd.Series) -> str:
    low, high = row[f"change of {TARGET} low"], row[f"change of {TARGET} high"]
    if not row["memorized"]:
        return FORGOT
    if row["p holm"] >= LEVEL or low <= 0 <= high:
        return SAME
    return HELPS if low > 0 else HURTS


def best(compared: pd.DataFrame, source: str, trained: Sequence[str]) -> str:
    """The method, of those that train, with the highest target recall among those that memorized."""
    own = compared[(compared["source"] == source) & compared["memorized"] & compared["method"].isin(trained)]
    return own.sort_values(TARGET, kind="stable").iloc[-1]["method"]


def doses(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Target recall by the number of people paired: of everybody, of the paired and of the others, with intervals."""
    shown = records[(records["probe"] == VIEW) & (records["asked"] != records["source"])]
    parts = []
    for (source, paired), own in shown.groupby(["source", "paired"], sort=True):
        for who, part in (("everybody", own), ("paired", own[own["persona"] < paired]),
                          ("not paired", own[own["persona"] >= paired])):  # fmt: skip
            if len(part):
                people = part.groupby(["seed", "persona"])["exact"].mean().astype(float).to_frame(who)
                row = cluster_bootstrap(people, resamples).reset_index(names="who")
                parts.append(row.assign(source=source, paired=paired))
    return pd.concat(parts, ignore_index=True)[["source", "paired", "who", "estimate", "low", "high"]]


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `comparison`."""
    word = {"image": "pictures", "text": "descriptions"}[row["source"]]
    change = [row[f"change of {TARGET}{end}"] for end in ("", " low", " high")]
    return (
        f"Names from {word}, {row['method']}: source recall {row[SOURCE]:.2f}, target recall {row[TARGET]:.2f}; "
        f"against plain {change[0]:+.2f} [{change[1]:+.2f}, {change[2]:+.2f}], p = {row['p holm']:.4f} (Holm): "
        f"{row['verdict']}."
    )
