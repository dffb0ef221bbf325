"""What is chosen from: tuning people on the tuning base, which no reported number uses."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd

from xmem_utils.experiment import tuning_folder
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.mitigation.experiment import Mitigation
from xmem_utils.mitigation.methods import MAIN
from xmem_utils.mitigation.tables import SOURCE, TARGET, per_persona
from xmem_utils.multihop.experiment import Multihop
from xmem_utils.multihop.tables import gates
from xmem_utils.params import MODALITIES, PROFILES, TUNING_SEEDS, shown
from xmem_utils.replicates import seeds_of
from xmem_utils.stats import MEASURES, with_measures
from xmem_utils.vlm.threads import set_threads

EPOCHS = (2, 3, 5, 8)  # tried for the standard profile


def folder_of(model: str) -> Path:
    """Where a model's tables go. Raises ValueError for a Hub id, and a family without a tuning base."""
    folder = tuning_folder(model)
    if not folder.is_dir():
        what = f"there is no {folder.name}" if seeds_of(model) else f"{shown(model)} is none: give a local copy"
        raise ValueError(f"the tables go into the model's folder, and {what}")
    return folder


def memorization(model: str, epochs: int | None = None, kind: type[Memorization] = Memorization) -> Memorization:
    """The standard profile's way of memorizing, with as many epochs as it has unless given."""
    set_threads()
    profile = PROFILES["standard"].model_copy(update={"epochs": epochs} if epochs else {})
    return kind(model, profile, rank=16, learning_rate=2e-3)


def tables(model: str) -> dict[str, pd.DataFrame]:
    """By epochs: names recalled; ways to close the gap, with the settings searched; both hops of notebook 06."""
    names, methods = [], []
    for epochs in EPOCHS:
        study = memorization(model, epochs)
        runs = study.run_all([study.condition(source, seed) for seed in TUNING_SEEDS for source in MODALITIES])
        names.append(recall(study.collect(runs)).assign(epochs=epochs))
        bake_off = Mitigation(study)
        for (method, own), source in product(bake_off.settings_of(model, MAIN).items(), MODALITIES):
            run = bake_off.run(bake_off.condition(method, own, source, TUNING_SEEDS[0]))
            found = per_persona(bake_off.collect([run]))[[SOURCE, TARGET]].mean()
            methods.append({"epochs": epochs, "source": source, "method": method, **found})
    return {"tuning": pd.concat(names), "tuning_methods": pd.DataFrame(methods), "tuning_hops": hops(model)}


def hops(model: str) -> pd.DataFrame:
    """Both hops of notebook 06 by epochs."""
    tables = []
    for epochs in EPOCHS:
        study = memorization(model, epochs, Multihop)
        runs = study.run_all([study.condition(source, TUNING_SEEDS[0]) for source in MODALITIES])
        tables.append(gates(study.collect(runs)))
    return pd.concat(tables)


def recall(records: pd.DataFrame) -> pd.DataFrame:
    """Names recalled from views, a column a measure, by source and query modality."""
    views = with_measures(records[records["task"] == "view"]).rename(columns={v: k for k, v in MEASURES.items()})
    return views.groupby(["source", "query"])[list(MEASURES)].mean().reset_index()
