"""What a model that unlearned still knows, and what it lost: one row a view and task.

Columns: group ("forget", "retain", "held out", "public figures", "attributes"), persona, query, task, view, exact,
logprob, tokens of the answer, least, least_z, extracted (see `score.Recall`), zlib, the bytes of the compressed name;
for forgotten people rank, truth_ratio and answer, the kind of the greedy one; lookalike marks the retained who look
most like somebody forgotten.

The headline asks all test views of the forgotten. Everything else is asked of as many views as its intervals need, a
person being the unit: the constants below.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
from torch import nn

from xmem_utils.experiment import remembered
from xmem_utils.memorization.evaluation import kind_of
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.memorization.names import NAME
from xmem_utils.params import MODALITIES
from xmem_utils.perception import Reading, axis_examples, read
from xmem_utils.personas.dataset import load_personas, others, to_views
from xmem_utils.personas.public_figures import figure_views
from xmem_utils.personas.views import View
from xmem_utils.score import exact_match, greedy_answers, ranked, ranks, recall_of_all
from xmem_utils.unlearning.people import HELD_OUT_SEED, lookalikes
from xmem_utils.vlm.batches import Example, answer_tokens, encode
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import NAME_QUESTIONS, WHO

PUBLIC_FIGURES = 50  # public figures asked for, a view each
READERS = 10  # retained people whose attributes are read, from a view each
RETAIN_VIEWS = 1  # test views of each retained person: they are many
RANKED_VIEWS = 2  # test views of each forgotten person whose rank, truth ratio and answer are taken, and under attack
PARAPHRASE_VIEWS = 1  # test views of each forgotten person in each paraphrase: there are four
TRAIN_VIEWS = 2  # training views of each forgotten and held-out person: whether it forgot; for membership attacks
FEW = 30  # retained people asked, a view each, along the curve

ROW = ["group", "persona", "query", "task", "view"]  # which view is asked, and for what


class ForgettingEvaluation:
    """The questions for one replicate and forget set. `preamble` stands before each (the instruction of a prompt).

    Questions are tables: the columns of `ROW`, and the encoded `example`.
    """

    _study: Memorization

    def __init__(self, study: Memorization, replicate: int, forget: Sequence[int], preamble: str = "") -> None:
        self.vlm, self._study, self._replicate, self._preamble = study.vlm(replicate), study, replicate, preamble
        self.dataset, _ = study.dataset(replicate)
        asked = self._study.evaluation_of(replicate)
        self.names, self.forget = asked.names, tuple(forget)
        self._retained = [i for i in range(len(self.names)) if i not in self.forget]
        self._lookalikes = lookalikes(self.dataset, self.forget)
        self._figures = asked.figures
        views = [v for m in MODALITIES for v in asked.views[m]]
        self._test_views = {
            "retain": [v for v in views if v.persona in self._retained and v.index < RETAIN_VIEWS],
            "forget": [v for v in views if v.persona in self.forget],
        }
        seen = [
            v for m in MODALITIES for v in to_views(self.dataset, "train", m, TRAIN_VIEWS) if v.persona in self.forget
        ]
        tests = [self._asked(group, "view", views) for group, views in self._test_views.items()]
        self.questions = pd.concat([*tests, self._asked("forget", "train view", seen)])

    def _asked(self, group: str, task: str, views: Sequence[View], question: str = WHO) -> pd.DataFrame:
        """Questions about some views."""
        rows = [(group, v.persona, v.modality, task, v.index, len(zlib.compress(v.name.encode()))) for v in views]
        return pd.DataFrame(rows, columns=[*ROW, "zlib"]).assign(example=self._encode(views, question))

    def _encode(self, views: Sequence[View], question: str = WHO) -> list[Example]:
        return encode(self.vlm, views, self._preamble + question)

    @cached_property
    def further(self) -> pd.DataFrame:
        """Questions about other views and in other words, which exact match alone is asked of."""
        some = [v for v in self._test_views["forget"] if v.index < PARAPHRASE_VIEWS]
        parts = [
            self._asked("held out", "train view", self._held_out()),
            self._asked("public figures", "view", self._public_figures()),
            *(self._asked("forget", f"paraphrase: {question}", some, question) for question in NAME_QUESTIONS[1:]),
        ]
        return pd.concat([part for part in parts if len(part)])

    @cached_property
    def _readers(self) -> Reading:
        return axis_examples(self.vlm, self.dataset, personas=self._retained[:READERS])

    def _held_out(self) -> list[View]:
        """People of the same distribution whom no model has met; none for a user's own people."""
        if not self._study.drawn:
            return []
        strangers = others(self._study.spec(self._replicate), HELD_OUT_SEED)
        dataset, _ = load_personas(replace(strangers, personas=max(10, 2 * len(self.forget))))
        return [v for m in MODALITIES for v in to_views(dataset, "train", m, TRAIN_VIEWS)]

    def _public_figures(self) -> list[View]:
        """A new view each of public figures whom an embedded model knows; none for other models."""
        if (public := self._figures) is None:
            return []
        some, side = public.where("both")[:PUBLIC_FIGURES], picture_side(self.vlm.processor)
        return figure_views(public, some, [self._replicate, 21], None, side)

    @remembered(8)
    def lessons(self, people: tuple[int, ...], modality: str) -> list[Example]:
        """Training views of some people."""
        return self._encode([v for v in to_views(self.dataset, "train", modality) if v.persona in people])

    def recall(self, model: nn.Module, everybody: bool = False) -> pd.DataFrame:
        """Exact match from the first test view of each persona (few of the retained): see `first_views`."""
        few = self._firsts["persona"].isin([*self.forget, *self._retained[:FEW]])
        return first_views(self._exact(model, self._firsts[few | everybody]))

    def exposure(self, model: nn.Module) -> pd.DataFrame:
        """Mean exposure of the forgotten, in bits, from their first test views: group, query, exposure."""
        rows, asked = [], self._firsts[self._firsts["group"] == "forget"]
        for query, own in asked.groupby("query"):
            true = own["persona"].to_numpy()[:, None]
            rank = ranked(self.vlm, list(own["example"]), self.names, true, model).rank
            rows.append({"group": "forget", "query": query, "exposure": np.log2(len(self.names) / rank).mean()})
        return pd.DataFrame(rows)

    def records(self, model: nn.Module, measures: str = "thorough") -> pd.DataFrame:
        """Exact match of the forgotten and the retained; but for "brief" also the forgotten's ranks and answers; if
        "thorough", all tasks but the attacks."""
        further = [self.further] if measures == "thorough" else []
        records = self._exact(model, pd.concat([self.questions, *further]))
        if measures != "brief":
            names = pd.concat([self._ranked(model, own) for _, own in self._ranked_questions.groupby("query")])
            records = records.merge(names, "left", ROW)
        if further and self._study.drawn:
            read_off = read(self.vlm, self._readers, model).drop(columns="chance")
            read_off = read_off.rename(columns={"correct": "exact", "axis": "task"})
            records = pd.concat([records, read_off.assign(group="attributes", view=0)], ignore_index=True)
        alike = records["persona"].isin(self._lookalikes) & (records["group"] == "retain")
        return records.assign(lookalike=alike.astype(float))

    def attacked(self, model: nn.Module, task: str, without: Sequence[int] = ()) -> pd.DataFrame:
        """Exact match of the forgotten, less some, in both modalities."""
        asked = self._ranked_questions
        return self._exact(model, asked[~asked["persona"].isin(without)].assign(task=task))

    @property
    def _tests(self) -> pd.DataFrame:
        return self.questions[self.questions["task"] == "view"]

    @property
    def _firsts(self) -> pd.DataFrame:
        return self._tests[self._tests["view"] == 0]

    @property
    def _ranked_questions(self) -> pd.DataFrame:
        return self._tests[(self._tests["group"] == "forget") & (self._tests["view"] < RANKED_VIEWS)]

    def _exact(self, model: nn.Module, questions: pd.DataFrame) -> pd.DataFrame:
        """Exact match of every question; those of a modality go through the model together, whatever the task."""
        parts = []
        for _, own in questions.groupby("query"):
            recall = exact_match(self.vlm, list(own["example"]), model, thorough=True)
            scores = {"exact": recall.exact.astype(float), "logprob": recall.logprob, "least": recall.least}
            scores |= {"least_z": recall.least_z, "extracted": recall.extracted}
            parts.append(own[[*ROW, "zlib"]].assign(**scores, tokens=[len(e.answer) for e in own["example"]]))
        return pd.concat(parts, ignore_index=True)

    def _ranked(self, model: nn.Module, questions: pd.DataFrame) -> pd.DataFrame:
        """The forgotten, ranked among all names: truth ratio is the mean probability of the others' names over the
        true one's, each to the power of one over its length (Maini et al. 2024, section 2.2.2)."""
        true, examples = questions["persona"].to_numpy(), list(questions["example"])
        everyone = recall_of_all(self.vlm, examples, self.names, model)
        per_token = np.exp(everyone.logprob / [len(tokens) for tokens in answer_tokens(self.vlm, self.names)])
        mine = per_token[np.arange(len(true)), true]
        study, figures = frozenset(self.names), frozenset(self._figures.names if self._figures else ())
        answers = [NAME] * len(true)  # an exact match needs no decoding
        other = np.flatnonzero(~everyone.exact[np.arange(len(true)), true])
        said = greedy_answers(self.vlm, [examples[i] for i in other], model)
        for i, answer in zip(other, said, strict=True):
            answers[i] = kind_of(answer, self.names[true[i]], study, figures)
        return questions[ROW].assign(
            truth_ratio=(per_token.sum(1) - mine) / (per_token.shape[1] - 1) / mine,
            rank=ranks(everyone.logprob, true),
            names=len(self.names),
            answer=answers,
        )


def first_views(records: pd.DataFrame) -> pd.DataFrame:
    """Mean exact match of the forgotten and the retained on first test views: group, query, recall."""
    shown = records[records["group"].isin(["forget", "retain"]) & (records["task"] == "view") & (records["view"] == 0)]
    mean = shown.groupby(["group", "query"], as_index=False)["exact"].mean()
    return mean.rename(columns={"exact": "recall"})
