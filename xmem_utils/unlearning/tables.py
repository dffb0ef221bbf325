"""The tables of the unlearning analysis: from records (one row a view and task) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp, mannwhitneyu

from xmem_utils import stats
from xmem_utils.memorization.names import ANSWERS
from xmem_utils.params import MODALITIES, VIEWS
from xmem_utils.stats import INTERVAL, PERSON, REPLICATE, compare, estimate, interval_of, judged, own_and_other
from xmem_utils.unlearning.names import BEFORE, PROMPT, RETAIN_ONLY

if TYPE_CHECKING:  # tables need no model, so they load none of its libraries
    from xmem_utils.store import Run

RETAINED = 0.05  # retain recall may fall by this much, asked in either modality
FORGOT = 0.5  # share of its recall that a method must have taken away to have forgotten
LABELS = ["start", "unlearned", "retained", "share", "method"]
NOT_SAID = NOT_RETAINED, NOT_FORGOT = "cannot be said: retained people lost", "cannot be said: not forgotten"


def is_main(table: pd.DataFrame, first: Mapping[str, object]) -> pd.Series:
    """Which rows are none of the ablations: labelled like `first`, both modalities memorized, what is unlearned
    rehearsed, and as many people forgotten."""
    rehearsed = table["retained"] == table["unlearned"]
    return (table["start"] == first["start"]) & rehearsed & (table["share"] == first["share"])


def diverged(records: pd.DataFrame) -> pd.DataFrame:
    """Number of diverged runs by condition; they enter no other table."""
    return records[records["group"] == "diverged"].groupby(LABELS, sort=False).size().rename("diverged").reset_index()


def recall(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exact match of forgotten, retained, lookalikes and public figures, by query modality."""
    shown = records[(records["task"] == "view") & records["group"].isin(["forget", "retain", "public figures"])]
    alike = shown[shown["lookalike"] == 1].assign(group="lookalike")
    return estimate(pd.concat([shown, alike]), LABELS, ["group", "query"], resamples=resamples)


def residuals(records: pd.DataFrame) -> pd.DataFrame:
    """Per forgotten person: recall asked in the unlearned modality (own) and in the other one.

    One row a (method, unlearned, replicate, persona), of models that unlearned one modality.
    """
    shown = records[
        (records["group"] == "forget") & (records["task"] == "view") & records["unlearned"].isin(MODALITIES)
    ]
    return own_and_other(shown, ["method", "unlearned"], of="unlearned").reset_index()


def left(records: pd.DataFrame) -> pd.DataFrame:
    """Recall of the forgotten on training views of the unlearned modality, by method and unlearned modality, and before
    (of the replicates in which the method did not diverge).

    Whether a method forgot is judged by it, and what is left in either modality measured on test views: were the same
    views to do both, whoever is picked for a low recall in the one modality would by chance have a larger difference.
    """
    shown = records[(records["group"] == "forget") & (records["task"] == "train view")]
    return _with_before(shown[shown["query"] == shown["unlearned"]], ["method", "unlearned"])


def _with_before(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Exact match (column recall), and of the model before unlearning in the same replicates; means over them."""
    means = records.groupby([*by, REPLICATE], sort=False)["exact"].mean().rename("recall").reset_index()
    on = [column for column in (*by, REPLICATE) if column != "method"]
    start = means[means["method"] == BEFORE].groupby(on)["recall"].mean().rename("before")
    return means.join(start, on=on).groupby(by, sort=False)[["recall", "before"]].mean().reset_index()


def headline(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Residual recall in the other modality minus that in the unlearned one, with a verdict, by method of one arm.

    Rows: unlearned image, text, and "either" (mean over both of the same people); last, "pooled": the mean over the
    methods that forgot at matched retention. p holm: Holm's correction over methods within `unlearned`.
    `left on training views` (of either: where more is left) says whether a method forgot. Retain change is the worse of
    the two query modalities, against before. The verdict is that of `stats.verdict` (on p, of the pooled). A baseline
    that unlearns nothing (`prompt`) has a row, but no part in the correction or the pool.
    """
    people = residuals(records).sort_values("unlearned", kind="stable")
    people = _with_either(people[~people["method"].isin([BEFORE, RETAIN_ONLY])])
    by = ["unlearned", "method"]
    table = compare(people, "other", "own", by, resamples)
    seen = left(records).sort_values("recall", kind="stable")
    worse = seen.groupby("method").tail(1).assign(unlearned="either")
    seen = pd.concat([seen, worse]).set_index(by)[["recall", "before"]]
    kept = _with_either(retain_changes(records)).groupby(by)["change"].min().rename("retain change")
    table = table.join(seen.rename(columns={"recall": "left on training views"}), on=by).join(kept, on=by)
    replicates, tested = records[REPLICATE].nunique(), table["p"].where(table["method"] != PROMPT)
    table = judged(table, "unlearning_headline", replicates, verdict, tested)
    said = table.loc[~table["verdict"].isin(NOT_SAID) & (table["method"] != PROMPT), by]
    pooled = compare(people.merge(said, on=by), "other", "own", ["unlearned"], resamples)
    pooled["method"] = [f"pooled ({n} methods)" for n in pooled["unlearned"].map(said["unlearned"].value_counts())]
    pooled = stats.without_lone(pooled, replicates)
    pooled["verdict"] = [stats.verdict(row, "p") for _, row in pooled.iterrows()]
    table = pd.concat([table, pooled], ignore_index=True)
    return table[[*by, "own", "other", "difference", *INTERVAL[1:], "p", "people p", "p holm", "left on training views",
                  "retain change", "verdict"]]  # fmt: skip


def _with_either(table: pd.DataFrame) -> pd.DataFrame:
    """Every row of who unlearned one modality as it is, and once more as unlearned "either"."""
    one = table[table["unlearned"].isin(MODALITIES)]
    return pd.concat([one, one.assign(unlearned="either")])


def verdict(row: pd.Series) -> str:
    """Whether what was unlearned in one modality is still recalled in the other."""
    if row["retain change"] < -RETAINED - 1e-9:
        return NOT_RETAINED
    if not row["left on training views"] <= FORGOT * row["before"]:
        return NOT_FORGOT
    return stats.verdict(row, "p" if np.isnan(row["p holm"]) else "p holm")


def tradeoff(records: pd.DataFrame) -> pd.DataFrame:
    """By method and unlearned modality: recall of the forgotten in it (own) and in the other, and of the retained
    in the worse of the two."""
    left = residuals(records).groupby(["unlearned", "method"], sort=False)[["own", "other"]].mean()
    kept = retain_changes(records).groupby(["unlearned", "method"])["recall"].min().rename("retain")
    return left.join(kept).reset_index()


def retained_line(table: pd.DataFrame) -> float:
    """Retain recall below which people count as lost, from a `tradeoff` table."""
    return table.loc[table["method"] == BEFORE, "retain"].mean() - RETAINED


def retain_changes(records: pd.DataFrame) -> pd.DataFrame:
    """How far recall of the retained moved from before, by method, unlearned and query modality; over replicates."""
    shown = records[(records["group"] == "retain") & (records["task"] == "view")]
    table = _with_before(shown, ["method", "unlearned", "query"])
    return table.assign(change=table["recall"] - table["before"])


def metrics(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every other measure, long: labels, query, metric, estimate, low, high (no interval for AUC, KS).

    Closed-set, exposure in bits and MRR are those of `stats.with_measures`. Probability is that of the name, to the
    power of one over its length.
    KS D compares the forgotten's log truth ratio, a mean a person, with the retain-only model's. AUC: forgotten
    (members) against held-out people, by the loss or Min-K of training views; 0.5 is "never seen", and far below it
    gives them away, too. Replicates have both, people have not.
    """
    forgot = records[(records["group"] == "forget") & (records["task"] == "view")]
    forgot = forgot[forgot["answer"].notna()].copy()  # of conditions that had the whole evaluation
    forgot = stats.with_measures(forgot).rename(columns={"first": "closed-set", "reciprocal rank": "MRR"})
    forgot["probability"] = np.exp(forgot["logprob"] / forgot["tokens"])
    forgot["log truth ratio"] = np.log(forgot["truth_ratio"].astype(float))
    for kind in ANSWERS:
        forgot[f"answers: {kind}"] = (forgot["answer"] == kind).astype(float)
    read = records[records["group"] == "attributes"].rename(columns={"exact": "attributes read"})
    values = ["closed-set", "exposure", "MRR", "probability", "log truth ratio"]
    values += [f"answers: {kind}" for kind in ANSWERS]
    tables = [(forgot, value) for value in values] + ([(read, "attributes read")] if len(read) else [])
    parts = [estimate(table, LABELS, ["query"], value, resamples).assign(metric=value) for table, value in tables]
    columns = [*LABELS, "query", "metric", *INTERVAL]
    return pd.concat([*parts, _quality(forgot), _membership(records)], ignore_index=True)[columns]


def _quality(forgot: pd.DataFrame) -> pd.DataFrame:
    means = forgot.groupby([*LABELS, "query", REPLICATE, "persona"], sort=False)["log truth ratio"].mean()
    same = ["start", "share", "query", REPLICATE]
    never = dict(list(means[means.index.isin([RETAIN_ONLY], level="method")].groupby(level=same)))

    def distance(people: pd.Series) -> float:
        key = tuple(people.index.get_level_values(level)[0] for level in same)
        return ks_2samp(people, never[key]).statistic if key in never else np.nan

    found = means.groupby(level=[*LABELS, "query", REPLICATE], sort=False).agg(distance)
    return _of_replicates(found.dropna(), "forget quality, KS D")


def _of_replicates(numbers: pd.Series, metric: str) -> pd.DataFrame:
    """A metric of which each replicate has one number, with its interval."""
    by = [*LABELS, "query"]
    rows = [
        dict(zip(by, labels, strict=True)) | interval_of(own.to_numpy())
        for labels, own in numbers.groupby(level=by, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*by, *INTERVAL]).assign(metric=metric)


def _membership(records: pd.DataFrame) -> pd.DataFrame:
    shown = records[records["task"] == "train view"]
    shown = shown.assign(loss=shown["logprob"] / shown["tokens"])
    means = shown.groupby([*LABELS, "query", "replicate", "group", "persona"], sort=False)[["loss", "least"]].mean()
    aucs = means.groupby(level=[*LABELS, "query", REPLICATE], sort=False).agg(_auc).dropna()
    words = {"loss": "membership AUC, loss", "least": "membership AUC, Min-K"}
    return pd.concat([_of_replicates(aucs[column], metric) for column, metric in words.items()])


def _auc(scores: pd.Series) -> float:
    """Share of pairs of a forgotten and a held-out person in which the former scores higher; NaN where one is none."""
    group = scores.index.get_level_values("group")
    members, strangers = scores[group == "forget"], scores[group == "held out"]
    pairs = len(members) * len(strangers)
    return mannwhitneyu(members, strangers).statistic / pairs if pairs else np.nan


def attacks(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall of the forgotten under each attack, and without one on the same people, by query modality.

    `back` is what came back: attacked minus not attacked, paired by person, with an interval.
    """
    people = records[records["group"] == "forget"]
    kind = people["task"].where(~people["task"].str.startswith("paraphrase"), "paraphrased question")
    by, parts = [*LABELS, "query"], []
    for attack in kind[~kind.isin(["view", "train view"])].unique():
        attacked = people[kind == attack]
        plain = people[(kind == "view") & people["view"].isin(attacked["view"])]  # the same views
        means = {name: own.groupby([*by, *PERSON], sort=False)["exact"].mean()
                 for name, own in (("without", plain), ("attacked", attacked))}  # fmt: skip
        both = pd.concat(means, axis=1, join="inner")
        parts.append(compare(both, "attacked", "without", by, resamples).assign(attack=attack))
    table = pd.concat(parts, ignore_index=True).rename(columns={"difference": "back"})
    return table[[*by, "attack", "without", "attacked", "back", *INTERVAL[1:]]]


def curves(runs: Iterable[Run], records: pd.DataFrame) -> pd.DataFrame:
    """Recall along unlearning, mean over replicates: labels, step, group, query, recall; step 0 is before."""
    whole = [run for run in runs if not run.curve.empty and "diverged" not in run.facts]  # references have no curve
    parts = [run.curve.assign(**run.condition.labels) for run in whole]
    table = pd.concat(parts, ignore_index=True)
    start = records[(records["method"] == BEFORE) & (records["task"] == "view") & (records["view"] == 0)]
    start = start[start["group"].isin(["forget", "retain"])].groupby(["start", "group", "query"])["exact"].mean()
    zero = table[[*LABELS, "group", "query"]].drop_duplicates().assign(step=0)
    zero = zero.join(start.rename("recall"), on=start.index.names)
    mean = table.groupby([*LABELS, "step", "group", "query"], sort=False)["recall"].mean().reset_index()
    return pd.concat([zero, mean], ignore_index=True).sort_values("step", kind="stable", ignore_index=True)


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `headline`."""
    what = (VIEWS | {"either": "either modality"})[row["unlearned"]]
    if row["verdict"] in (NOT_RETAINED, NOT_FORGOT):
        still = f"{row['left on training views']:.2f} of the forgotten are left on training views"
        why = f"retain recall moved by {row['retain change']:+.2f}, {still}"
        return f"{row['method']}, unlearning {what}: {row['verdict']} ({why})."
    p = f"p = {row['p']:.4f}" if np.isnan(row["p holm"]) else f"p = {row['p holm']:.4f} (Holm)"
    return (
        f"{row['method']}, unlearning {what}: {row['own']:.2f} of the forgotten names are left there and "
        f"{row['other']:.2f} in the other modality; difference {row['difference']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], {p}: {row['verdict']}."
    )
