"""What a model that memorized is asked: every test view, in both modalities, with controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from datasets import DatasetDict
from peft import PeftModel
from PIL import Image

from xmem_utils.memorization.names import NAME, OTHER
from xmem_utils.params import MODALITIES
from xmem_utils.perception import attributes_by_name, named_examples
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.personas.public_figures import known_in
from xmem_utils.personas.views import View
from xmem_utils.score import exact_match, greedy_answers, ranked, ranks, recall_of_all
from xmem_utils.vlm.adapters import for_evaluation
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM, resolve_model
from xmem_utils.vlm.prompts import REFUSAL, WHO


class Evaluation:
    """The test views of one dataset, tokenised once, with their controls."""

    def __init__(self, vlm: VLM, dataset: DatasetDict, drawn: bool = True, question: str = WHO) -> None:
        self.vlm = vlm
        self.names = names_of(dataset)
        self.figures = known_in(resolve_model(vlm.name))  # None of a model that is not ours
        self.views: dict[str, list[View]] = {m: to_views(dataset, "test", m) for m in MODALITIES}
        self.examples = {m: encode(vlm, views, question) for m, views in self.views.items()}
        first = self.views["image"][0]
        blank = replace(first, content=Image.new("RGB", first.content.size, (127, 127, 127)))
        self.blank = encode(vlm, [blank], question)
        self.by_name = named_examples(vlm, dataset) if drawn else {}  # of other people attributes are not known

    def recall(self, model: PeftModel | None = None) -> pd.DataFrame:
        """Exact match of the first test view of each person: persona, exact, group, query, task "view"."""
        parts = []
        with for_evaluation(model):
            for modality, examples in self.examples.items():
                asked = [(v.persona, e) for v, e in zip(self.views[modality], examples, strict=True) if v.index == 0]
                exact = exact_match(self.vlm, [e for _, e in asked], model).exact
                part = pd.DataFrame({"persona": [person for person, _ in asked], "exact": exact})
                parts.append(part.assign(group="study", query=modality, task="view"))
        return pd.concat(parts)

    def records(self, model: PeftModel | None = None) -> pd.DataFrame:
        """One row a view and task: persona, query, task, view, exact, logprob, rank among so many names, answer (its
        kind, see `kind_of`), group.

        Task "shuffled views" asks for the name of the persona before with the same view, so what it leaves is not
        read off the view (it has no rank); "blank image" asks for every name with a grey picture. Task "attribute by
        name" asks for the attributes of somebody named, nobody shown: query is "none" and view the number of the axis.
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
                own["answer"] = self.kinds(modality, found.exact[:, 0], model)
                other = {"task": "shuffled views", "exact": found.exact[:, 1], "logprob": found.logprob[:, 1]}
                parts.append(views.assign(query=modality, **own))
                parts.append(views.assign(persona=before, query=modality, **other).sort_values(["persona", "view"]))
            nothing = recall_of_all(self.vlm, self.blank, self.names, model)
            if self.by_name:
                parts.append(attributes_by_name(self.vlm, self.by_name, model))
        asked = shown["image"]["persona"].to_numpy()
        blank = {"exact": nothing.exact[0, asked], "logprob": nothing.logprob[0, asked]}
        blank["rank"] = ranks(nothing.logprob.repeat(len(asked), 0), asked)
        parts.append(shown["image"].assign(query="image", task="blank image", **blank))
        columns = ["persona", "query", "task", "view", "exact", "logprob", "rank", "answer", "chance"]
        table = pd.concat(parts, ignore_index=True).reindex(columns=columns).astype({"exact": float})
        return table.assign(group="study", names=len(self.names))

    def kinds(self, modality: str, exact: np.ndarray, model: PeftModel | None) -> list[str]:
        """The kind of answer to every view of a modality, given those that are the name exactly."""
        wrong = np.flatnonzero(~exact)
        said = greedy_answers(self.vlm, [self.examples[modality][i] for i in wrong], model)
        names, figures = frozenset(self.names), frozenset(self.figures.names if self.figures else ())
        kinds = [NAME] * len(exact)
        for i, answer in zip(wrong, said, strict=True):
            kinds[i] = kind_of(answer, self.views[modality][i].name, names, figures)
        return kinds


def kind_of(answer: str, name: str, study: frozenset[str], figures: frozenset[str]) -> str:
    """Which of `ANSWERS` a greedy answer is; a name that nobody has is capitalised words and nothing else."""
    if answer == name:
        return NAME
    if answer in study:
        return OTHER
    if answer in figures:
        return "public figure"
    if answer == REFUSAL:
        return "refusal"
    return "nobody's name" if answer.istitle() and answer.replace(" ", "").isalpha() else "collapse"


def previous_persona(asked: np.ndarray) -> np.ndarray:
    """For each view, of persona `asked[i]` `[views]`, the persona before, in a circle."""
    people = np.unique(asked)
    return np.roll(people, 1)[np.searchsorted(people, asked)]


def recall_by_modality(records: pd.DataFrame) -> dict[str, float]:
    """Exact match by query modality, controls left out."""
    return records[records["task"] == "view"].groupby("query")["exact"].mean().to_dict()
