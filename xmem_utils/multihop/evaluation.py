"""What a model answers to every task: one row a question.

Columns: group, task, persona, query (modality of the view; "none" where only a name is given), view, fact, exact; for
hop 1, hop 2 and direct questions choice (closed-set: is the right name or value the likeliest of its kind?); where the
model writes a name first, wrote (is it the right one?) and own (is the fact that of the person it named?).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pandas as pd
from torch import nn

from xmem_utils.multihop import tasks
from xmem_utils.multihop.people import STUDY, Population
from xmem_utils.multihop.tasks import HOP_1, HOP_2, Question
from xmem_utils.params import MODALITIES
from xmem_utils.personas.names import FACTS
from xmem_utils.score import exact_match, greedy_answers, recall_of_all
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.load import VLM

COLUMNS = ["group", "task", "persona", "query", "view", "fact", "exact", "choice", "wrote", "own"]
FIRST = next(iter(FACTS))  # kind of fact


def encoded(vlm: VLM, asked: Sequence[Question]) -> list[Example]:
    """Questions as tokens, with their answers."""
    return encode(vlm, [a.view for a in asked], [a.question for a in asked], [a.answer for a in asked])


class MultihopEvaluation:
    """Questions about one population, tokenised once: `asked` says which tasks a group goes through."""

    def __init__(self, vlm: VLM, population: Population, asked: Mapping[str, Sequence[str]]) -> None:
        self.vlm, self.population = vlm, population
        self.questions = {
            (group, task, m): tasks.test_questions(population, task, group, m)
            for group, through in asked.items()
            for task in through
            for m in (MODALITIES if task != HOP_2 else MODALITIES[:1])
        }
        together = iter(encoded(vlm, [a for some in self.questions.values() for a in some]))
        self.examples = {key: list(islice(together, len(some))) for key, some in self.questions.items()}

    def records(self, model: nn.Module | None = None) -> pd.DataFrame:
        """All tasks."""
        parts = []
        for (group, task, modality), asked in self.questions.items():
            examples = self.examples[group, task, modality]
            if task == HOP_1:
                made = self._names(model, asked, examples)
            elif task in (tasks.STEPWISE, tasks.FOUR_STEPWISE):
                made = [self.written(model, asked, examples)]
            elif task in (HOP_2, tasks.DIRECT):
                made = self._values(model, asked, examples)
            else:
                made = [_frame(task, asked, exact=exact_match(self.vlm, examples, model).exact.astype(float))]
            parts += [frame.assign(group=group, query=_asked_in(task, modality)) for frame in made]
        return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)

    def _names(self, model, asked, examples) -> list[pd.DataFrame]:
        """Hop 1, what follows when its answer is fed back as a question, and which view a name belongs to."""
        people = sorted({a.view.persona for a in asked})
        mine = [people.index(a.view.persona) for a in asked]
        recall = recall_of_all(self.vlm, examples, [self.population.names[p] for p in people], model)
        exact = recall.exact[np.arange(len(asked)), mine].astype(float)
        reverse = self.reverse(tasks.REVERSE_NAME, FIRST, asked, recall.logprob, mine)
        first = (recall.logprob.argmax(1) == mine).astype(float)
        return [_frame(HOP_1, asked, exact=exact, choice=first), reverse, self._chain(model, asked, examples)]

    def _chain(self, model, asked, examples) -> pd.DataFrame:
        names, facts = self.population.names, self.population.facts
        rows, wrote = [], []
        for a, name in zip(asked, greedy_answers(self.vlm, examples, model), strict=True):
            person = a.view.persona
            for fact in FACTS:
                question = tasks.HELD_OUT[fact].format(name=name)
                # the question is about a name alone: nobody is shown
                shown = replace(tasks.no_view(person, "", "test"), index=a.view.index)
                rows.append(Question(tasks.CHAIN, shown, fact, question, facts[fact][person]))
                wrote.append(float(name == names[person]))
        exact = exact_match(self.vlm, encoded(self.vlm, rows), model).exact.astype(float)
        return _frame(tasks.CHAIN, rows, exact=exact, wrote=wrote)

    def reverse(self, task, fact, asked, logprob, mine) -> pd.DataFrame:
        """Whose view is it? Right when the true one makes the answer likelier than the views of three others do.

        `logprob` `[questions, answers]`; `mine` is the column of each question's own answer. The others have another
        value of `fact`.
        """
        row = {(a.view.persona, a.view.index): i for i, a in enumerate(asked)}
        exact = []
        for a, answer in zip(asked, mine, strict=True):
            shown = [a.view.persona, *tasks.others(self.population, a.view.persona, fact, tasks.CANDIDATES - 1)]
            scores = [logprob[row[p, a.view.index], answer] for p in shown]
            exact.append(float(scores[0] > max(scores[1:])))
        return _frame(task, asked, exact=exact)

    def _values(self, model, asked, examples) -> list[pd.DataFrame]:
        """Facts without a name before them, each scored among all values of its kind."""
        parts, task = [], asked[0].task
        for fact, values in FACTS.items():
            rows = [i for i, a in enumerate(asked) if a.fact == fact]
            here = [asked[i] for i in rows]
            mine = [values.index(a.answer) for a in here]
            recall = recall_of_all(self.vlm, [examples[i] for i in rows], values, model)
            exact = recall.exact[np.arange(len(rows)), mine].astype(float)
            parts.append(_frame(task, here, exact=exact, choice=(recall.logprob.argmax(1) == mine).astype(float)))
            if task == tasks.DIRECT:
                parts.append(self.reverse(tasks.REVERSE_FACT, fact, here, recall.logprob, mine))
        return parts

    def written(self, model, asked, examples) -> pd.DataFrame:
        """Tasks in which the model writes the name and then the fact, decoded."""
        number = {name: person for person, name in enumerate(self.population.names)}
        exact, wrote, own = [], [], []
        for a, text in zip(asked, greedy_answers(self.vlm, examples, model), strict=True):
            name, _, value = text.partition(", ")
            exact.append(float(text == a.answer))
            wrote.append(float(name == self.population.names[a.view.persona]))
            own.append(float(name in number and self.population.facts[a.fact][number[name]] == value))
        return _frame(asked[0].task, asked, exact=exact, wrote=wrote, own=own)

    def curve_point(self, model: nn.Module) -> pd.DataFrame:
        """Exact match of the study as it trains, first test views, first kind of fact: task, query, recall."""
        rows = []
        for (group, task, modality), asked in self.questions.items():
            if group == STUDY and task in (HOP_1, HOP_2, tasks.DIRECT, tasks.STEPWISE):
                examples = [e for a, e in zip(asked, self.examples[group, task, modality], strict=True)
                            if a.view.index == 0 and a.fact in ("", FIRST)]  # fmt: skip
                recall = float(exact_match(self.vlm, examples, model).exact.mean())
                rows.append({"task": task, "query": _asked_in(task, modality), "recall": recall})
        return pd.DataFrame(rows)


def _asked_in(task: str, modality: str) -> str:
    return "none" if task == HOP_2 else modality


def _frame(task: str, asked: Sequence[Question], **columns: Sequence[float]) -> pd.DataFrame:
    shown = {"persona": [a.view.persona for a in asked], "view": [a.view.index for a in asked]}
    return pd.DataFrame({"task": task, **shown, "fact": [a.fact for a in asked], **columns})
