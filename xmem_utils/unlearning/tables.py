"""The tables of the unlearning analysis: from records (one row a view and task) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp, mannwhitneyu

from xmem_utils import stats
from xmem_utils.memorization.names import ANSWERS
from xmem_utils.params import MODALITIES
from xmem_utils.stats import INTERVAL, PERSON, REPLICATE, compare, estimate, interval_of
from xmem_utils.unlearning.frontier import RETAINED
from xmem_utils.unlearning.headline import residuals, retain_changes
from xmem_utils.unlearning.names import BEFORE, BOTH, RETAIN_ONLY

if TYPE_CHECKING:  # tables need no model, so they load none of its libraries
    from xmem_utils.store import Run

LABELS = ["start", "unlearned", "retained", "share", "requests", "method"]
ARMS = "learned from both", "learned from one", "both at once"


def arms(table: pd.DataFrame, share: float) -> np.ndarray:
    """Which question each row is of, one of `ARMS`; "" is an ablation: what is unlearned is not what is rehearsed,
    another share of people is forgotten, or there were earlier requests."""
    usual = (table["retained"] == table["unlearned"]) & (table["share"] == share) & (table["requests"] == 1)
    both, at_once = table["start"] == BOTH, table["unlearned"] == BOTH
    of = [usual & both & ~at_once, usual & (table["start"] == table["unlearned"]) & ~both, usual & both & at_once]
    return np.select(of, ARMS, "")


def diverged(records: pd.DataFrame) -> pd.DataFrame:
    """Number of diverged runs by condition; they enter no other table."""
    return records[records["group"] == "diverged"].groupby(LABELS, sort=False).size().rename("diverged").reset_index()


def recall(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exact match of forgotten, retained, lookalikes and public figures, by query modality."""
    shown = records[(records["task"] == "view") & records["group"].isin(["forget", "retain", "public figures"])]
    alike = shown[shown["lookalike"] == 1].assign(group="lookalike")
    return estimate(pd.concat([shown, alike]), LABELS, ["group", "query"], resamples=resamples)


def tradeoff(records: pd.DataFrame) -> pd.DataFrame:
    """By method and unlearned modality: recall of the forgotten in it (own) and in the other, and of the retained
    in the worse of the two."""
    left = residuals(records).groupby(["unlearned", "method"], sort=False)[["own", "other"]].mean()
    kept = retain_changes(records).groupby(["unlearned", "method"])["recall"].min().rename("retain")
    return left.join(kept).reset_index()


def retained_line(table: pd.DataFrame) -> float:
    """Retain recall below which people count as lost, from a `tradeoff` table."""
    return table.loc[table["method"] == BEFORE, "retain"].mean() - RETAINED


def metrics(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every other measure, long: labels, query, metric, estimate, low, high (no interval for AUC, KS).

    Closed-set, exposure in bits and MRR are those of `stats.with_measures`. Probability is that of the name, to the
    power of one over its length.
    KS D compares the forgotten's log truth ratio, a mean a person, with the retain-only model's. Replicates have it,
    people have not, as the AUC of membership (`_membership`). Alignment (UMU-Bench's, `_both`) is of views in both
    modalities; extraction strength that of training views: which share of the name follows from the rest of it
    (1 - k / n, k of n tokens the least that must be given for all later ones to be said; Carlini et al. 2021 as in
    arXiv 2506.12618).
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
    seen = records[(records["group"] == "forget") & (records["task"] == "train view")]
    seen = [estimate(seen, LABELS, ["query"], "extracted", resamples).assign(metric="extraction strength")]
    further = [*seen, _both(records, resamples), _quality(forgot), _membership(records)]
    return pd.concat([*parts, *further], ignore_index=True)[columns]


def _both(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Modality alignment after unlearning, as UMU-Bench has it (AccF, AccR; openreview.net/forum?id=M476xkfNXe): of the
    forgotten the share of views wrong in both modalities, of the retained the share right in both."""
    shown = records[(records["task"] == "view") & records["group"].isin(["forget", "retain"])]
    pairs = shown.pivot_table(
        index=[*LABELS, "forgets", "group", *PERSON, "view"], columns="query", values="exact", sort=False
    ).dropna()
    right = pairs[list(MODALITIES)].mean(axis=1)
    forgotten = pairs.index.get_level_values("group") == "forget"
    pairs["both"] = np.where(forgotten, right == 0, right == 1).astype(float)
    words = {"forget": "alignment, both forgotten", "retain": "alignment, both retained"}
    parts = [
        estimate(own.reset_index(), LABELS, value="both", resamples=resamples).assign(metric=words[group], query="both")
        for group, own in pairs.groupby(level="group")
    ]
    return pd.concat(parts)


def _quality(forgot: pd.DataFrame) -> pd.DataFrame:
    means = forgot.groupby([*LABELS, "query", REPLICATE, "persona"], sort=False)["log truth ratio"].mean()
    same = ["start", "share", "query", REPLICATE]
    never = dict(list(means[means.index.isin([RETAIN_ONLY], level="method")].groupby(level=same)))

    def distance(people: pd.Series) -> float:
        key = tuple(people.index.get_level_values(level)[0] for level in same)
        if key not in never:
            return np.nan
        alike = never[key].index.isin(people.index.get_level_values("persona"), level="persona")  # the same people
        return ks_2samp(people, never[key][alike]).statistic if alike.any() else np.nan

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


# How a training view tells who was trained on, as open-unlearning (arXiv 2506.12618) has it: by its loss a token, its
# least likely tokens (plain, and as z-scores), the loss a byte of the compressed name, the loss less that of a
# reference, here the model that never learned the forgotten.
ATTACKS = {"loss": "loss", "least": "Min-K", "least_z": "Min-K++", "packed": "zlib", "gained": "reference"}


def _membership(records: pd.DataFrame) -> pd.DataFrame:
    """AUC of forgotten (members) against held-out people, by attack: 0.5 is "never seen", and far below it gives them
    away, too."""
    sets = [REPLICATE, "forgets"]
    asked = records.loc[records["group"] == "held out", sets].drop_duplicates()
    shown = records[records["task"] == "train view"].merge(asked, on=sets)  # where held-out people were asked, too
    loss = shown["logprob"] / shown["tokens"]
    view = ["start", "unlearned", "forgets", *PERSON, "group", "query", "view"]
    shown = shown.assign(loss=loss, packed=loss / shown["zlib"])
    never = shown[shown["method"] == RETAIN_ONLY].set_index(view)["loss"].rename("never")
    shown = shown.join(never, on=view).assign(gained=lambda table: table["loss"] - table["never"])
    means = shown.groupby([*LABELS, "query", REPLICATE, "group", "persona"], sort=False)[list(ATTACKS)].mean()
    aucs = means.groupby(level=[*LABELS, "query", REPLICATE], sort=False).agg(_auc)
    return pd.concat([_of_replicates(aucs[c].dropna(), f"membership AUC, {name}") for c, name in ATTACKS.items()])


def _auc(scores: pd.Series) -> float:
    """Share of pairs of a forgotten and a held-out person in which the former scores higher; NaN where one is none."""
    group = scores.index.get_level_values("group")
    members, strangers = scores[group == "forget"].dropna(), scores[group == "held out"].dropna()
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


def at_once(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """What is left of the forgotten, asked in both modalities, where one modality was unlearned and where both were at
    once, by method: `compare` of the same people."""
    shown = records[(records["group"] == "forget") & (records["task"] == "view") & (records["start"] == BOTH)]
    side = np.where(shown["unlearned"] == BOTH, "at once", "one")
    people = shown.pivot_table(index=["method", *PERSON], columns=side, values="exact", sort=False)
    return compare(people.dropna(), "one", "at once", ["method"], resamples)


SEQUENCE = ["method", "unlearned", "met", "requests"]


def sequence(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall after each of several requests, by method and unlearned modality: of who was forgotten at which request
    (`asked`; 0: the retained), in each query modality. Empty where nobody met more than one.

    `met`: "in turn", from the first request on, or "at once", the people of all requests in one (the comparison of
    PULSE, arXiv 2507.01271).
    """
    shown = records[(records["task"] == "view") & records["group"].isin(["forget", "retain"])]
    shown = shown[(shown["retained"] == shown["unlearned"]) & (shown["start"] == BOTH)]
    chains = shown[shown["requests"] == shown["requests"].max()][[REPLICATE, "forgets"]].drop_duplicates()
    if shown["requests"].max() == 1:
        return pd.DataFrame(columns=[*SEQUENCE, "asked", "query", *INTERVAL])
    parts = []
    for replicate, chain in chains.itertuples(index=False):
        requests = [[int(person) for person in people.split()] for people in chain.split("|")]
        asked = {person: k for k, people in enumerate(requests, 1) for person in people}
        at_once = " ".join(map(str, sorted(asked)))
        own = shown[(shown[REPLICATE] == replicate) & shown["method"].isin(shown.loc[shown["requests"] > 1, "method"])]
        in_turn = own["forgets"].isin(["|".join(chain.split("|")[:k]) for k in range(1, len(requests) + 1)])
        own = own.assign(met=np.select([in_turn, own["forgets"] == at_once], ["in turn", "at once"], ""))
        forgotten = own["group"] == "forget"
        parts.append(own.assign(asked=own["persona"].map(asked).where(forgotten, 0))[own["met"] != ""])
    return estimate(pd.concat(parts), SEQUENCE, ["asked", "query"], resamples=resamples)


def curves(runs: Iterable[Run], records: pd.DataFrame) -> pd.DataFrame:
    """Recall along unlearning, mean over replicates: labels, step, group, query, recall; step 0 is before."""
    whole = [run for run in runs if not run.curve.empty and "diverged" not in run.facts]  # references have no curve
    parts = [run.curve.assign(**run.condition.labels) for run in whole]
    table = pd.concat(parts, ignore_index=True)
    start = records[(records["method"] == BEFORE) & (records["task"] == "view") & (records["view"] == 0)]
    start = start[start["group"].isin(["forget", "retain"]) & start["forgets"].isin(table["forgets"])]
    start = start.groupby(["start", "group", "query"])["exact"].mean()
    zero = table[[*LABELS, "group", "query"]].drop_duplicates().assign(step=0)
    zero = zero.join(start.rename("recall"), on=start.index.names)
    mean = table.groupby([*LABELS, "step", "group", "query"], sort=False)["recall"].mean().reset_index()
    return pd.concat([zero, mean], ignore_index=True).sort_values("step", kind="stable", ignore_index=True)
