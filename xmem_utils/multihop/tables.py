"""The tables of the multi-hop analysis: from records (one row a question) to estimates with intervals.

Fixed before a reported replicate was run. No composed number is reported of a run whose hops were not both learned
(`gates`). A task has headroom when what it gives, asked in the source modality, lies above chance with its whole
interval. With headroom it shows the gap when the source gives more than the target, by the verdict of `stats`. The gap
goes beyond hop 1 when, of people for whom both hops alone succeed in both modalities, the composed answer is right less
often in the target, by the same verdict. Added after the first results, since picking questions by a hop 1 that wavers
in the target favours the source: a second reading, of how often the fact is right once the right name is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from xmem_utils import stats
from xmem_utils.multihop.people import KNOWN, STUDY
from xmem_utils.multihop.tasks import CHAIN, COMPOSED, CONTROLS, DIRECT, HOP_1, HOP_2, STEPWISE, chance
from xmem_utils.params import VIEWS, other, parts_of

if TYPE_CHECKING:  # tables need no model, so they load none of its libraries
    from xmem_utils.store import Run

CHAINED = (DIRECT, STEPWISE, CHAIN)  # tasks that need both hops
# what can become of a question that needs both, as shares that add up to 1
FATES = ("hop 1 missed", "hop 2 missed", "both right, not composed", "composed")
NO_HEADROOM = "no headroom: not above chance in the source"
RUN = ["source", "replicate", "epochs", "beside"]


def gates(records: pd.DataFrame) -> pd.DataFrame:
    """Recall of each hop alone by run, of the study's people; `learned`: both at least the gate."""
    study = records[records["group"] == STUDY]
    rows = []
    for run, part in study.groupby(RUN, sort=False):
        asked = part["query"].isin(parts_of(run[0])) | (run[0] == KNOWN)
        first = part[(part["task"] == HOP_1) & asked]["exact"].mean()
        second = part[part["task"] == HOP_2]["exact"].mean()
        rows.append((*run, first, second, bool(min(first, second) >= stats.GATE)))
    return pd.DataFrame(rows, columns=[*RUN, HOP_1, HOP_2, "learned"])


def learned(table: pd.DataFrame, gates: pd.DataFrame) -> pd.DataFrame:
    """The rows (records, or a curve) of runs whose hops were both learned."""
    return table.merge(gates.loc[gates["learned"], RUN], on=RUN)


def gate_sentence(row: pd.Series) -> str:
    """One run in words, from a row of `gates`."""
    state = (
        "both learned"
        if row["learned"]
        else f"not learned (below {stats.GATE}), so no composed number of it is reported"
    )
    practised = ", practised beside both modalities" if row["beside"] == "both" else ""
    return (
        f"Names from {row['source']}, replicate {row['replicate']}, {row['epochs']} epochs{practised}: "
        f"hop 1 {row[HOP_1]:.2f}, hop 2 {row[HOP_2]:.2f}: {state}."
    )


def accuracies(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exact match by source, group, task and query modality, with 95 % intervals and chance.

    `choice`: how often the right value is the likeliest of its kind. Where a name is written first, `wrote`: how often
    it is the right one, and `own`: how often the fact is that of whoever was named.
    """
    by = ["source", "group", "task", "query"]
    records = records.astype(dict.fromkeys(["choice", "wrote", "own"], float))
    people = records.groupby([*by[:2], "replicate"])["persona"].nunique().groupby(level=by[:2]).max().rename("people")
    table = stats.estimate(records, by, resamples=resamples).join(people, on=by[:2])
    table = table.join(records.groupby(by)[["choice", "wrote", "own"]].mean(), on=by)
    table["chance"] = [chance(task, n) for task, n in zip(table["task"], table["people"], strict=True)]
    return table.drop(columns="people")


def answering(accuracy: pd.DataFrame) -> pd.Series:
    """Which rows of `accuracies` answer the question: the hops, and the tasks that need both, of whoever learned names
    or was known before. All others are controls."""
    asked = accuracy["task"].isin([HOP_1, HOP_2, *CHAINED]) & (accuracy["group"] == STUDY)
    return asked & (accuracy["source"] != "none")


def joined(records: pd.DataFrame) -> pd.DataFrame:
    """Every question of the study that needs both hops, with what each hop alone gives: columns hop 1, hop 2."""
    study = records[records["group"] == STUDY]
    first = study[study["task"] == HOP_1].set_index(["source", "replicate", "persona", "query", "view"])["exact"]
    second = study[study["task"] == HOP_2].set_index(["source", "replicate", "persona", "fact"])["exact"]
    composed = study[study["task"].isin(CHAINED)]
    composed = composed.join(first.rename(HOP_1), on=first.index.names)
    return composed.join(second.rename(HOP_2), on=second.index.names)


def decomposition(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Where the chain breaks: by source, task and query modality, with 95 % intervals.

    Quantities: `FATES`, which add up to 1 (a question answered right although a hop was missed counts as missed there);
    "composed all the same", the share of those; "composed given both", of those with both hops right; "expected if
    independent", mean of hop 1 times mean of hop 2; "composition gap", both hops right and the answer wrong less the
    answer right without both, that is, what the two hops leave unexplained; "fact given the name", of answers in which
    the model wrote the right name first (or, in the forced chain, had given it).
    """
    parts = []
    for (source, task, asked), part in joined(records).groupby(["source", "task", "query"], sort=False):
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
            "named": part["wrote"] == 1,
            "named and right": (part["wrote"] == 1) & right,
        }
        people = part[stats.PERSON].assign(**columns).groupby(stats.PERSON).mean()
        table = stats.summary(people[list(columns)[:6]], resamples=resamples)
        table.loc["composed given both"] = stats.ratio(people, FATES[3], "both", resamples)
        both_hops = people[[HOP_1, HOP_2]]
        expected = stats.summary(both_hops, lambda means: means.prod(-1, keepdims=True), resamples)
        table.loc["expected if independent"] = expected.iloc[0]
        if task != DIRECT:
            table.loc["fact given the name"] = stats.ratio(people, "named and right", "named", resamples)
        parts.append(table.reset_index(names="quantity").assign(source=source, task=task, query=asked))
    return stats.stacked(parts, ["source", "task", "query", "quantity", *stats.INTERVAL])


def practice(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """What it changes that composing is practised beside views of both modalities, not of the source alone: `compare`
    of the study's people, by source, task and query modality, with verdicts. Empty where no run of both was learned."""
    study = records[(records["group"] == STUDY) & records["task"].isin([HOP_1, *CHAINED])]
    by = ["source", "task", "query"]
    people = study.pivot_table(index=[*by, *stats.PERSON], columns="beside", values="exact", sort=False)
    both, alone = "beside both", "beside the source"
    people = people.reindex(columns=["both", "source"]).set_axis([both, alone], axis=1).dropna()
    if people.empty:
        return pd.DataFrame(columns=[*by, both, alone, "difference", *stats.INTERVAL[1:], "p", "p holm", "verdict"])
    table = stats.compare(people, both, alone, by, resamples)
    return stats.judged(table, "multihop_practice", people.index.get_level_values("replicate").nunique())


BEYOND = stats.named("beyond") | {"p": "beyond p"}
GIVEN = stats.named("given the name", "estimate")
CLAIM = ["source", "task", "in source", "in target", "difference", *stats.INTERVAL[1:], "p", "people p", "p holm",
         "chance", "headroom", "expected", *BEYOND.values(), "beyond p holm", "beyond people", *GIVEN.values(),
         "given the name people", "given the name p", "given the name p holm",
         "verdict", "beyond hop 1", "given the right name"]  # fmt: skip
FEWEST = 8  # people of a replicate; the mean of fewer says little, and all replicates count the same


def claim(records: pd.DataFrame, gates: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Source minus target accuracy of each task, paired by person, with verdicts; last, the two controls.

    `expected` is the difference that hop 1 alone explains: its own difference times hop 2, for tasks that need both.
    For the same tasks `beyond` is the same difference among questions whose hops both succeed alone, of
    the `beyond people` who have such questions in both modalities; `given the name` is the second reading. Controls
    need no hop 1: a difference there is one of reading the question. They stand outside Holm's correction (each of the
    two readings has one, too), as does the forced chain's `beyond`, which is 0 by construction: with hop 1 right it
    asks what hop 2 was asked. `records` are of runs that learned both hops, `gates` of all.
    """
    study, by = records[records["group"] == STUDY], ["source", "task"]
    replicates = gates["replicate"].nunique()
    tasks = dict(list(study.groupby(by)))
    order = [(source, task) for source in study["source"].unique() for task in (*COMPOSED, *CONTROLS)]
    people = stats.own_and_other(pd.concat([study[:0], *(tasks[key] for key in order if key in tasks)]), by)
    names = {"own": "in source", "other": "in target"}
    table = stats.compare(people, "own", "other", by, resamples).rename(columns=names)
    size = people.groupby([*by, "replicate"]).size().groupby(level=by).max()
    pairs = list(table[by].itertuples(index=False, name=None))
    table["chance"] = [chance(task, size[source, task]) for source, task in pairs]
    table["headroom"] = table["own low"] > table["chance"]
    first = stats.own_and_other(study[study["task"] == HOP_1], ["source"]).groupby(level="source").mean()
    second = study[study["task"] == HOP_2].groupby("source")["exact"].mean()
    expected = table["source"].map((first["own"] - first["other"]) * second)
    table["expected"] = expected.where(table["task"].isin(CHAINED))
    able = joined(study)[lambda questions: (questions[HOP_1] == 1) & (questions[HOP_2] == 1)]
    both = stats.own_and_other(able, by).dropna()  # people who have such questions in both modalities
    both = both[both.groupby(level=[*by, "replicate"])["own"].transform("size") >= FEWEST]
    beyond = stats.compare(both, "own", "other", by, resamples).rename(columns=BEYOND)[[*by, *BEYOND.values()]]
    table = table.merge(stats.without_lone(beyond, replicates, "beyond ", "beyond p"), "left", on=by)
    table = table.merge(_given_the_name(study, replicates, resamples), "left", on=by)
    number = both.groupby(level=by).size()
    table["beyond people"] = [number.get(pair, 0) if pair[1] in CHAINED else np.nan for pair in pairs]
    tested = table["p"].where(table["headroom"] & table["task"].isin(COMPOSED))
    table = stats.judged(table, "multihop_claim", replicates, verdict, tested)
    chained = table["task"].isin(CHAINED) & (table["task"] != CHAIN)
    for reading in ("beyond p", "given the name p"):
        tested = table[reading].where(table["headroom"] & chained)
        table[f"{reading} holm"] = stats.holm(table, "multihop_claim", tested)
    table["beyond hop 1"] = [_beyond_verdict(row) for _, row in table.iterrows()]
    written = table["headroom"] & (table["task"] == STEPWISE)
    table["given the right name"] = ""
    table.loc[written, "given the right name"] = [
        stats.verdict(row, "given the name p holm", "given the name ") for _, row in table[written].iterrows()
    ]
    return table[CLAIM]


def _given_the_name(study: pd.DataFrame, replicates: int, resamples: int) -> pd.DataFrame:
    """How often the fact is right once the right name is written, source minus target, by source; of replicates in
    which `FEWEST` people or more were named in both modalities ("given the name people": how many in all)."""
    rows = []
    wrote = study[study["task"] == STEPWISE].astype({"wrote": float})
    for source, part in wrote.assign(right=wrote["wrote"] * wrote["exact"]).groupby("source", sort=False):
        columns = [stats.own_and_other(part, [], value=value) for value in ("right", "wrote")]
        people = pd.concat(columns, axis=1).dropna().set_axis(range(4), axis=1)
        named = people[(people[[2, 3]] > 0).all(axis=1)]
        named = named[named.groupby(level="replicate")[2].transform("size") >= FEWEST]
        if named.empty:
            continue
        moved = stats.summary(named, _difference_of_shares, resamples).iloc[0]
        rows.append([source, STEPWISE, *moved, stats.t_test(stats.values(moved["each"])), len(named)])
    table = pd.DataFrame(rows, columns=["source", "task", *GIVEN.values(), "given the name p", "given the name people"])
    return stats.without_lone(table, replicates, "given the name ", "given the name p")


def _difference_of_shares(means: np.ndarray) -> np.ndarray:
    """Of means `[..., 4]`, right in source and target, then named: the difference of the shares right of the named."""
    shares = means[..., :2] / np.where(means[..., 2:] > 0, means[..., 2:], np.nan)
    return shares[..., :1] - shares[..., 1:]


def verdict(row: pd.Series) -> str:
    """Whether a task shows the gap (of a control: whether the modalities differ): see the top of this file."""
    if not row["headroom"]:
        return NO_HEADROOM
    return stats.verdict(row, "p" if row["task"] in CONTROLS else "p holm")


def _beyond_verdict(row: pd.Series) -> str:
    if row["task"] not in CHAINED:
        return ""
    if row["task"] == CHAIN:
        return "by construction none"
    if not row["headroom"]:
        return NO_HEADROOM
    if np.isnan(row["beyond"]):
        return f"cannot be said: fewer than {FEWEST} people in each replicate"
    return stats.verdict(row, "beyond p holm", "beyond ")


def overall(table: pd.DataFrame) -> str:
    """The claim in one sentence, from the tasks of `claim` that have headroom."""
    tasks = table[table["task"].isin(COMPOSED)]
    able = tasks[tasks["headroom"].astype(bool)]
    if able.empty:
        return "Nothing can be said: no task has headroom in a run that learned both hops."
    shown = able[able["verdict"] == stats.SUPPORTED]
    mute = sorted(set(tasks["task"]) - set(able["task"]))
    silent = f" Not above chance in the source, and so silent: {', '.join(mute)}." if mute else ""
    return f"The gap is there in {len(shown)} of {len(able)} tasks and directions that have headroom.{silent}"


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `claim`."""
    own, across = VIEWS[row["source"]], VIEWS[other(row["source"])]
    kind = " (control)" if row["task"] in CONTROLS else ""
    text = f"Names from {own}, {row['task']}{kind}: {row['in source']:.2f} asked with {own}"
    if not row["headroom"]:
        return f"{text} (chance {row['chance']:.2f}): {row['verdict']}, so the task cannot say anything."
    p = f"p = {row['p']:.4f}" if row["task"] in CONTROLS else f"p = {row['p holm']:.4f} (Holm)"
    beyond = ""
    if row["task"] in CHAINED and row["task"] != CHAIN:
        beyond = f" Hop 1 alone would make it {row['expected']:+.2f}."
        if np.isnan(row["beyond"]):
            beyond += (
                f" Only {row['beyond people']:.0f} people have both hops in both modalities: too few to look beyond."
            )
        else:
            beyond += (
                f" Of {row['beyond people']:.0f} people who have both hops in both modalities, composing differs by "
                f"{row['beyond']:+.2f} [{row['beyond low']:+.2f}, {row['beyond high']:+.2f}]; "
                f"a gap beyond hop 1, by the rule fixed beforehand: {row['beyond hop 1']}."
            )
    if row["task"] == STEPWISE and not np.isnan(row["given the name"]):
        beyond += (
            f" Second reading, of {row['given the name people']:.0f} people named in both modalities: once the right "
            f"name is written, the fact is right {row['given the name']:+.2f} [{row['given the name low']:+.2f}, "
            f"{row['given the name high']:+.2f}] more often in the source: {row['given the right name']}."
        )
    return (
        f"{text}, {row['in target']:.2f} with {across}; difference {row['difference']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], {p}: {row['verdict']}.{beyond}"
    )


def curves(runs: Iterable[Run], gates: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """Exact match along the training, of the first test view and one kind of fact; composed tasks where both hops were
    learned in the end. Columns: source, replicate, epochs, trained ("as usual" or longer), epoch, task, query, recall.
    """
    parts = []
    for run in runs:
        times = run.condition.epochs // epochs
        trained = "as usual" if times == 1 else f"{times} times as long"
        parts.append(run.curve.assign(**run.condition.labels, trained=trained))
    table = pd.concat(parts, ignore_index=True)
    alone = table[table["task"].isin([HOP_1, HOP_2])]
    table = pd.concat([alone, learned(table[~table["task"].isin([HOP_1, HOP_2])], gates)], ignore_index=True)
    return table[[*RUN, "trained", "epoch", "task", "query", "recall"]]
