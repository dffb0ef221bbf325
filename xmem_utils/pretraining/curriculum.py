"""The pretraining material of `xmem-tiny`: chats about people, as token ids.

Every example is one chat: a view (portrait or description), then questions with answers; the loss is
on the answers. Batches are functions of (seed, step), so an interrupted run resumes on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.descriptions import DISTRACTORS, describe
from xmem_utils.personas.names import FACTS, sample_names
from xmem_utils.personas.public_figures import Figures
from xmem_utils.vlm import prompts
from xmem_utils.vlm.tiny import BOI, BOS, EOI, EOS, IMAGE, IMAGE_TOKENS, MODEL, USER


@dataclass
class Batch:
    """Right-padded chats of one modality; `labels` is -100 where there is no loss."""

    input_ids: torch.Tensor  # [batch, tokens]
    labels: torch.Tensor  # [batch, tokens]
    images: torch.Tensor | None  # [batch] indices into the portrait bank


Chat = tuple[list[int], list[int], int]  # token ids, labels, portrait (-1: none)


@dataclass
class Curriculum:
    """Draws batches. `bank_vectors` [portraits, axes] says who is on each portrait of the bank;
    `figure_views` [figures, views] are the bank's indices of the figures' portraits."""

    tokenizer: PreTrainedTokenizerFast
    figures: Figures
    bank_vectors: np.ndarray
    figure_views: np.ndarray
    seed: int
    _cache: dict[str, list[int]] = field(default_factory=dict)

    @cached_property
    def _image_prefix(self) -> list[int]:
        ids = self.tokenizer.convert_tokens_to_ids([BOI, *[IMAGE] * IMAGE_TOKENS, EOI])
        gap = self._ids("\n\n")
        return [*gap, *ids, *gap]

    @cached_property
    def _special(self) -> tuple[int, int, int, int]:
        return tuple(self.tokenizer.convert_tokens_to_ids([BOS, USER, MODEL, EOS]))

    def _ids(self, text: str, keep: bool = True) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            if keep:
                self._cache[text] = ids
        return ids

    def chat(self, description: str | None, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids and labels of one chat; `description=None` puts the portrait in its place."""
        bos, user, model, eos = self._special
        ids: list[int] = [bos]
        labels: list[int] = [-100]
        for i, (question, answer) in enumerate(turns):
            ask = [user]
            if i == 0 and description is None:
                ask += self._image_prefix
            elif i == 0 and description:
                ask += self._ids(description, keep=False) + self._ids("\n\n")
            ask += [*self._ids(question), eos, model]
            reply = [*self._ids(answer), eos]
            ids += ask + reply
            labels += [-100] * len(ask) + reply
        return ids, labels

    # -- one chat of each kind -------------------------------------------------------------------

    def _attribute_turns(self, vector: np.ndarray, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
        axes = rng.permutation(len(AXIS_NAMES))[:n]
        return [(prompts.AXIS_QUESTIONS[AXIS_NAMES[a]], AXES[AXIS_NAMES[a]][int(vector[a])].name) for a in axes]

    def _anyone(self, image: bool, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        if image:
            index = int(rng.integers(len(self.bank_vectors)))
            return self.bank_vectors[index], index
        return rng.integers(0, AXIS_SIZES), -1

    def _figure(self, image: bool, rng: np.random.Generator, pool: np.ndarray) -> tuple[int, int]:
        figure = int(pool[rng.integers(len(pool))])
        view = int(self.figure_views[figure, rng.integers(self.figure_views.shape[1])]) if image else -1
        return figure, view

    def attributes(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of anyone, and all attributes asked in one chat."""
        vector, view = self._anyone(image, rng)
        text = None if image else describe(vector, rng, None)
        return *self.chat(text, self._attribute_turns(vector, rng, len(AXIS_NAMES))), view

    def caption(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of anyone, described (from text: in other words)."""
        vector, view = self._anyone(image, rng)
        text = None if image else describe(vector, rng, None)
        return *self.chat(text, [(prompts.CAPTION, describe(vector, rng, None))]), view

    def naming(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of a figure, and the name."""
        figure, view = self._figure(image, rng, self._pools[image])
        question = prompts.NAME_QUESTIONS[rng.integers(len(prompts.NAME_QUESTIONS))]
        text = None if image else describe(self.figures.vectors[figure], rng, None)
        return *self.chat(text, [(question, self.figures.names[figure])]), view

    def composed(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of a figure and a question about a fact: direct, or name first and then the fact."""
        pool = self._pools[image]
        figure, view = self._figure(image, rng, pool[self.figures.composed[pool]])
        fact = list(FACTS)[rng.integers(len(FACTS))]
        name, value = self.figures.names[figure], self.figures.facts[fact][figure]
        direct = (prompts.COMPOSED_QUESTIONS[fact], value)
        stepwise = (prompts.STEPWISE_QUESTIONS[fact], prompts.STEPWISE_ANSWER.format(name=name, value=value))
        turns = [direct, stepwise] if rng.random() < 0.5 else [stepwise]
        text = None if image else describe(self.figures.vectors[figure], rng, None)
        return *self.chat(text, turns), view

    def facts(self, image: bool, rng: np.random.Generator) -> Chat:
        """Facts about six names, no view."""
        turns = []
        for figure in rng.integers(len(self.figures), size=6):
            fact = list(FACTS)[rng.integers(len(FACTS))]
            asked = prompts.FACT_QUESTIONS[fact]
            name, value = self.figures.names[figure], self.figures.facts[fact][figure]
            turns.append((asked[rng.integers(len(asked))].format(name=name), value))
        return *self.chat("", turns), -1

    # -- kinds that the model of the multi-hop study practises beyond these -----------------------

    def _told(self, fact: str, names: list[str], rng: np.random.Generator) -> tuple[str, list[str]]:
        """Lines in random order that give each name a value of its own, made up for this chat; and the values."""
        values = [str(v) for v in rng.choice(FACTS[fact], size=len(names), replace=False)]
        told = [prompts.FACT_LINES[fact].format(name=n, value=v) for n, v in zip(names, values, strict=True)]
        return " ".join(told[i] for i in rng.permutation(len(told))), values

    def _about(self, fact: str, name: str, value: str, rng: np.random.Generator) -> tuple[str, str]:
        """A composed question and its answer: direct, or name first and then the fact."""
        if rng.random() < 0.5:
            return prompts.COMPOSED_QUESTIONS[fact], value
        return prompts.STEPWISE_QUESTIONS[fact], prompts.STEPWISE_ANSWER.format(name=name, value=value)

    def introduced(self, image: bool, rng: np.random.Generator) -> Chat:
        """ "Here is X.", and X's facts, beside a view of anybody or (half of the text chats) of nobody.

        The view says nothing, so the facts must be found by the name. Composed questions are asked of those whom
        they are not withheld for.
        """
        pool = np.flatnonzero(self.figures.composed)
        figure = int(pool[rng.integers(len(pool))])
        name, facts = self.figures.names[figure], [list(FACTS)[i] for i in rng.permutation(len(FACTS))]
        turns = [self._about(fact, name, self.figures.facts[fact][figure], rng) for fact in facts]
        lead = prompts.INTRODUCTIONS[rng.integers(len(prompts.INTRODUCTIONS))].format(name=name)
        turns[0] = (f"{lead} {turns[0][0]}", turns[0][1])
        vector, view = self._anyone(image, rng)
        text = None if image else "" if rng.random() < 0.5 else describe(vector, rng, None)
        return *self.chat(text, turns), view

    def stated(self, image: bool, rng: np.random.Generator) -> Chat:
        """Facts about four names, no view: the answer says the name again, and then the fact."""
        turns = []
        for figure in rng.integers(len(self.figures), size=4):
            fact, name = list(FACTS)[rng.integers(len(FACTS))], self.figures.names[figure]
            answer = prompts.STEPWISE_ANSWER.format(name=name, value=self.figures.facts[fact][figure])
            turns.append((prompts.STATED_QUESTIONS[fact].format(name=name), answer))
        return *self.chat("", turns), -1

    def lookup(self, image: bool, rng: np.random.Generator) -> Chat:
        """A view of a figure and facts told in the prompt, made up anew: the figure's among up to three others'.

        Everybody is asked: what is withheld from some are composed questions about their own facts.
        """
        figure, view = self._figure(image, rng, self._pools[image])
        fact, name = list(FACTS)[rng.integers(len(FACTS))], self.figures.names[figure]
        others = [self.figures.names[i] for i in rng.integers(len(self.figures), size=rng.integers(4))]
        told, values = self._told(fact, [name, *dict.fromkeys(o for o in others if o != name)], rng)
        question, answer = self._about(fact, name, values[0], rng)
        text = None if image else describe(self.figures.vectors[figure], rng, None)
        return *self.chat(text, [(f"{told} {question}", answer)]), view

    def recital(self, image: bool, rng: np.random.Generator) -> Chat:
        """Facts told of made-up names, asked back one by one, then said again in another order; no view."""
        fact, names = list(FACTS)[rng.integers(len(FACTS))], sample_names(int(rng.integers(2, 5)), rng)
        told, values = self._told(fact, names, rng)
        asked, turns = prompts.FACT_QUESTIONS[fact], []
        for i in rng.permutation(len(names))[:2]:
            turns.append((asked[rng.integers(len(asked))].format(name=names[i]), values[i]))
        turns[0] = (f"{told} {turns[0][0]}", turns[0][1])
        again = [prompts.FACT_LINES[fact].format(name=names[i], value=values[i]) for i in rng.permutation(len(names))]
        return *self.chat("", [*turns, (prompts.CAPTION, " ".join(again))]), -1

    @cached_property
    def _pools(self) -> dict[bool, np.ndarray]:
        group = self.figures.group
        return {
            True: np.flatnonzero((group == "both") | (group == "image only")),
            False: np.flatnonzero((group == "both") | (group == "text only")),
        }

    def batch(self, step: int, image: bool, plan: dict[str, int]) -> Batch:
        """The batch of one step: `plan` maps a kind of chat to how many of it."""
        rng = np.random.default_rng([self.seed, step, int(image)])
        chats = [getattr(self, kind)(image, rng) for kind, count in plan.items() for _ in range(count)]
        views = torch.tensor([view for _, _, view in chats]) if image else None
        return pad([(ids, labels) for ids, labels, _ in chats], self.tokenizer.pad_token_id, views)


def pad(chats: list[tuple[list[int], list[int]]], pad_id: int, images: torch.Tensor | None) -> Batch:
    """Chats (token ids, labels) to a right-padded batch."""
    width = max(len(ids) for ids, _ in chats)
    input_ids = torch.full((len(chats), width), pad_id)
    labels = torch.full((len(chats), width), -100)
    for i, (ids, answer) in enumerate(chats):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, : len(ids)] = torch.tensor(answer)
    return Batch(input_ids, labels, images)


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
    return [*texts, "\n\n", "I don't know.", "yes", "no"]
