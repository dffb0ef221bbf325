"""Can the model see what it is asked about? Attributes read off the study's own test views, by any model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import DatasetDict
from torch import nn

from xmem_utils.params import MODALITIES
from xmem_utils.personas.attributes import AXES
from xmem_utils.personas.dataset import to_views
from xmem_utils.personas.views import View
from xmem_utils.recall import recall_of_all
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.prompts import AXIS_QUESTIONS


def readout(
    vlm: VLM,
    dataset: DatasetDict,
    axes: Sequence[str] = tuple(AXES),
    model: nn.Module | None = None,
    personas: Sequence[int] | None = None,
) -> pd.DataFrame:
    """One row a persona, modality and axis, from the persona's first test view: persona, asked, axis, correct, chance.

    `model` replaces the VLM's own (a PEFT model around it, say); `personas` are those looked at (default: all).

    Multiple choice: the value of the axis with the highest log-probability is the answer, so a model need
    not know our wording. Only drawn personas have axes: raises KeyError for a user's own people.
    """
    truth = {axis: dict(zip(dataset["test"]["persona"], dataset["test"][axis], strict=True)) for axis in axes}
    rows = []
    for asked in MODALITIES:
        views = to_views(dataset, "test", asked, per_persona=1)
        views = [view for view in views if personas is None or view.persona in personas]
        people = [view.persona for view in views]
        for axis, best in zip(axes, values_read(vlm, views, axes, model).T, strict=True):
            correct = [AXES[axis][b].name == truth[axis][person] for b, person in zip(best, people, strict=True)]
            rows.append(pd.DataFrame({"persona": people, "asked": asked, "axis": axis, "correct": correct,
                                      "chance": 1 / len(AXES[axis])}))  # fmt: skip
    return pd.concat(rows, ignore_index=True).astype({"correct": float, "persona": np.int64})


def values_read(
    vlm: VLM, views: Sequence[View], axes: Sequence[str] = tuple(AXES), model: nn.Module | None = None
) -> np.ndarray:
    """The likeliest value of each axis in each view, as indices `[views, axes]`."""
    best = []
    for axis in axes:
        values = [value.name for value in AXES[axis]]
        examples = encode(vlm, views, AXIS_QUESTIONS[axis], values[:1] * len(views))
        best.append(recall_of_all(vlm, examples, values, model).logprob.argmax(1))
    return np.stack(best, 1)
