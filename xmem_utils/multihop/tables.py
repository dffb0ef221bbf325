"""The tables of the multi-hop analysis: from records (one row a question) to estimates with intervals.

Fixed before a reported seed was run. No composed number is reported of a run whose hops were not both learned
(`gates`). An arm has headroom when what it gives, asked in the source modality, lies above chance with its whole
interval. With headroom it shows the gap when the source gives more than the target, interval and test (Holm over the
arms of both sources) agreeing. The gap goes beyond hop 1 when, of people for whom both hops alone succeed in both
modalities, the composed answer is right less often in the target, again by interval and test. Added after the first
results, since picking questions by a hop 1 that wavers in the target favours the source: how often the fact is right
once the right name is written (`decomposition`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from xmem_utils.memorization.tables import GATE
from xmem_utils.multihop.people import STUDY
from xmem_utils.multihop.tasks import CHAIN, COMPOSED, CONTROLS, DIRECT, HOP_1, HOP_2, STEPWISE, chance
from xmem_utils.params import other
from xmem_utils.stats import agreed, cluster_bootstrap, resampled_means, sign_flip
from xmem_utils.store import Run

CHAINED = (DIRECT, STEPWISE, CHAIN)  # arms that need both hops
# what can become of a question that needs both, as shares that add up to 1
FATES = ("hop 1 missed", "hop 2 missed", "both right, not composed", "composed")
HOLDS, NOT_SHOWN, REVERSED, NO_HEADROOM = (
    "holds",
    "not shown",
    "reversed",
    "no headroom: not above chance in the source",
)


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """All records of some runs, with source, seed and epochs as columns."""
    return pd.concat([run.records.assign(**_labels(run)) for run in runs], ignore_index=True)


def _labels(run: Run) -> dict[str, object]:
    return {"source": run.condition.source, "seed": run.condition.seed, "epochs": run.condition.epochs}


RUN = ["source", "seed", "epochs"]


def gates(records: pd.DataFrame) -> pd.DataFrame:
    """Recall of each hop alone by run, of the study's people; `learned`: both at least the gate."""
    study = records[records["group"] == STUDY]
    rows = []
    for run, part in study.groupby(RUN, sort=False):
        first = part[(part["arm"] == HOP_1) & (part["asked"] == run[0])]["exact"].mean()
        second = part[part["arm"] == HOP_2]["exact"].mean()
        both = bool(min(first, second) >= GATE)
        rows.append({**dict(zip(RUN, run, strict=True)), HOP_1: first, HOP_2: second, "learned": both})
    return pd.DataFrame(rows, columns=[*RUN, HOP_1, HOP_2, "learned"])


def learned(table: pd.DataFrame, gates: pd.DataFrame) -> pd.DataFrame:
    """The rows (records, or a curve) of runs whose hops were both learned."""
    passed = gates.loc[gates["learned"], RUN]
    return table.merge(passed, on=RUN)


def gate_sentence(row: pd.Series) -> str:
    """One run in words, from a row of `gates`."""
    state = "both learned" if row["learned"] else f"not learned (below {GATE}), so no composed number of it is reported"
    return (
        f"Names from {row['source']}, seed {row['seed']}, {row['epochs']} epochs: hop 1 {row[HOP_1]:.2f}, "
        f"hop 2 {row[HOP_2]:.2f}: {state}."
    )


def per_person(records: pd.DataFrame, columns: list[str], value: str = "exact") -> pd.DataFrame:
    """Mean of `value` by (seed, persona), a column for each combination of `columns`."""
    return records.pivot_table(index=["seed", "persona"], columns=columns, values=value, observed=True)


ACCURACY = ["source", "group", "arm", "asked", "estimate", "low", "high", "choice", "wrote", "own", "chance"]


def accuracies(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exact match by source, group, arm and asked modality, with 95 % intervals and chance.

    `choice`: how often the right value is the likeliest of its kind. Where a name is written first, `wrote`: how often
    it is the right one, and `own`: how often the fact is that of whoever was named.
    """
    rows = []
    for (source, group), own in records.groupby(["source", "group"], sort=False):
        people = own.groupby("seed")["persona"].nunique().max()
        for (arm, asked), part in own.groupby(["arm", "asked"], sort=False):
            interval = cluster_bootstrap(per_person(part, ["asked"]).astype(float), resamples).iloc[0]
            means = part[["choice", "wrote", "own"]].astype(float).mean()
            labels = {"source": source, "group": group, "arm": arm, "asked": asked}
            rows.append({**labels, **interval, **means, "chance": chance(arm, people)})
    return pd.DataFrame(rows, columns=ACCURACY)


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

    Quantities: `FATES`, which add up to 1 (a question answered right although a hop was missed counts as missed there);
    "composed all the same", the share of those; "composed given both", of those with both hops right; "expected if
    independent", mean of hop 1 times mean of hop 2; "composition gap", both hops right and the answer wrong less the
    answer right without both, that is, what the two hops leave unexplained; "fact given the name", of answers in which
    the model wrote the right name first (or, in the forced chain, had given it).
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
            "named": part["wrote"] == 1,
            "named and right": (part["wrote"] == 1) & right,
        }
        people = part[["seed", "persona"]].assign(**{k: v.astype(float) for k, v in columns.items()})
        people = people.groupby(["seed", "persona"]).mean()
        intervals = cluster_bootstrap(people[list(columns)[:6]], resamples)
        labels = {"source": source, "arm": arm, "asked": asked}
        rows += [{**labels, "quantity": quantity, **values} for quantity, values in intervals.iterrows()]
        of = {"composed given both": _ratio(people, FATES[3], "both", resamples),
              "expected if independent": _product(people, resamples)}  # fmt: skip
        if arm != DIRECT:
            of["fact given the name"] = _ratio(people, "named and right", "named", resamples)
        rows += [{**labels, "quantity": q, **dict(zip(("estimate", "low", "high"), v, strict=True))}
                 for q, v in of.items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["source", "arm", "asked", "quantity", "estimate", "low", "high"])


def _ratio(people: pd.DataFrame, above: str, below: str, resamples: int) -> tuple[float, float, float]:
    means = people[[above, below]].groupby(level="seed").mean().mean()
    if means[below] == 0:
        return float("nan"), float("nan"), float("nan")
    draws = resampled_means(people[[above, below]], resamples)
    shares = draws[:, 0] / np.where(draws[:, 1] > 0, draws[:, 1], np.nan)
    return means[above] / means[below], *np.nanpercentile(shares, [2.5, 97.5])


def _product(people: pd.DataFrame, resamples: int) -> tuple[float, float, float]:
    means = people[[HOP_1, HOP_2]].groupby(level="seed").mean().mean()
    draws = resampled_means(people[[HOP_1, HOP_2]], resamples).prod(1)
    return means[HOP_1] * means[HOP_2], *np.percentile(draws, [2.5, 97.5])


CLAIM = ["source", "arm", "in source", "in target", "difference", "low", "high", "p", "p holm", "chance", "headroom",
         "expected", "beyond", "beyond low", "beyond high", "beyond p", "beyond people", "verdict",
         "beyond hop 1"]  # fmt: skip
FEWEST = 8  # people; a sign-flip test of fewer hardly reaches any level


def claim(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Source less target accuracy of each arm, paired by person, with verdicts; last, the two controls.

    `expected` is the difference that hop 1 alone explains: its own difference times hop 2, for arms that need both.
    For the same arms `beyond` is the source-less-target difference among questions whose hops both succeed alone, of
    the `beyond people` who have such questions in both modalities. Controls need no hop 1: a difference there is one
    of reading the question. They stand outside Holm's correction, and so does the forced chain's `beyond`, which is 0
    by construction: with hop 1 right it asks what hop 2 was asked.
    """
    study = records[records["group"] == STUDY]
    rows = []
    for source, own in study.groupby("source", sort=False):
        hops = own[own["arm"] == HOP_1].groupby("asked")["exact"].mean()
        second = own[own["arm"] == HOP_2]["exact"].mean()
        for arm in (*COMPOSED, *CONTROLS):
            people = per_person(own[own["arm"] == arm], ["asked"]).astype(float)
            if people.empty:
                continue
            people["difference"] = people[source] - people[other(source)]
            interval = cluster_bootstrap(people, resamples)
            means = {"in source": source, "in target": other(source)}
            row = {"source": source, "arm": arm, "p": sign_flip(people["difference"])}
            row |= {column: interval.loc[asked, "estimate"] for column, asked in means.items()}
            row |= dict(zip(("difference", "low", "high"), interval.loc["difference"], strict=True))
            row["chance"] = chance(arm, people.groupby(level="seed").size().max())
            row["headroom"] = bool(interval.loc[source, "low"] > row["chance"])
            if arm in CHAINED:
                row["expected"] = (hops[source] - hops[other(source)]) * second
                row |= _beyond(joined(own[own["arm"].isin([HOP_1, HOP_2, arm])]), source, resamples)
            rows.append(row)
    table = pd.DataFrame(rows, columns=CLAIM)
    tested = table["headroom"].astype(bool) & table["arm"].isin(COMPOSED)
    if tested.any():
        table.loc[tested, "p holm"] = multipletests(table.loc[tested, "p"].astype(float), method="holm")[1]
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    table["beyond hop 1"] = [_beyond_verdict(row) for _, row in table.iterrows()]
    return table


def _beyond(questions: pd.DataFrame, source: str, resamples: int) -> dict[str, float]:
    """Source less target among questions whose hops both succeed alone, paired by person; NaN for too few people."""
    able = questions[(questions[HOP_1] == 1) & (questions[HOP_2] == 1)]
    people = per_person(able, ["asked"]).reindex(columns=[source, other(source)]).dropna()
    if len(people) < FEWEST:
        return {"beyond people": len(people)}
    apart = (people[source] - people[other(source)]).to_frame("beyond")
    row = cluster_bootstrap(apart, resamples).loc["beyond"]
    return {"beyond": row["estimate"], "beyond low": row["low"], "beyond high": row["high"],
            "beyond p": sign_flip(apart), "beyond people": len(people)}  # fmt: skip


def verdict(row: pd.Series) -> str:
    """Whether an arm shows the gap (of a control: whether the modalities differ): see the top of this file."""
    if not row["headroom"]:
        return NO_HEADROOM
    p = row["p"] if row["arm"] in CONTROLS else row["p holm"]
    return _decided(p, row["low"], row["high"])


def _decided(p: float, low: float, high: float) -> str:
    return {1: HOLDS, 0: NOT_SHOWN, -1: REVERSED}[agreed(low, high, p)]


def _beyond_verdict(row: pd.Series) -> str:
    if row["arm"] not in CHAINED:
        return ""
    if row["arm"] == CHAIN:
        return "by construction none"
    if not row["headroom"]:
        return NO_HEADROOM
    if np.isnan(row["beyond p"]):
        return f"cannot be said: fewer than {FEWEST} people"
    return _decided(row["beyond p"], row["beyond low"], row["beyond high"])


def overall(table: pd.DataFrame) -> str:
    """The claim in one sentence, from the arms of `claim` that have headroom."""
    arms = table[table["arm"].isin(COMPOSED)]
    able = arms[arms["headroom"].astype(bool)]
    if able.empty:
        return "Nothing can be said: no arm has headroom in a run that learned both hops."
    shown = able[able["verdict"] == HOLDS]
    mute = sorted(set(arms["arm"]) - set(able["arm"]))
    silent = f" Not above chance in the source, and so silent: {', '.join(mute)}." if mute else ""
    return f"The gap is there in {len(shown)} of {len(able)} arms and directions that have headroom.{silent}"


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `claim`."""
    shown = {"image": "pictures", "text": "descriptions"}
    own, across = shown[row["source"]], shown[other(row["source"])]
    kind = " (control)" if row["arm"] in CONTROLS else ""
    text = f"Names from {own}, {row['arm']}{kind}: {row['in source']:.2f} asked with {own}"
    if not row["headroom"]:
        return f"{text} (chance {row['chance']:.2f}): {row['verdict']}, so the arm cannot say anything."
    p = f"p = {row['p']:.4f}" if row["arm"] in CONTROLS else f"p = {row['p holm']:.4f} (Holm)"
    beyond = ""
    if row["arm"] in CHAINED and row["arm"] != CHAIN:
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
    return (
        f"{text}, {row['in target']:.2f} with {across}; difference {row['difference']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], {p}: {row['verdict']}.{beyond}"
    )


def curves(runs: Iterable[Run], gates: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """Exact match along the training, of the first test view and one kind of fact; composed arms where both hops were
    learned in the end. Columns: source, seed, epochs, trained ("as usual" or longer), epoch, arm, asked, recall.
    """
    parts = []
    for run in runs:
        times = run.condition.epochs // epochs
        trained = "as usual" if times == 1 else f"{times} times as long"
        parts.append(run.curve.assign(**_labels(run), trained=trained))
    table = pd.concat(parts, ignore_index=True)
    alone = table[table["arm"].isin([HOP_1, HOP_2])]
    table = pd.concat([alone, learned(table[~table["arm"].isin([HOP_1, HOP_2])], gates)], ignore_index=True)
    return table[[*RUN, "trained", "epoch", "arm", "asked", "recall"]]
