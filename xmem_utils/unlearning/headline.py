"""The answer: is what was forgotten in one modality forgotten in the other one, too? By method, said and in bits.

Forgetting transfer is (before - other) / (before - own): which share of what was forgotten in the unlearned modality
(own) went in the other one. In bits it is exposure above a model that never learned the forgotten.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmem_utils import stats
from xmem_utils.params import MODALITIES, VIEWS
from xmem_utils.stats import (
    EQUIVALENT,
    INTERVAL,
    PERSON,
    REPLICATE,
    REVERSED,
    SUPPORTED,
    compare,
    judged,
    own_and_other,
)
from xmem_utils.unlearning.frontier import EITHER, RANGE, RETAINED, ranges, transfer_of_means
from xmem_utils.unlearning.names import BEFORE, PROMPT, RETAIN_ONLY

FORGOT = 0.5  # share of its recall that a method must have taken away to have forgotten
MOST = 0.9  # share of the admissible settings that must agree with a verdict
NOT_RETAINED, NOT_FORGOT = "cannot be said: retained people lost", "cannot be said: not forgotten"
NOT_REACHED = "cannot be said: no setting of the search forgets and retains"
NOT_SAID = NOT_RETAINED, NOT_FORGOT, NOT_REACHED
VARIES = "depends on the setting"
BY = ["measure", "unlearned", "method"]


def headline(records: pd.DataFrame, points: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """What is left in the other modality against the unlearned one, with a verdict, by method of one arm.

    Rows: said and exposure; unlearned image, text, and "either" (mean over both of the same people); last, "pooled",
    the mean over the methods of which something can be said. Columns: own, other, their difference with intervals and
    tests (p holm: Holm's correction over methods within measure and `unlearned`); forgetting transfer at the setting
    that the rule chose, with intervals, and the `RANGE` over the admissible `points` (a `frontier.frontier`; of a model
    without a search of its own none, and then nothing is asked of them). `left on training views` says whether a method
    forgot (of either: where more is left); retain change is the worse of the two query modalities, against before. A
    baseline that unlearns nothing (`prompt`) has a row, but no part in the correction or the pool. Equivalent means, of
    bits, within 0.05 of all the bits that there are (log2 of the number of names).
    """
    people = pd.concat([residuals(records, measure).assign(measure=measure) for measure in ("said", "exposure")])
    people = people[~people["method"].isin([BEFORE, RETAIN_ONLY]) & people["own before"].notna()]
    people = _with_either(people.sort_values("unlearned", kind="stable"))
    people = people.sort_values("measure", ascending=False, kind="stable")
    table, by = _answers(people, BY, resamples), BY[1:]
    seen = left(records).sort_values("recall", kind="stable")
    worse = seen.groupby("method").tail(1).assign(unlearned=EITHER)
    seen = pd.concat([seen, worse]).set_index(by)[["recall", "before"]]
    kept = _with_either(retain_changes(records)).groupby(by)["change"].min().rename("retain change")
    table = table.join(seen.rename(columns={"recall": "left on training views"}), on=by).join(kept, on=by)
    table = table.merge(ranges(points), "left", on=BY)
    replicates, tested = records[REPLICATE].nunique(), table["p"].where(table["method"] != PROMPT)
    margins = {"said": stats.MARGIN, "exposure": stats.MARGIN * np.log2(records["names"].max())}
    table = judged(table, "unlearning_headline", replicates, lambda row: verdict(row, margins[row["measure"]]), tested)
    said = table.loc[~table["verdict"].isin(NOT_SAID) & (table["method"] != PROMPT), BY]
    pooled = stats.without_lone(_answers(people.merge(said[BY], on=BY), BY[:2], resamples), replicates)
    pooled = pooled.merge(_pooled_ranges(said, points), "left", on=BY[:2])
    pooled["verdict"] = [
        _within_range(stats.verdict(row, "p", margin=margins[row["measure"]]), row) for _, row in pooled.iterrows()
    ]
    table = pd.concat([table, pooled], ignore_index=True)
    return table[[*BY, "own", "other", "difference", *INTERVAL[1:], "p", "people p", "p holm", *TRANSFER, *RANGE,
                  "left on training views", "retain change", "verdict"]]  # fmt: skip


TRANSFER = list(stats.named("transfer", "estimate").values())


def _answers(people: pd.DataFrame, by: list[str], resamples: int) -> pd.DataFrame:
    """`compare` of other and own for each group of `by`, and the forgetting transfer beside it."""
    moved = []
    for labels, group in people.groupby(by, sort=False):
        wide = group.groupby(PERSON)[["own before", "own", "other before", "other"]].mean().dropna()
        if len(wide):
            moved.append([*labels, *stats.summary(wide, transfer_of_means, resamples).iloc[0]])
    table = pd.DataFrame(moved, columns=[*by, *TRANSFER])
    return compare(people, "other", "own", by, resamples).merge(table, "left", on=by)


def _pooled_ranges(said: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The range over the admissible settings of all methods of which something can be said, and how many methods these
    are, in their name."""
    parts = []
    for (measure, unlearned), own in said.groupby(BY[:2], sort=False):
        name = f"pooled ({len(own)} methods)"
        mine = points[points["method"].isin(own["method"])].assign(method=name) if len(points) else points
        found = ranges(mine).query("measure == @measure and unlearned == @unlearned")
        empty = pd.DataFrame([{"measure": measure, "unlearned": unlearned, "method": name}])
        parts.append(empty.merge(found, "left", on=BY))
    return pd.concat(parts) if parts else pd.DataFrame(columns=[*BY, *RANGE])


def residuals(records: pd.DataFrame, measure: str = "said") -> pd.DataFrame:
    """What is left of each forgotten person, asked in the unlearned modality (own) and the other one, and was before.

    One row a (method, unlearned, replicate, persona), of models that unlearned one modality.
    """
    shown = records[
        (records["group"] == "forget") & (records["task"] == "view") & records["unlearned"].isin(MODALITIES)
    ]
    if measure == "exposure":
        shown = _above_never(stats.with_measures(shown))
    people = own_and_other(shown, ["method", "unlearned"], of="unlearned", value=stats.MEASURES[measure])
    if measure == "exposure":  # who is pushed below who never learned them is forgotten, and no more
        mean = people.groupby(level=["method", "unlearned", REPLICATE]).transform("mean")
        people = people - mean.clip(upper=0)
    before = people[people.index.get_level_values("method") == BEFORE].droplevel("method").add_suffix(" before")
    return people.join(before, on=["unlearned", *PERSON]).reset_index()


def _above_never(records: pd.DataFrame) -> pd.DataFrame:
    """Records with their exposure above that of the model that never learned the forgotten, view by view."""
    view = ["unlearned", *PERSON, "query", "view"]
    never = records[records["method"] == RETAIN_ONLY].set_index(view)["exposure"]
    return records.assign(exposure=records["exposure"] - records.join(never.rename("never"), on=view)["never"])


def left(records: pd.DataFrame) -> pd.DataFrame:
    """Recall of the forgotten on training views of the unlearned modality, by method and unlearned modality, and before
    (of the forget sets with which the method did not diverge).

    Whether a method forgot is judged by it, and what is left in either modality measured on test views: were the same
    views to do both, whoever is picked for a low recall in the one modality would by chance have a larger difference.
    """
    shown = records[(records["group"] == "forget") & (records["task"] == "train view")]
    return _with_before(shown[shown["query"] == shown["unlearned"]], ["method", "unlearned"])


def retain_changes(records: pd.DataFrame) -> pd.DataFrame:
    """How far recall of the retained moved from before, by method, unlearned and query modality; over replicates."""
    shown = records[(records["group"] == "retain") & (records["task"] == "view")]
    table = _with_before(shown, ["method", "unlearned", "query"])
    return table.assign(change=table["recall"] - table["before"])


def _with_before(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Exact match (column recall), and of the model before unlearning, of the same forget sets; means over them."""
    means = records.groupby([*by, REPLICATE, "forgets"], sort=False)["exact"].mean().rename("recall").reset_index()
    on = [column for column in (*by, REPLICATE, "forgets") if column != "method"]
    start = means[means["method"] == BEFORE].groupby(on)["recall"].mean().rename("before")
    return means.join(start, on=on).groupby(by, sort=False)[["recall", "before"]].mean().reset_index()


def _with_either(table: pd.DataFrame) -> pd.DataFrame:
    """Every row of who unlearned one modality as it is, and once more as unlearned "either"."""
    one = table[table["unlearned"].isin(MODALITIES)]
    return pd.concat([one, one.assign(unlearned=EITHER)])


def verdict(row: pd.Series, margin: float) -> str:
    """Whether what was unlearned in one modality is still known in the other; `margin` is in the row's unit."""
    if row["retain change"] < -RETAINED - 1e-9:
        return NOT_RETAINED
    if not row["left on training views"] <= FORGOT * row["before"]:
        return NOT_FORGOT
    if row["admissible"] == 0:
        return NOT_REACHED
    return _within_range(stats.verdict(row, "p" if np.isnan(row["p holm"]) else "p holm", margin=margin), row)


def _within_range(found: str, row: pd.Series) -> str:
    """A verdict, unless more than a tenth of the admissible settings disagree: less transfer than 1 goes with something
    that stays, `NEAR` 1 or more with nothing. Without any, or without a search, there is nothing to disagree."""
    if not row["admissible"] > 0:
        return found
    agree = {SUPPORTED: row["below one"], REVERSED: 1 - row["below one"], EQUIVALENT: row["near one"]}
    return VARIES if agree.get(found, 1.0) < MOST else found


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `headline` about names said."""
    what = (VIEWS | {"either": "either modality"})[row["unlearned"]]
    if row["verdict"] in NOT_SAID:
        still = f"{row['left on training views']:.2f} of the forgotten are left on training views"
        why = f"retain recall moved by {row['retain change']:+.2f}, {still}"
        return f"{row['method']}, unlearning {what}: {row['verdict']} ({why})."
    p = f"p = {row['p']:.4f}" if np.isnan(row["p holm"]) else f"p = {row['p holm']:.4f} (Holm)"
    among = ""
    if row["admissible"] > 0:
        among = f" ({row['least']:.2f} to {row['most']:.2f} over {row['admissible']:.0f} admissible settings)"
    return (
        f"{row['method']}, unlearning {what}: {row['own']:.2f} of the forgotten names are left there and "
        f"{row['other']:.2f} in the other modality; difference {row['difference']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], {p}; forgetting transfer {row['transfer']:.2f}{among}: "
        f"{row['verdict']}."
    )
