"""What learning rates, epochs and steps were chosen from: tuning people, whom no reported number uses."""

from __future__ import annotations

import pandas as pd

from xmem_utils.memorization.experiment import Memorization
from xmem_utils.multihop.experiment import Multihop
from xmem_utils.multihop.tables import gates
from xmem_utils.params import MODALITIES, TUNING_SEEDS, profile_named
from xmem_utils.real import name_of
from xmem_utils.real.study import FORGET_SHARE, HOPS, LEARNING_RATE, PROFILE, SHORTER, UNLEARNING
from xmem_utils.replicates import LADDER
from xmem_utils.stats import GATE
from xmem_utils.tuning import recall
from xmem_utils.unlearning.experiment import Unlearning, UnlearningCondition
from xmem_utils.unlearning.names import BEFORE, RETAIN_ONLY

TRIED = ((6e-3, 6), (6e-3, 9), (6e-3, 12))  # learning rates and epochs, one after another
RANK = 16  # what notebooks default to
HOPS_TRIED = ((3e-3, 4), (3e-3, 6), (3e-3, 9))  # the same of notebook 06
RATES, STEPS = (1e-3, 3e-3), 45  # of unlearning; steps at most


def tuned() -> pd.DataFrame:
    """Names recalled from views, a column a measure, by model, source and query modality.

    Settings are tried in their order, until both models say `GATE` of the names in the modality learned from.
    """
    tables = []
    for learning_rate, epochs in TRIED:
        for model in (name_of(True), name_of(False)):
            study = Memorization(model, profile_named(PROFILE), RANK, learning_rate, epochs=epochs)
            runs = study.run_all([study.condition(source, TUNING_SEEDS[0]) for source in MODALITIES])
            about = {"learning_rate": learning_rate, "epochs": epochs, "model": model}
            tables.append(pd.DataFrame(about, index=[0]).merge(recall(study.collect(runs)), how="cross"))
        own = pd.concat(tables[-2:]).query("source == query")
        if own["said"].min() >= GATE:
            break
    return pd.concat(tables, ignore_index=True)


def tuned_hops() -> pd.DataFrame:
    """The gates of notebook 06 by what was tried, in its order, until both hops are learned from both modalities."""
    tables = []
    for learning_rate, epochs in HOPS_TRIED:
        size = profile_named(HOPS).model_copy(update={"epochs": epochs})
        study = Multihop(name_of(True), size, RANK, learning_rate)
        runs = study.run_all([study.condition(source, TUNING_SEEDS[0]) for source in MODALITIES])
        tables.append(gates(study.collect(runs)).drop(columns="beside").assign(learning_rate=learning_rate))
        if tables[-1]["learned"].all():
            break
    return pd.concat(tables, ignore_index=True)


def tune_unlearning() -> None:
    """Choose learning rate and steps of each method of 05, on tuning people, into the folder of the model that knows
    figures: by the rule of every search, among `RATES` and `STEPS`, all else as the embedded models have it."""
    study = Unlearning(Memorization(name_of(True), profile_named(SHORTER), RANK, LEARNING_RATE))
    study.write(pd.concat([study.tried(run) for run in study.run_all(unlearning_tries(study))], ignore_index=True))


def unlearning_tries(study: Unlearning) -> list[UnlearningCondition]:
    """What is tried of each method, and the references."""
    settings = study.settings_of(LADDER, UNLEARNING)
    tried = [(BEFORE, {}), (RETAIN_ONLY, {})]
    tried += [(m, {**settings[m], "learning_rate": rate, "steps": STEPS}) for m in UNLEARNING for rate in RATES]
    forget = study.forget_set(TUNING_SEEDS[0], FORGET_SHARE)
    return [
        study.condition(method, own, unlearned, TUNING_SEEDS[0], forget=forget, measures="search")
        for unlearned in MODALITIES for method, own in tried
    ]  # fmt: skip
