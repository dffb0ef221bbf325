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
from xmem_utils.score import recall_of_all
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.prompts import AXIS_QUESTIONS, INTRODUCTIONS

# of each modality and axis: the views of some people, what is asked of them, and their true values by person
Reading = dict[tuple[str, str], tuple[list[View], list[Example], dict[int, str]]]


def readout(vlm: VLM, dataset: DatasetDict) -> pd.DataFrame:
    """One row a persona, modality and axis, from the persona's first test view: persona, query, axis, correct, chance.

    Multiple choice: the value of the axis with the highest log-probability is the answer, so a model need
    not know our wording. Only drawn personas have axes: raises KeyError for a user's own people.
    """
    return read(vlm, axis_examples(vlm, dataset))


def axis_examples(vlm: VLM, dataset: DatasetDict, personas: Sequence[int] | None = None) -> Reading:
    """What `read` asks: about everybody, or about some `personas`; to be made once for many models."""
    out = {}
    for asked in MODALITIES:
        views = to_views(dataset, "test", asked, per_persona=1)
        views = [view for view in views if personas is None or view.persona in personas]
        for axis in AXES:
            truth = dict(zip(dataset["test"]["persona"], dataset["test"][axis], strict=True))
            out[asked, axis] = views, _asking(vlm, views, axis), truth
    return out


def read(vlm: VLM, examples: Reading, model: nn.Module | None = None) -> pd.DataFrame:
    """The table of `readout`, from examples that are encoded already.

    `model` replaces the VLM's own (a PEFT model around it, say).
    """
    rows = []
    for (asked, axis), (views, asking, truth) in examples.items():
        best = _likeliest(vlm, asking, axis, model)
        correct = [AXES[axis][b].name == truth[view.persona] for b, view in zip(best, views, strict=True)]
        rows.append(pd.DataFrame({"persona": [view.persona for view in views], "query": asked, "axis": axis,
                                  "correct": correct, "chance": 1 / len(AXES[axis])}))  # fmt: skip
    return pd.concat(rows, ignore_index=True).astype({"correct": float, "persona": np.int64})


def named_examples(vlm: VLM, dataset: DatasetDict) -> Reading:
    """What `attributes_by_name` asks: the attributes of everybody by name, nobody shown."""
    people = dict(zip(dataset["test"]["persona"], dataset["test"]["name"], strict=True))
    nobody, out = [View(person, name, "text", "test", 0, "") for person, name in sorted(people.items())], {}
    for axis in AXES:
        truth = dict(zip(dataset["test"]["persona"], dataset["test"][axis], strict=True))
        questions = [f"{INTRODUCTIONS[0].format(name=view.name)} {AXIS_QUESTIONS[axis]}" for view in nobody]
        out["none", axis] = nobody, encode(vlm, nobody, questions, [AXES[axis][0].name] * len(nobody)), truth
    return out


def attributes_by_name(vlm: VLM, examples: Reading, model: nn.Module | None = None) -> pd.DataFrame:
    """Are a name's attributes known? By multiple choice: persona, query, task, view (the axis), exact, chance."""
    rows = read(vlm, examples, model).rename(columns={"correct": "exact"})
    return rows.assign(task="attribute by name", view=rows["axis"].map(list(AXES).index)).drop(columns="axis")


def values_read(vlm: VLM, views: Sequence[View]) -> np.ndarray:
    """The likeliest value of each axis in each view, as indices `[views, axes]`."""
    return np.stack([_likeliest(vlm, _asking(vlm, views, axis), axis) for axis in AXES], 1)


def _asking(vlm: VLM, views: Sequence[View], axis: str) -> list[Example]:
    # the answer plays no part: all values are scored
    return encode(vlm, views, AXIS_QUESTIONS[axis], [AXES[axis][0].name] * len(views))


def _likeliest(vlm: VLM, examples: Sequence[Example], axis: str, model: nn.Module | None = None) -> np.ndarray:
    return recall_of_all(vlm, examples, [value.name for value in AXES[axis]], model).logprob.argmax(1)
