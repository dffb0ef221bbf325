"""What a model that memorized is asked: every test view, in both modalities, with controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from datasets import DatasetDict
from peft import PeftModel
from PIL import Image

from xmem_utils.params import MODALITIES
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.personas.views import View
from xmem_utils.score import Recall, exact_match, ranks, recall_of_all
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.prompts import WHO


class Evaluation:
    """The test views of one dataset, tokenised once, with their controls."""

    def __init__(self, vlm: VLM, dataset: DatasetDict, question: str = WHO) -> None:
        self.vlm = vlm
        self.names = names_of(dataset)
        self.views: dict[str, list[View]] = {m: to_views(dataset, "test", m) for m in MODALITIES}
        self.examples = {m: encode(vlm, views, question) for m, views in self.views.items()}
        first = self.views["image"][0]
        blank = replace(first, content=Image.new("RGB", first.content.size, (127, 127, 127)))
        self.blank = encode(vlm, [blank], question)

    def recall(self, model: PeftModel | None = None) -> pd.DataFrame:
        """Exact match of every test view: persona, asked, probe "view", exact."""
        parts = []
        for modality, examples in self.examples.items():
            frame = pd.DataFrame({"persona": [v.persona for v in self.views[modality]]})
            parts.append(frame.assign(exact=exact_match(self.vlm, examples, model).exact, asked=modality))
        return pd.concat(parts, ignore_index=True).assign(probe="view")

    def records(self, model: PeftModel | None = None) -> pd.DataFrame:
        """One row a view and probe: persona, asked, probe, view, exact, logprob, rank among all names.

        Probe "shuffled views" asks for each name with the same view of the next persona, so what it
        leaves is not read off the view; "blank image" asks with a grey picture.
        """
        parts = []
        for modality, examples in self.examples.items():
            asked = np.array([v.persona for v in self.views[modality]])
            recall = recall_of_all(self.vlm, examples, self.names, model)
            parts.append(self._frame(modality, "view", asked, recall, np.arange(len(asked))))
            parts.append(self._frame(modality, "shuffled views", asked, recall, next_persona(asked)))
        nothing = recall_of_all(self.vlm, self.blank, self.names, model)
        asked = np.array([v.persona for v in self.views["image"]])
        parts.append(self._frame("image", "blank image", asked, nothing, np.zeros(len(asked), int)))
        return pd.concat(parts, ignore_index=True)

    def _frame(self, modality: str, probe: str, asked: np.ndarray, recall: Recall, shown: np.ndarray) -> pd.DataFrame:
        """Rows for the names of personas `asked`, when the rows `shown` of `recall` are what the model saw."""
        return pd.DataFrame(
            {
                "persona": asked,
                "asked": modality,
                "probe": probe,
                "view": [v.index for v in self.views[modality]],
                "exact": recall.exact[shown, asked],
                "logprob": recall.logprob[shown, asked],
                "rank": ranks(recall.logprob[shown], asked),
            }
        )


def next_persona(asked: np.ndarray) -> np.ndarray:
    """For each view, of persona `asked[i]` `[views]`, the row of a view of the next persona."""
    people = np.unique(asked)
    rows = {person: np.flatnonzero(asked == person) for person in people}
    following = dict(zip(people, np.roll(people, -1), strict=True))
    seen = dict.fromkeys(people, 0)
    out = np.empty(len(asked), int)
    for i, person in enumerate(asked):
        theirs = rows[following[person]]
        out[i] = theirs[seen[person] % len(theirs)]
        seen[person] += 1
    return out


def recall_by_modality(records: pd.DataFrame) -> dict[str, float]:
    """Exact match by asked modality, controls left out."""
    return records[records["probe"] == "view"].groupby("asked")["exact"].mean().to_dict()
