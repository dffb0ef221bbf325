"""The tables of the unlearning analysis: from records (one row a view and probe) to estimates with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp, mannwhitneyu
from statsmodels.stats.multitest import multipletests

from xmem_utils.params import MODALITIES
from xmem_utils.stats import agreed, cluster_bootstrap, sign_flip
from xmem_utils.store import Run
from xmem_utils.unlearning.experiment import BEFORE, GOLD
from xmem_utils.unlearning.methods import METHODS

RETAINED = 0.05  # retain recall may fall by this much, asked in either modality
FORGOT = 0.5  # share of its recall that a method must have taken away to have forgotten
BASELINES = tuple(m.name for m in METHODS.values() if m.asks)
LABELS = ["start", "unlearned", "retained", "share", "method"]
ANSWERS = ("name", "other name", "nobody's name", "refusal", "collapse")


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """All records of some runs, with what identifies the condition as columns."""
    parts = []
    for run in runs:
        parts.append(run.records.assign(**_labels(run.condition)))
    return pd.concat(parts, ignore_index=True)


def _labels(c) -> dict[str, object]:
    return {"start": c.start.source, "unlearned": c.unlearned, "retained": c.retained, "share": share(c),
            "method": c.method, "seed": c.start.seed}  # fmt: skip


def share(condition) -> float:
    """The share of the people that a condition forgets."""
    return round(len(condition.forget) / condition.start.personas, 3)


def is_main(table: pd.DataFrame, first) -> pd.Series:
    """Which rows are of the main arm, that of the design's `first` condition: both modalities memorized, what is
    unlearned rehearsed, and as many people forgotten."""
    rehearsed = table["retained"] == table["unlearned"]
    return (table["start"] == first.start.source) & rehearsed & (table["share"] == share(first))


def diverged(records: pd.DataFrame) -> pd.DataFrame:
    """Number of diverged runs by condition; they enter no other table."""
    return records[records["who"] == "diverged"].groupby(LABELS, sort=False).size().rename("diverged").reset_index()


def estimates(records: pd.DataFrame, columns: Sequence[str], resamples: int, value: str = "exact") -> pd.DataFrame:
    """Mean of `value` with a 95 % interval, by the labels and further columns; persons within seeds are the units."""
    parts = []
    for labels, part in records.groupby(LABELS, sort=False):
        table = part.pivot_table(index=["seed", "persona"], columns=list(columns), values=value, observed=True)
        for _, column in table.items():  # not everybody has every column: the retained are not the forgotten
            own = column.dropna().to_frame()
            row = cluster_bootstrap(own.astype(float), resamples).reset_index(names=list(columns))
            parts.append(row.assign(**dict(zip(LABELS, labels, strict=True))))
    return pd.concat(parts, ignore_index=True)[[*LABELS, *columns, "estimate", "low", "high"]]


def recall(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Exact match of forgotten, retained, lookalikes and public figures, by asked modality."""
    shown = records[(records["probe"] == "view") & records["who"].isin(["forget", "retain", "figure"])]
    alike = shown[shown["lookalike"] == 1].assign(who="lookalike")
    return estimates(pd.concat([shown, alike]), ["who", "asked"], resamples)


def residuals(records: pd.DataFrame) -> pd.DataFrame:
    """Per forgotten person: recall asked in the unlearned modality and in the other one, and their difference.

    One row a (method, unlearned, seed, persona), of models that unlearned one modality.
    """
    shown = records[(records["who"] == "forget") & (records["probe"] == "view") & records["unlearned"].isin(MODALITIES)]
    wide = shown.pivot_table(index=["method", "unlearned", "seed", "persona"], columns="asked", values="exact",
                             sort=False).reset_index()  # fmt: skip
    image = wide["unlearned"] == "image"
    wide["own"] = np.where(image, wide["image"], wide["text"])
    wide["other"] = np.where(image, wide["text"], wide["image"])
    wide["difference"] = wide["other"] - wide["own"]
    return wide


def left(records: pd.DataFrame) -> pd.Series:
    """Recall of the forgotten on training views of the unlearned modality, by method and unlearned modality.

    Whether a method forgot is judged by it, and what is left in either modality measured on test views: were the same
    views to do both, whoever is picked for a low recall in the one modality would by chance have a larger difference.
    """
    shown = records[(records["who"] == "forget") & (records["probe"] == "train view")]
    return shown[shown["asked"] == shown["unlearned"]].groupby(["method", "unlearned"])["exact"].mean()


def headline(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Residual recall in the other modality minus that in the unlearned one, with a verdict, by method of one arm.

    Rows: unlearned image, text, and "either" (mean over both of the same people); last, "pooled": the mean over the
    methods that forgot at matched retention. p: paired sign-flip test; p holm: Holm's correction over methods within
    `unlearned`. `left on training views` is what says whether a method forgot. Retain change is the worse of the two
    asked modalities, against before. The verdict is "holds" when the interval is above 0 and p holm (p, of the pooled)
    below 0.05. A baseline that unlearns nothing (`prompt`) has a row, but no part in the correction or the pool.
    """
    people, kept, seen = residuals(records), retain_changes(records), left(records)
    people = people[~people["method"].isin([BEFORE, GOLD])]
    rows, persons_of = [], {}
    parts = {**{m: [m] for m in MODALITIES}, "either": list(MODALITIES)}
    for unlearned in parts:
        part = people[people["unlearned"].isin(parts[unlearned])]
        start = seen[BEFORE][parts[unlearned]].mean()
        for method, own in part.groupby("method", sort=False):
            persons = own.groupby(["seed", "persona"])[["own", "other", "difference"]].mean()
            row = _row(persons, resamples) | {"method": method, "unlearned": unlearned}
            change = kept[(kept["method"] == method) & kept["unlearned"].isin(parts[unlearned])]
            row["retain change"], row["before"] = change["change"].min(), start
            row["left on training views"] = seen[method][parts[unlearned]].mean()
            rows.append(row)
            persons_of[unlearned, method] = persons
    table = pd.DataFrame(rows).assign(**{"p holm": np.nan})
    baseline = table["method"].isin(BASELINES)
    for _, group in table[~baseline].groupby("unlearned"):
        table.loc[group.index, "p holm"] = multipletests(group["p"], method="holm")[1]
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    pooled = []
    for unlearned, group in table[~table["verdict"].isin(UNSAID) & ~baseline].groupby("unlearned", sort=False):
        persons = sum(persons_of[unlearned, method] for method in group["method"]) / len(group)
        row = _row(persons, resamples) | {"method": f"pooled ({len(group)} methods)", "unlearned": unlearned}
        pooled.append(row | {"verdict": _holds(row["low"], row["high"], row["p"])})
    table = pd.concat([table, pd.DataFrame(pooled)], ignore_index=True)
    return table[["unlearned", "method", "own", "other", "difference", "low", "high", "p", "p holm",
                  "left on training views", "retain change", "verdict"]]  # fmt: skip


UNSAID = NOT_RETAINED, NOT_FORGOT = "cannot be said: retained people lost", "cannot be said: not forgotten"


def verdict(row: pd.Series) -> str:
    """Whether what was unlearned in one modality is still recalled in the other."""
    if row["retain change"] < -RETAINED - 1e-9:
        return NOT_RETAINED
    if row["left on training views"] > FORGOT * row["before"]:
        return NOT_FORGOT
    return _holds(row["low"], row["high"], row["p"] if np.isnan(row["p holm"]) else row["p holm"])


def _holds(low: float, high: float, p: float) -> str:
    return {1: "holds", 0: "not shown", -1: "reversed"}[agreed(low, high, p)]


def _row(persons: pd.DataFrame, resamples: int) -> dict[str, float]:
    interval = cluster_bootstrap(persons[["difference"]], resamples).loc["difference"]
    means = persons.groupby(level="seed").mean().mean()
    return {"own": means["own"], "other": means["other"], "difference": interval["estimate"], "low": interval["low"],
            "high": interval["high"], "p": sign_flip(persons["difference"])}  # fmt: skip


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
    """How far recall of the retained moved from before, by method, unlearned and asked modality."""
    shown = records[(records["who"] == "retain") & (records["probe"] == "view")]
    means = shown.groupby(["method", "unlearned", "asked"], sort=False)["exact"].mean().rename("recall").reset_index()
    start = means[means["method"] == BEFORE].groupby("asked")["recall"].mean()
    return means.assign(change=means["recall"] - means["asked"].map(start))


def metrics(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every other measure, long: labels, asked, metric, estimate, low, high (no interval for AUC, KS).

    Exposure is in bits (log2 N - log2 rank). Probability is that of the name, to the power of one over its length.
    KS compares the forgotten's log truth ratio, a mean a person, with the gold reference's: D, and p beside it (of the
    two-sample test, which does not know that they are the same people). AUC: forgotten (members) against held-out
    people, by the loss or Min-K of training views; 0.5 is "never seen", and far below it gives them away, too.
    """
    forgot = records[(records["who"] == "forget") & (records["probe"] == "view")]
    forgot = forgot[forgot["answer"].notna()].copy()  # of conditions that had the whole exam
    people = records[records["who"].isin(["forget", "retain"]) & (records["probe"] == "view")]
    names = people.groupby("seed")["persona"].nunique().max()
    forgot["exposure"] = np.log2(names) - np.log2(forgot["rank"].astype(float))
    forgot["probability"] = np.exp(forgot["logprob"] / forgot["tokens"])
    forgot["log truth ratio"] = np.log(forgot["truth_ratio"].astype(float))
    for kind in ANSWERS:
        forgot[f"answers: {kind}"] = (forgot["answer"] == kind).astype(float)
    read = records[records["who"] == "attributes"].rename(columns={"exact": "attributes read"})
    values = ["exposure", "probability", "log truth ratio", *(f"answers: {kind}" for kind in ANSWERS)]
    tables = [(forgot, value) for value in values] + ([(read, "attributes read")] if len(read) else [])
    parts = [estimates(table, ["asked"], resamples, value).assign(metric=value) for table, value in tables]
    columns = [*LABELS, "asked", "metric", "estimate", "low", "high"]
    return pd.concat([*parts, _quality(forgot), _membership(records)], ignore_index=True).reindex(columns=columns)


def _quality(forgot: pd.DataFrame) -> pd.DataFrame:
    means = forgot.groupby([*LABELS, "asked", "seed", "persona"], sort=False)["log truth ratio"].mean()
    gold, rows = {}, []
    for (*labels, asked), values in means.groupby(level=[*LABELS, "asked"], sort=False):
        if labels[-1] == GOLD:
            gold[(labels[0], labels[3], asked)] = values
    for (*labels, asked), values in means.groupby(level=[*LABELS, "asked"], sort=False):
        reference = gold.get((labels[0], labels[3], asked))
        if reference is None:
            continue
        test = ks_2samp(values, reference)
        for metric, value in (("forget quality, KS D", test.statistic), ("forget quality, KS p", test.pvalue)):
            rows.append({**dict(zip(LABELS, labels, strict=True)), "asked": asked, "metric": metric, "estimate": value})
    return pd.DataFrame(rows)


def _membership(records: pd.DataFrame) -> pd.DataFrame:
    shown = records[records["probe"] == "train view"].copy()
    shown["loss"] = shown["logprob"] / shown["tokens"]
    rows = []
    for (*labels, asked), part in shown.groupby([*LABELS, "asked"], sort=False):
        for metric, column in (("membership AUC, loss", "loss"), ("membership AUC, Min-K", "least")):
            aucs = []
            for _, seed in part.groupby("seed"):
                score = seed.groupby(["who", "persona"])[column].mean()
                if {"forget", "held out"} <= set(score.index.get_level_values("who")):
                    members, strangers = score["forget"], score["held out"]
                    aucs.append(mannwhitneyu(members, strangers).statistic / (len(members) * len(strangers)))
            if aucs:
                rows.append({**dict(zip(LABELS, labels, strict=True)), "asked": asked, "metric": metric,
                             "estimate": np.mean(aucs)})  # fmt: skip
    return pd.DataFrame(rows)


def attacks(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall of the forgotten under each attack, and without one on the same people, by asked modality.

    `back` is what came back: attacked minus not attacked, paired by person, with an interval.
    """
    people = records[records["who"] == "forget"]
    kind = people["probe"].where(~people["probe"].str.startswith("paraphrase"), "paraphrased question")
    key = [*LABELS, "asked", "seed", "persona"]
    rows = []
    for attack in [kind_ for kind_ in dict.fromkeys(kind) if kind_ not in ("view", "train view")]:
        attacked = people[kind == attack]
        plain = people[(kind == "view") & people["view"].isin(attacked["view"])]  # the same views
        means = {"view": plain.groupby(key, sort=False)["exact"].mean(),
                 attack: attacked.groupby(key, sort=False)["exact"].mean()}  # fmt: skip
        both = pd.concat(means, axis=1, join="inner")
        for (*labels, asked), part in both.groupby(level=[*LABELS, "asked"], sort=False):
            own = part.droplevel([*LABELS, "asked"])
            own = own.assign(back=own[attack] - own["view"])
            level = own.groupby(level="seed").mean().mean()
            interval = cluster_bootstrap(own[["back"]], resamples).loc["back"]
            rows.append({**dict(zip(LABELS, labels, strict=True)), "asked": asked, "attack": attack,
                         "without": level["view"], "attacked": level[attack], "back": interval["estimate"],
                         "low": interval["low"], "high": interval["high"]})  # fmt: skip
    return pd.DataFrame(rows)


def curves(runs: Iterable[Run], records: pd.DataFrame) -> pd.DataFrame:
    """Recall along unlearning, mean over seeds: labels, step, who, asked, recall; step 0 is before."""
    parts = []
    for run in runs:
        if not run.curve.empty:  # references have none
            parts.append(run.curve.assign(**_labels(run.condition)))
    table = pd.concat(parts, ignore_index=True)
    start = records[(records["method"] == BEFORE) & (records["probe"] == "view") & (records["view"] == 0)]
    start = start[start["who"].isin(["forget", "retain"])].groupby(["start", "who", "asked"])["exact"].mean()
    zero = table[[*LABELS, "who", "asked"]].drop_duplicates()
    keys = pd.MultiIndex.from_frame(zero[["start", "who", "asked"]])
    zero = zero.assign(step=0, recall=start.reindex(keys).to_numpy())
    mean = table.groupby([*LABELS, "step", "who", "asked"], sort=False)["recall"].mean().reset_index()
    return pd.concat([zero, mean], ignore_index=True).sort_values("step", kind="stable", ignore_index=True)


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `headline`."""
    what = {"image": "pictures", "text": "descriptions", "either": "either modality"}[row["unlearned"]]
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
