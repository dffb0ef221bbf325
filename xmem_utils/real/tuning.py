"""What the study's learning rate and epochs were chosen from: tuning people, whom no reported number uses."""

from __future__ import annotations

import pandas as pd

from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import MODALITIES, TUNING_SEEDS, profile_named
from xmem_utils.real import name_of
from xmem_utils.real.study import PROFILE
from xmem_utils.tuning import recall

TRIED = ((3e-3, 8), (6e-3, 8), (6e-3, 12))  # learning rates and epochs


def tuned(known: bool) -> pd.DataFrame:
    """Names recalled from views, a column a measure, by learning rate, epochs, source and query modality."""
    model, tables = name_of(known), []
    for learning_rate, epochs in TRIED:
        study = Memorization(model, profile_named(PROFILE), 16, learning_rate, epochs=epochs)
        runs = study.run_all([study.condition(source, TUNING_SEEDS[0]) for source in MODALITIES])
        about = {"model": model, "learning_rate": learning_rate, "epochs": epochs}
        tables.append(recall(study.collect(runs)).assign(**about))
    return pd.concat(tables, ignore_index=True)
