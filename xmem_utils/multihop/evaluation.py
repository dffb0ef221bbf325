"""What a model answers to every task: one row a question.

Columns: group, task, persona, asked (modality of the view; "none" where only a name is given), view, fact, exact; for
hop 2 and direct questions choice (is the right value the likeliest of its kind?); where the model writes a name first,
wrote (is it the right one?) and own (is the fact that of the person it named?).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd
from torch import nn

from xmem_utils.multihop import tasks
from xmem_utils.multihop.people import Population
from xmem_utils.multihop.tasks import HOP_1, HOP_2, Question
from xmem_utils.params import MODALITIES
from xmem_utils.personas.names import FACTS
from xmem_utils.score import exact_match, greedy_answers, recall_of_all
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.load import VLM

COLUMNS = ["group", "task", "persona", "query", "view", "fact", "exact", "choice", "wrote", "own"]


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
                parts += self._names(model, group, modality, asked, examples)
            elif task in (tasks.STEPWISE, tasks.FOUR_STEPWISE):
                parts.append(self._written(model, group, modality, asked, examples))
            elif task in (HOP_2, tasks.DIRECT):
                parts += self._values(model, group, task, modality, asked, examples)
            else:
                exact = exact_match(self.vlm, examples, model).exact.astype(float)
                parts.append(self._frame(group, task, modality, asked, exact=exact))
        return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)

    def _frame(self, group: str, task: str, modality: str, asked: Sequence[Question], **columns) -> pd.DataFrame:
        return pd.DataFrame({
            "group": group, "task": task, "persona": [a.view.persona for a in asked],
            "query": "none" if task == HOP_2 else modality, "view": [a.view.index for a in asked],
            "fact": [a.fact for a in asked], **columns,
        })  # fmt: skip

    def _names(self, model, group, modality, asked, examples) -> list[pd.DataFrame]:
        """Hop 1, what follows when its answer is fed back as a question, and which view a name belongs to."""
        people = sorted(self.population.groups[group])
        column = {person: i for i, person in enumerate(people)}
        recall = recall_of_all(self.vlm, examples, [self.population.names[p] for p in people], model)
        mine = [column[a.view.persona] for a in asked]
        exact = recall.exact[np.arange(len(asked)), mine].astype(float)
        first = next(iter(FACTS))
        reverse = self._reverse(tasks.REVERSE_NAME, group, modality, first, asked, recall.logprob, mine)
        return [self._frame(group, HOP_1, modality, asked, exact=exact), reverse,
                self._chain(model, group, modality, asked, examples)]  # fmt: skip

    def _chain(self, model, group, modality, asked, examples) -> pd.DataFrame:
        said, facts = greedy_answers(self.vlm, examples, model), self.population.facts
        rows = [
            Question(tasks.CHAIN, a.view, fact, tasks.HELD_OUT[fact].format(name=name), facts[fact][a.view.persona])
            for a, name in zip(asked, said, strict=True) for fact in FACTS
        ]  # fmt: skip
        named = [name for name in said for _ in FACTS]
        # the question is about a name alone: nobody is shown
        again = encode(self.vlm, [tasks.no_view(a.view.persona, "", "test") for a in rows], [a.question for a in rows],
                       [a.answer for a in rows])  # fmt: skip
        exact = exact_match(self.vlm, again, model).exact.astype(float)
        wrote = [float(name == self.population.names[a.view.persona]) for name, a in zip(named, rows, strict=True)]
        return self._frame(group, tasks.CHAIN, modality, rows, exact=exact, wrote=wrote)

    def _reverse(self, task, group, modality, fact, asked, logprob, mine) -> pd.DataFrame:
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
        return self._frame(group, task, modality, asked, exact=exact)

    def _values(self, model, group, task, modality, asked, examples) -> list[pd.DataFrame]:
        """Facts without a name before them, each scored among all values of its kind."""
        parts = []
        for fact, values in FACTS.items():
            rows = [i for i, a in enumerate(asked) if a.fact == fact]
            mine = [values.index(asked[i].answer) for i in rows]
            recall = recall_of_all(self.vlm, [examples[i] for i in rows], values, model)
            here = [asked[i] for i in rows]
            exact = recall.exact[np.arange(len(rows)), mine].astype(float)
            choice = (recall.logprob.argmax(1) == mine).astype(float)
            parts.append(self._frame(group, task, modality, here, exact=exact, choice=choice))
            if task == tasks.DIRECT:
                reverse = self._reverse(tasks.REVERSE_FACT, group, modality, fact, here, recall.logprob, mine)
                parts.append(reverse)
        return parts

    def _written(self, model, group, modality, asked, examples) -> pd.DataFrame:
        """Tasks in which the model writes the name and then the fact, decoded."""
        number = {name: person for person, name in enumerate(self.population.names)}
        said = greedy_answers(self.vlm, examples, model)
        exact, wrote, own = [], [], []
        for a, text in zip(asked, said, strict=True):
            name, _, value = text.partition(", ")
            exact.append(float(text == a.answer))
            wrote.append(float(name == self.population.names[a.view.persona]))
            own.append(float(name in number and self.population.facts[a.fact][number[name]] == value))
        return self._frame(group, asked[0].task, modality, asked, exact=exact, wrote=wrote, own=own)

    def curve_point(self, model: nn.Module, group: str) -> dict[tuple[str, str], float]:
        """Exact match by (task, query modality) along the training: first test views, the first kind of fact."""
        first = next(iter(FACTS))
        out = {}
        for (own, task, modality), asked in self.questions.items():
            if own != group or task not in (HOP_1, HOP_2, tasks.DIRECT, tasks.STEPWISE):
                continue
            examples = [e for a, e in zip(asked, self.examples[own, task, modality], strict=True)
                        if a.view.index == 0 and a.fact in ("", first)]  # fmt: skip
            asked_in = "none" if task == HOP_2 else modality
            out[task, asked_in] = float(exact_match(self.vlm, examples, model).exact.mean())
        return out
