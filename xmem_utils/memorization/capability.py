"""Does the gap close as models get better? Tables over models, and over how many people a base model knows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.memorization.tables import curves, gaps
from xmem_utils.params import KNOWN, MODALITIES, PROFILES, Profile, other
from xmem_utils.perception import readout
from xmem_utils.pretraining.build import RECIPE, model_name
from xmem_utils.pretraining.evaluation import ACCEPTANCE_THRESHOLDS, acceptance
from xmem_utils.stats import GATE, INTERVAL, agreed, compare, estimate, own_and_other
from xmem_utils.vlm.load import load_vlm

COLUMNS = ["source", "quantity", *INTERVAL]


def parameters(study: Memorization) -> int:
    """Number of parameters of a study's model."""
    return sum(p.numel() for p in study.vlm.model.parameters())


def all_models(
    names: Sequence[str], profile: Profile, rank: int, learning_rate: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What `per_model` gives, of several models; one at a time is in memory."""
    parts = [per_model(Memorization(load_vlm(name), profile, rank, learning_rate), name) for name in names]
    return tuple(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))


def per_model(study: Memorization, name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Everything about one model: its estimates (long), its recall by persona, its learning curves."""
    runs = study.run_all(study.conditions())
    records, seeds = study.collect(runs), study.profile.seeds
    base, resamples = study.base_records(seeds, controls=False), study.profile.resamples
    parts = [recall_estimates(records, resamples), gap_estimates(records, base, resamples)]
    if study.drawn:
        seen = pd.concat([readout(study.vlm, study.dataset(seed)[0]).assign(seed=seed) for seed in seeds])
        parts.append(readout_estimates(seen, resamples))
    labels = {"model": name, "parameters": parameters(study)}
    estimates = pd.concat(parts, ignore_index=True).assign(**labels)[[*labels, *COLUMNS]]
    persons = records.query("task == 'view'")
    persons = persons.groupby(["source", "seed", "persona", "query"], as_index=False)["exact"].mean()
    return estimates, persons.assign(**labels), curves(runs).assign(**labels)


def recall_estimates(records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Recall in the source and in the target modality."""
    views = records[records["task"] == "view"]
    return _by_side(views, "source recall", "target recall", "exact", resamples)


def gap_estimates(records: pd.DataFrame, base: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Gap and transfer ratio of the runs that memorized, from `tables.gaps`; NaN when none did."""
    rows = []
    for _, row in gaps(records, base, resamples).iterrows():
        for quantity, short in (("gap", "gap"), ("transfer ratio", "ratio")):
            rows.append((row["source"], quantity, row[quantity], row[f"{short} low"], row[f"{short} high"]))
    return pd.DataFrame(rows, columns=COLUMNS)


def readout_estimates(seen: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Attributes read right, mean over axes, from views of the source and of the target modality."""
    both = pd.concat([seen.assign(source=source) for source in MODALITIES])
    return _by_side(both, "attributes from source", "attributes from target", "correct", resamples)


def _by_side(records: pd.DataFrame, own: str, across: str, value: str, resamples: int) -> pd.DataFrame:
    side = np.where(records["query"] == records["source"], own, across)
    return estimate(records.assign(quantity=side), ["source"], ["quantity"], value, resamples)


def slopes(points: pd.DataFrame) -> pd.DataFrame:
    """Target recall per unit of source recall, least squares through the origin over each run's checkpoints.

    `points` are learning curves with a model column. One row a model and source: the mean over runs, and the
    lowest and highest run (three runs are too few for an interval).
    """
    rows = []
    wide = points.pivot_table(index=["model", "source", "seed", "epoch"], columns="query", values="recall")
    for (model, source), part in wide.groupby(level=["model", "source"], sort=False):
        x, y = part[source], part[other(source)]
        slope = (x * y).groupby(level="seed").sum() / (x * x).groupby(level="seed").sum().replace(0, np.nan)
        rows.append((model, source, len(slope), slope.mean(), slope.min(), slope.max()))
    return pd.DataFrame(rows, columns=["model", "source", "runs", "slope", "lowest", "highest"])


def changes(persons: pd.DataFrame, models: Sequence[str], resamples: int) -> pd.DataFrame:
    """How the gap changes from each model to the next, on the same people: interval and sign-flip test.

    `persons` is the recall by persona of all models. A pair of which one did not memorize is NaN.
    """
    people = own_and_other(persons, ["model", "source"]).sort_index()
    gap = people["own"] - people["other"]
    reached = people["own"].groupby(level=["model", "source", "seed"]).mean() >= GATE
    pairs = list(pairwise(models)) + ([(models[0], models[-1])] if len(models) > 2 else [])
    names = {"difference": "change of gap", "low": "low", "high": "high", "p": "p"}
    rows = []
    for source, (first, second) in product(MODALITIES, pairs):
        row = {"source": source, "from": first, "to": second}
        both = pd.DataFrame({"first": gap[first, source], "second": gap[second, source], "source": source}).dropna()
        if reached[first, source].all() and reached[second, source].all() and len(both):
            row |= compare(both, "second", "first", ["source"], resamples).iloc[0][list(names)].rename(names)
        rows.append(row)
    return pd.DataFrame(rows, columns=["source", "from", "to", *names.values()])


def sentence(row: pd.Series) -> str:
    """One finding in words, from a row of `changes`."""
    who = f"Learned from {row['source']}, {row['from']} to {row['to']}:"
    if np.isnan(row["change of gap"]):
        return f"{who} one of them did not memorize (source recall below {GATE}), so the gaps are not compared."
    moved = {1: "grows", 0: "does not change beyond chance", -1: "shrinks"}[agreed(row["low"], row["high"], row["p"])]
    return (
        f"{who} the gap {moved}, by {row['change of gap']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], "
        f"p = {row['p']:.4f}."
    )


def thresholds(models: Sequence[str]) -> pd.DataFrame:
    """What each embedded model reached in notebook 00, beside the acceptance thresholds; others are left out."""
    table = pd.DataFrame({"needed": ACCEPTANCE_THRESHOLDS})
    for model in models:
        if (evaluation := paths.BASE_MODELS / model / "evaluation.csv").exists():
            table[model] = acceptance(pd.read_csv(evaluation)).set_index("quantity")["reached"]
    return table


# -- the knowledge ladder --------------------------------------------------------------------------


def rung_folder(known: int) -> Path:
    """Where the committed tables of one rung are."""
    return paths.BASE_MODELS / "knowledge" / str(known)


def rung_base(known: int) -> Path:
    """Where the model of one rung is; the committed one is the rung of its own number of figures."""
    return paths.BASE_MODELS / model_name("s") if known == RECIPE.both else paths.PRETRAINING / model_name("s", known)


def measure_rung(known: int) -> None:
    """Memorize the standard study on the base that knows `known` figures; write its tables to `rung_folder`.

    recall.csv: exact match by source, seed, persona and query modality; evaluation.csv: that of the base. Raises
    FileNotFoundError when the base has not been pretrained.
    """
    base = rung_base(known)
    # by its name where it has one: runs in the store are found by it
    vlm = load_vlm(base.name if base.parent == paths.BASE_MODELS else str(base))
    study = Memorization(vlm, PROFILES["standard"], rank=16, learning_rate=2e-3)
    _, persons, _ = per_model(study, model_name("s", known))
    folder = rung_folder(known)
    folder.mkdir(parents=True, exist_ok=True)
    persons[["source", "seed", "persona", "query", "exact"]].to_csv(folder / "recall.csv", index=False)
    shutil.copy(base / "evaluation.csv", folder / "evaluation.csv")
    (folder / "code.txt").write_text(Memorization.code() + "\n")


def knowledge(resamples: int) -> pd.DataFrame:
    """Recall, alignment probe and figures known in both, by rung, from the committed tables.

    Columns: known, source, quantity, estimate, low, high; what the evaluation gives has no interval.
    """
    rows = []
    for known in KNOWN:
        folder = rung_folder(known)
        if not folder.exists():
            continue
        persons = pd.read_csv(folder / "recall.csv").assign(task="view")
        estimates = recall_estimates(persons, resamples)
        evaluation = pd.read_csv(folder / "evaluation.csv")
        for source in MODALITIES:
            asked = evaluation[evaluation["query"] == other(source)].groupby("ability")["accuracy"].mean()
            for quantity in ("alignment probe", "name, known in both", "attribute"):
                estimates.loc[len(estimates)] = [source, quantity, asked.get(quantity, np.nan), np.nan, np.nan]
        rows.append(estimates.assign(known=known))
    return pd.concat(rows, ignore_index=True)[["known", *COLUMNS]]
