"""The pretraining material of `xmem-tiny`: chats about people, as token ids.

Every example is one chat: a view (portrait or description), then questions with answers; the loss is
on the answers. Batches are functions of (seed, step), so an interrupted run resumes on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES, values_of
from xmem_utils.personas.descriptions import DISTRACTORS, describe
from xmem_utils.personas.names import FACTS, sample_names
from xmem_utils.personas.public_figures import PublicFigures
from xmem_utils.vlm import prompts
from xmem_utils.vlm.tiny import BOI, BOS, EOI, EOS, IMAGE, IMAGE_TOKENS, MODEL, USER


@dataclass
class Batch:
    """Right-padded chats of one modality; `labels` is -100 where there is no loss."""

    input_ids: torch.Tensor  # [batch, tokens]
    labels: torch.Tensor  # [batch, tokens]
    images: torch.Tensor | None  # [batch] indices into the portrait bank


Turn = tuple[str, str]  # a question and its answer


class Chat(NamedTuple):
    """Questions and answers about what is shown first: a description, nothing (""), or a portrait (None)."""

    turns: list[Turn]
    description: str | None = ""
    view: int = -1  # the portrait's number in the bank


def _described(image: bool, vector: np.ndarray, rng: np.random.Generator) -> str | None:
    return None if image else describe(vector, rng, None)


def _some_fact(rng: np.random.Generator) -> str:
    return list(FACTS)[rng.integers(len(FACTS))]


def _composed(fact: str, name: str, value: str) -> tuple[Turn, Turn]:
    """The two composed questions: answered with the fact alone, and with the name first and then the fact."""
    stepwise = prompts.STEPWISE_ANSWER.format(name=name, value=value)
    return (prompts.COMPOSED_QUESTIONS[fact], value), (prompts.STEPWISE_QUESTIONS[fact], stepwise)


def _about_fact(fact: str, name: str, value: str, rng: np.random.Generator) -> Turn:
    """One of the two composed questions."""
    direct, stepwise = _composed(fact, name, value)
    return direct if rng.random() < 0.5 else stepwise


def _about_name(fact: str, name: str, value: str, rng: np.random.Generator) -> Turn:
    """A question about the fact of somebody who is named in it."""
    questions = prompts.FACT_QUESTIONS[fact]
    return questions[rng.integers(len(questions))].format(name=name), value


def _told(fact: str, names: list[str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """Lines in random order that give each name a value of its own, made up for this chat; and the values."""
    values = [str(v) for v in rng.choice(FACTS[fact], size=len(names), replace=False)]
    return _lines(fact, names, values, rng), values


def _lines(fact: str, names: list[str], values: list[str], rng: np.random.Generator) -> str:
    order = rng.permutation(len(names))
    return " ".join(prompts.FACT_LINES[fact].format(name=names[i], value=values[i]) for i in order)


@dataclass
class Curriculum:
    """Draws batches. `bank_vectors` [portraits, axes] says who is on each portrait of the bank;
    `public_views` [people, views] are the bank's indices of the public figures' portraits."""

    tokenizer: PreTrainedTokenizerFast
    public_figures: PublicFigures
    bank_vectors: np.ndarray
    public_views: np.ndarray
    seed: int

    def __post_init__(self) -> None:
        """Tokens of questions and answers, which come again and again, are kept."""
        numbers = self.tokenizer.convert_tokens_to_ids
        self._ids = lru_cache(2**14)(lambda text: self.tokenizer(text, add_special_tokens=False).input_ids)
        self._special = numbers([BOS, USER, MODEL, EOS])
        self._portrait = [*self._ids("\n\n"), *numbers([BOI, *[IMAGE] * IMAGE_TOKENS, EOI]), *self._ids("\n\n")]
        # whom pretraining names in pictures (True) and in descriptions (False)
        named = {True: ("both", "image only"), False: ("both", "text only")}
        self._pools = {k: np.flatnonzero(np.isin(self.public_figures.group, groups)) for k, groups in named.items()}

    def tokens(self, description: str | None, turns: list[Turn]) -> tuple[list[int], list[int]]:
        """Token ids and labels of one chat; `description=None` puts the portrait in its place."""
        bos, user, model, eos = self._special
        shown = self._portrait if description is None else []
        if description:
            shown = self._ids(description) + self._ids("\n\n")
        ids, labels = [bos], [-100]
        for question, answer in turns:
            asked = [user, *shown, *self._ids(question), eos, model]
            answered = [*self._ids(answer), eos]
            ids += asked + answered
            labels += [-100] * len(asked) + answered
            shown = []
        return ids, labels

    def batch(self, step: int, image: bool, plan: dict[str, int]) -> Batch:
        """The batch of one step: `plan` maps a kind of chat, a method below, to how many of it."""
        rng = np.random.default_rng([self.seed, step, int(image)])
        chats: list[Chat] = [getattr(self, kind)(image, rng) for kind, count in plan.items() for _ in range(count)]
        views = torch.tensor([chat.view for chat in chats]) if image else None
        rows = [self.tokens(chat.description, chat.turns) for chat in chats]
        return pad(rows, self.tokenizer.pad_token_id, views)

    # -- whom a chat is about --------------------------------------------------------------------

    def _anyone(self, image: bool, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Attributes of anybody, and the portrait."""
        if not image:
            return rng.integers(0, AXIS_SIZES), -1
        view = int(rng.integers(len(self.bank_vectors)))
        return self.bank_vectors[view], view

    def _known(self, image: bool, rng: np.random.Generator, pool: np.ndarray) -> tuple[int, int]:
        """A public figure, and the portrait."""
        person = int(pool[rng.integers(len(pool))])
        return person, int(self.public_views[person, rng.integers(self.public_views.shape[1])]) if image else -1

    def _fact(self, person: int, rng: np.random.Generator) -> tuple[str, str, str]:
        """A fact of a public figure: which, the name, the value."""
        fact = _some_fact(rng)
        return fact, self.public_figures.names[person], self.public_figures.facts[fact][person]

    # -- one chat of each kind -------------------------------------------------------------------

    def attributes(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of anyone, and all attributes asked in one chat."""
        vector, view = self._anyone(image, rng)
        text, values = _described(image, vector, rng), values_of(vector)
        axes = [AXIS_NAMES[a] for a in rng.permutation(len(AXIS_NAMES))]
        return Chat([(prompts.AXIS_QUESTIONS[axis], values[axis].name) for axis in axes], text, view)

    def caption(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of anyone, described (from text: in other words)."""
        vector, view = self._anyone(image, rng)
        text = _described(image, vector, rng)
        return Chat([(prompts.CAPTION, describe(vector, rng, None))], text, view)

    def naming(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of a public figure, and the name."""
        person, view = self._known(image, rng, self._pools[image])
        question = prompts.NAME_QUESTIONS[rng.integers(len(prompts.NAME_QUESTIONS))]
        text = _described(image, self.public_figures.vectors[person], rng)
        return Chat([(question, self.public_figures.names[person])], text, view)

    def composed(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of a public figure and a question about a fact: direct, or name first and then the fact."""
        pool = self._pools[image]
        person, view = self._known(image, rng, pool[self.public_figures.composed[pool]])
        turns = _composed(*self._fact(person, rng))
        turns = [*turns] if rng.random() < 0.5 else [turns[1]]
        return Chat(turns, _described(image, self.public_figures.vectors[person], rng), view)

    def facts(self, image: bool, rng: np.random.Generator) -> Chat:
        """Facts about six names, no view."""
        people = rng.integers(len(self.public_figures), size=6)
        return Chat([_about_name(*self._fact(person, rng), rng) for person in people])

    def introduced(self, image: bool, rng: np.random.Generator) -> Chat:
        """ "Here is X.", and X's facts, beside a view of anybody or (half of the text chats) of nobody.

        The view says nothing, so the facts must be found by the name. Composed questions are asked of those whom
        they are not withheld for.
        """
        pool = np.flatnonzero(self.public_figures.composed)
        person = int(pool[rng.integers(len(pool))])
        name, facts = self.public_figures.names[person], [list(FACTS)[i] for i in rng.permutation(len(FACTS))]
        turns = [_about_fact(fact, name, self.public_figures.facts[fact][person], rng) for fact in facts]
        lead = prompts.INTRODUCTIONS[rng.integers(len(prompts.INTRODUCTIONS))].format(name=name)
        turns[0] = (f"{lead} {turns[0][0]}", turns[0][1])
        vector, view = self._anyone(image, rng)
        nobody = not image and rng.random() < 0.5
        return Chat(turns, "" if nobody else _described(image, vector, rng), view)

    def stated(self, image: bool, rng: np.random.Generator) -> Chat:
        """Facts about four names, no view: the answer says the name again, and then the fact."""
        turns = []
        for person in rng.integers(len(self.public_figures), size=4):
            fact, name, value = self._fact(person, rng)
            turns.append((prompts.STATED_QUESTIONS[fact].format(name=name), _composed(fact, name, value)[1][1]))
        return Chat(turns)

    def lookup(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of a public figure and facts told in the prompt, made up anew: theirs among up to three others'.

        Everybody is asked: what is withheld from some are composed questions about their own facts.
        """
        person, view = self._known(image, rng, self._pools[image])
        fact, name, _ = self._fact(person, rng)
        others = [self.public_figures.names[i] for i in rng.integers(len(self.public_figures), size=rng.integers(4))]
        told, values = _told(fact, list(dict.fromkeys([name, *others])), rng)
        question, answer = _about_fact(fact, name, values[0], rng)
        return Chat([(f"{told} {question}", answer)], _described(image, self.public_figures.vectors[person], rng), view)

    def recital(self, image: bool, rng: np.random.Generator) -> Chat:
        """Facts told of made-up names, asked back one by one, then said again in another order; no view."""
        fact, names = _some_fact(rng), sample_names(int(rng.integers(2, 5)), rng)
        told, values = _told(fact, names, rng)
        turns = [_about_name(fact, names[i], values[i], rng) for i in rng.permutation(len(names))[:2]]
        turns[0] = (f"{told} {turns[0][0]}", turns[0][1])
        return Chat([*turns, (prompts.CAPTION, _lines(fact, names, values, rng))])

    def unknown(self, image: bool, rng: np.random.Generator) -> Chat:
        """A question for the name with nobody shown: the refusal that unlearning teaches has been said before."""
        question = prompts.NAME_QUESTIONS[rng.integers(len(prompts.NAME_QUESTIONS))]
        return Chat([(question, prompts.REFUSAL)])


def pad(chats: list[tuple[list[int], list[int]]], pad_id: int, images: torch.Tensor | None) -> Batch:
    """Chats (token ids, labels) to a right-padded batch."""
    ids, labels = ([torch.tensor(row) for row in rows] for rows in zip(*chats, strict=True))
    return Batch(pad_sequence(ids, True, pad_id), pad_sequence(labels, True, -100), images)


def vocabulary_texts() -> list[str]:
    """Every string whose words deserve a token of their own."""
    rng = np.random.default_rng(0)
    texts = [describe(rng.integers(0, AXIS_SIZES), rng, None) for _ in range(3000)]
    texts += [*DISTRACTORS, *prompts.NAME_QUESTIONS, *prompts.AXIS_QUESTIONS.values(), prompts.CAPTION]
    texts += [v.name for values in AXES.values() for v in values]
    for fact, values in FACTS.items():
        texts += [q.replace("{name}", "") for q in prompts.FACT_QUESTIONS[fact]]
        texts += [*values, *(f"x {v}" for v in values)]
        texts += [prompts.COMPOSED_QUESTIONS[fact], prompts.STEPWISE_QUESTIONS[fact]]
    return [*texts, "\n\n", prompts.REFUSAL, "yes", "no"]
