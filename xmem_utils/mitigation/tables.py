"""The tables of the mitigation analysis: from records (one row a view and probe) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from xmem_utils.memorization.tables import GATE, ratio
from xmem_utils.mitigation.evaluation import CEILING, FIGURE, VIEW
from xmem_utils.mitigation.methods import DESCRIBED, METHODS, PAIRED, PLAIN, PLAIN_START
from xmem_utils.params import MODALITIES, other
from xmem_utils.stats import agreed, cluster_bootstrap, sign_flip
from xmem_utils.store import Run

SOURCE, TARGET = "source recall", "target recall"
SPLIT = ("perception part", "recall part")  # of the gap
QUANTITIES = (SOURCE, TARGET, "perception ceiling", "gap", *SPLIT)
RATIO, FIGURES, BEFORE, START = "transfer ratio", "public figures", "before", "as memorized"
HELPS, HURTS, SAME, FORGOT = "helps", "hurts", "no difference shown", "not memorized"


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """All records of some runs, with what identifies the condition as columns."""
    return pd.concat([run.records.assign(**_labels(run.condition)) for run in runs], ignore_index=True)


def _labels(condition) -> dict[str, object]:
    return {"source": condition.start.source, "method": condition.method, "seed": condition.start.seed,
            "paired": condition.paired}  # fmt: skip


def costs(runs: Iterable[Run]) -> pd.DataFrame:
    """What each run took: training tokens (those of the start included), tokens that were only read, seconds.

    Training tokens passed forward and back, which is three times the work of reading; `work` is the sum of both in
    tokens read. Raises AssertionError when a run trained for fewer tokens than its budget or on
    after it, or when two methods on the same people had different budgets.
    """
    table = pd.DataFrame([{**run.facts, **_labels(run.condition)} for run in runs])
    table["work"] = 3 * table["tokens"] + table["read"]
    for (source, seed), part in table.groupby(["source", "seed"]):
        assert part["budget"].nunique() == 1, f"budgets differ from {source}, seed {seed}: {part['budget'].unique()}"
    over = table["tokens"] - table["budget"]
    assert (over >= 0).all() and (over < table["last step"]).all(), "a run is off its budget of training tokens"
    return table


def bake_off(runs: Iterable[Run]) -> list[Run]:
    """The runs in which everybody or nobody is paired."""
    return [run for run in runs if run.condition.paired in (0, run.condition.start.personas)]


def dose_runs(runs: Iterable[Run]) -> list[Run]:
    """The runs that differ by how many people are paired."""
    return [run for run in runs if run.condition.method in (PLAIN, PAIRED)]


def per_persona(records: pd.DataFrame) -> pd.DataFrame:
    """Source and target recall, ceiling, gap and its two parts of one method, by seed and persona.

    G = A[s->s] - A[s->t] = (A[s->s] - ceiling) + (ceiling - A[s->t]).
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


def estimates(records: pd.DataFrame, base: pd.DataFrame, start: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every quantity with a 95 % interval: source, method, quantity, estimate, low, high.

    `base` are records of the model before memorizing, with a column source: what it recalled is taken off both sides of
    the transfer ratio, and whom it knew stands beside the methods as method "before". `start` are those of the
    models that most methods go on from: source and target recall as method "as memorized". Public figures have a
    quantity for each asked modality. What did not memorize has no transfer ratio.
    """
    at_base = base[base["probe"] == VIEW].groupby(["source", "asked", "seed", "persona"])["exact"].mean()
    rows = []
    for (source, method), people in by_method(records).items():
        table = cluster_bootstrap(people[list(QUANTITIES)], resamples)
        memorized = people[SOURCE].groupby(level="seed").mean().min() >= GATE
        before = [at_base[source, m].reindex(people.index) for m in (source, other(source))]
        moved = people[SOURCE] - before[0], people[TARGET] - before[1]
        table.loc[RATIO] = list(ratio(*moved, resamples).values()) if memorized else [np.nan] * 3
        rows.append(table.reset_index(names="quantity").assign(source=source, method=method))
    for source, part in start[start["probe"] == VIEW].groupby("source"):
        mean = part.groupby(["asked", "seed", "persona"])["exact"].mean().astype(float)
        both = pd.DataFrame({SOURCE: mean[source], TARGET: mean[other(source)]})
        rows.append(
            cluster_bootstrap(both, resamples).reset_index(names="quantity").assign(source=source, method=START)
        )
    known = pd.concat([base.assign(method=BEFORE), records])
    known = known[known["probe"] == FIGURE]
    for (source, method, asked), part in known.groupby(["source", "method", "asked"], sort=False):
        figures = part.groupby(["seed", "persona"])["exact"].mean().astype(float).to_frame(f"{FIGURES}, {asked}")
        row = cluster_bootstrap(figures, resamples).reset_index(names="quantity")
        rows.append(row.assign(source=source, method=method))
        if method == PLAIN:  # the same weights
            rows.append(row.assign(source=source, method=DESCRIBED))
    return pd.concat(rows, ignore_index=True)[["source", "method", "quantity", "estimate", "low", "high"]]


def comparison(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every method against plain, on the same people: change of target recall and of the gap, intervals, tests.

    What trains from the start is held against plain from the start. p: paired sign-flip test of the change of target
    recall; p holm: Holm's correction over the methods of a source (two families, then). Lowest and highest seed: the
    change in the seed where it is smallest and largest. The verdict needs interval and test to agree, and source recall
    to stay at the gate in every seed ("not memorized" otherwise).
    """
    people = by_method(records)
    rows = []
    for source in MODALITIES:
        for method in [m for s, m in people if s == source and m != PLAIN]:
            fresh = method in METHODS and METHODS[method].fresh and method != PLAIN_START
            own, plain = people[source, method], people[source, PLAIN_START if fresh else PLAIN]
            change = (own - plain)[[TARGET, "gap"]]
            interval = cluster_bootstrap(change, resamples)
            reached = own[SOURCE].groupby(level="seed").mean().min()
            row = {"source": source, "method": method, "against": PLAIN_START if fresh else PLAIN}
            row |= {q: own[q].groupby(level="seed").mean().mean() for q in (SOURCE, TARGET)}
            for q in change:
                row[f"change of {q}"] = interval.loc[q, "estimate"]
                row |= {f"change of {q} {end}": interval.loc[q, end] for end in ("low", "high")}
            by_seed = change[TARGET].groupby(level="seed").mean()
            row |= {"lowest seed": by_seed.min(), "highest seed": by_seed.max()}
            rows.append(row | {"p": sign_flip(change[TARGET]), "memorized": reached >= GATE})
    table = pd.DataFrame(rows)
    for _, group in table.groupby("source"):
        table.loc[group.index, "p holm"] = multipletests(group["p"], method="holm")[1]
    table["verdict"] = [_verdict(row) for _, row in table.iterrows()]
    return table


def _verdict(row: pd.Series) -> str:
    low, high = row[f"change of {TARGET} low"], row[f"change of {TARGET} high"]
    if not row["memorized"]:
        return FORGOT
    return {1: HELPS, 0: SAME, -1: HURTS}[agreed(low, high, row["p holm"])]


def doses(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Target recall by the number of people paired: of everybody, of the paired and of the others, with intervals.

    `change` is against nobody paired, on the same people, with interval and sign-flip test (p holm: over the rows of a
    source); `source recall` is that of everybody.
    """
    shown = records[records["probe"] == VIEW]
    own = shown[shown["asked"] == shown["source"]].groupby(["source", "paired"])["exact"].mean()
    means = shown[shown["asked"] != shown["source"]].groupby(["source", "paired", "seed", "persona"])["exact"].mean()
    rows = []
    for (source, paired), people in means.groupby(level=["source", "paired"]):
        both = pd.DataFrame({"dose": people.droplevel([0, 1]), "none": means[source, 0]}).astype(float)
        both["change"] = both["dose"] - both["none"]
        number = both.index.get_level_values("persona")
        groups = {"everybody": both, "paired": both[number < paired], "not paired": both[number >= paired]}
        for who, part in groups.items():
            if len(part):
                row = {"source": source, "paired": paired, "who": who, SOURCE: own[source, paired]}
                interval = cluster_bootstrap(part, resamples)
                row |= interval.loc["dose"].to_dict() | {"change": interval.loc["change", "estimate"]}
                row |= {f"change {end}": interval.loc["change", end] for end in ("low", "high")}
                rows.append(row | {"p": sign_flip(part["change"]) if paired else np.nan})
    table = pd.DataFrame(rows)
    tested = table[table["paired"] > 0]
    for _, group in tested.groupby("source"):
        table.loc[group.index, "p holm"] = multipletests(group["p"], method="holm")[1]
    return table


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `comparison`."""
    word = {"image": "pictures", "text": "descriptions"}[row["source"]]
    change = [row[f"change of {TARGET}{end}"] for end in ("", " low", " high")]
    return (
        f"Names from {word}, {row['method']}: source recall {row[SOURCE]:.2f}, target recall {row[TARGET]:.2f}; "
        f"against {row['against']} {change[0]:+.2f} [{change[1]:+.2f}, {change[2]:+.2f}], "
        f"p = {row['p holm']:.4f} (Holm): {row['verdict']}."
    )
