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
from xmem_utils.score import exact_match, ranked, ranks, recall_of_all
from xmem_utils.vlm.adapters import for_evaluation
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

    def recall(self, model: PeftModel | None = None, views: int = 99) -> pd.DataFrame:
        """Exact match of the first `views` test views a person: persona, exact, group, query, task "view"."""
        parts = []
        with for_evaluation(model):
            for modality, examples in self.examples.items():
                asked = [(v.persona, e) for v, e in zip(self.views[modality], examples, strict=True) if v.index < views]
                exact = exact_match(self.vlm, [e for _, e in asked], model).exact
                part = pd.DataFrame({"persona": [person for person, _ in asked], "exact": exact})
                parts.append(part.assign(group="study", query=modality, task="view"))
        return pd.concat(parts)

    def records(self, model: PeftModel | None = None) -> pd.DataFrame:
        """One row a view and task: persona, query, task, view, exact, logprob, rank among all names, group.

        Task "shuffled views" asks for the name of the persona before with the same view, so what it leaves is not
        read off the view (it has no rank); "blank image" asks for every name with a grey picture.
        """
        parts, shown = [], {}
        with for_evaluation(model):
            for modality in MODALITIES:
                shown[modality] = views = pd.DataFrame(
                    {"persona": v.persona, "view": v.index} for v in self.views[modality]
                )
                asked = views["persona"].to_numpy()
                before = previous_persona(asked)
                found = ranked(self.vlm, self.examples[modality], self.names, np.stack([asked, before], 1), model)
                own = {"task": "view", "exact": found.exact[:, 0], "logprob": found.logprob[:, 0], "rank": found.rank}
                other = {"task": "shuffled views", "exact": found.exact[:, 1], "logprob": found.logprob[:, 1]}
                parts.append(views.assign(query=modality, **own))
                parts.append(views.assign(persona=before, query=modality, **other).sort_values(["persona", "view"]))
            nothing = recall_of_all(self.vlm, self.blank, self.names, model)
        asked = shown["image"]["persona"].to_numpy()
        blank = {"exact": nothing.exact[0, asked], "logprob": nothing.logprob[0, asked]}
        blank["rank"] = ranks(nothing.logprob.repeat(len(asked), 0), asked)
        parts.append(shown["image"].assign(query="image", task="blank image", **blank))
        columns = ["persona", "query", "task", "view", "exact", "logprob", "rank"]
        return pd.concat(parts, ignore_index=True)[columns].assign(group="study")


def previous_persona(asked: np.ndarray) -> np.ndarray:
    """For each view, of persona `asked[i]` `[views]`, the persona before, in a circle."""
    people = np.unique(asked)
    return np.roll(people, 1)[np.searchsorted(people, asked)]


def recall_by_modality(records: pd.DataFrame) -> dict[str, float]:
    """Exact match by query modality, controls left out."""
    return records[records["task"] == "view"].groupby("query")["exact"].mean().to_dict()
