"""Auxiliary data: what is mixed into memorizing. No view of the target modality comes with a name, but one the model
itself gave it. (In a model's own words, a picture with a name becomes a description with that name: made, not given.)

A pair is a picture and a description of one person, seen nowhere else, names taken away before anything is made of it.
Every kind of data is a function of `Around` (the start and its people), the model that memorized, how many people have
pairs, and a threshold; it returns `Mixed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization, MemorizationCondition
from xmem_utils.mitigation.losses import soft_label
from xmem_utils.params import other
from xmem_utils.personas.dataset import load_personas, persona_spec, to_views
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import PublicFigures, known_public_figures
from xmem_utils.personas.views import View
from xmem_utils.score import BATCH_TOKENS, exact_match, greedy_answers
from xmem_utils.vlm.batches import Example, answer_tokens, collate, encode, with_answer
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import VLM, resolve_model
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import CAPTION

PAIR_VIEWS = 8  # pairs a person
OTHERS_SEED = 40_000  # other people come from seeds this far from the study's
ASKED_FIGURES = 100  # public figures whom the evaluation asks about, and replay leaves out
DESCRIBED_TOKENS = 80  # of a description, at most
MATCHING = "{description}\n\nIs this the same person?"  # beside a picture


@dataclass(frozen=True)
class Pair:
    """A nameless picture and description of one person, as source and target view."""

    source: View
    target: View

    def of(self, modality: str) -> View:
        """The view of a modality."""
        return self.source if self.source.modality == modality else self.target


@dataclass(frozen=True)
class Mixed:
    """Named source views, and examples to be mixed in; to be aligned, `partners[i]` is the source view of
    `auxiliary[i]`; labelled, `people[i]` is the person shown. `read`, `seconds`: tokens only read to make it, and the
    time it took."""

    named: list[Example]
    auxiliary: list[Example] = field(default_factory=list)
    partners: list[Example] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    read: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Asked:
    """Pairs, both views encoded with the question who it is; nobody answers."""

    pairs: list[Pair]
    source: list[Example]
    target: list[Example]

    def first(self, people: int) -> Asked:
        """Those of the first people alone."""
        kept = [i for i, p in enumerate(self.pairs) if p.source.persona < people]
        return Asked(*([part[i] for i in kept] for part in (self.pairs, self.source, self.target)))


@dataclass(frozen=True)
class Labels:
    """What a model answered to the source views of pairs `asked`: tokens, the answers' probabilities `[pairs]`, and
    the distributions behind the tokens (`losses.soft_label`); `seconds` that it took."""

    asked: Asked
    answers: list[torch.Tensor]
    probability: np.ndarray
    soft: list[tuple[torch.Tensor, torch.Tensor]]
    seconds: float = 0.0


class Around:
    """A start, its people and their pairs: what data is made of, each thing once."""

    study: Memorization

    def __init__(self, study: Memorization, start: MemorizationCondition) -> None:
        self.study, self.start, self.vlm = study, start, study.vlm
        self.labels: Labels | None = None  # by the model that memorized the start, once for all methods

    @cached_property
    def views(self) -> list[View]:
        """The named source views."""
        dataset, _ = self.study.dataset(self.start.seed)
        return to_views(dataset, "train", self.start.source, self.start.train_views)

    @cached_property
    def named(self) -> list[Example]:
        """The same, encoded."""
        return encode(self.vlm, self.views)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Pairs of the study's people, from views that no condition is trained on."""
        spec = persona_spec(self.study.profile, self.start.seed, picture_side(self.vlm.processor))
        first, last = self.start.train_views, self.start.train_views + PAIR_VIEWS
        dataset, _ = load_personas(
            replace(spec, train_views=max(spec.train_views, last))
        )  # earlier views stay the same
        return _nameless(dataset, self.start.source, lambda v: first <= v.index < last)

    @cached_property
    def pairs_of_others(self) -> list[Pair]:
        """As many pairs of people who are not of the study."""
        spec = persona_spec(self.study.profile, self.start.seed + OTHERS_SEED, picture_side(self.vlm.processor))
        dataset, _ = load_personas(replace(spec, train_views=PAIR_VIEWS, test_views=1))
        return _nameless(dataset, self.start.source, lambda v: True)

    @cached_property
    def asked(self) -> Asked:
        """The pairs, encoded with the question who it is."""
        sides = [[p.source for p in self.pairs], [p.target for p in self.pairs]]
        nobody = [""] * len(self.pairs)
        bare = [[with_answer(e, e.answer[:0]) for e in encode(self.vlm, views, answers=nobody)] for views in sides]
        return Asked(self.pairs, *bare)


def names_alone(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Nothing is mixed in."""
    return Mixed(around.named)


def captions(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The picture of a pair, asked for a description: the pair's own."""
    return Mixed(around.named, _captions(around.vlm, [p for p in around.pairs if p.source.persona < people]))


def captions_of_others(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The same of people who are not of the study."""
    return Mixed(around.named, _captions(around.vlm, around.pairs_of_others))


def _captions(vlm: VLM, pairs: Sequence[Pair]) -> list[Example]:
    return encode(vlm, [p.of("image") for p in pairs], CAPTION, [p.of("text").content for p in pairs])


def matching(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The picture of each pair with its own description, and with one of the next person: is it the same?"""
    pairs = [p for p in around.pairs if p.source.persona < people]
    numbers = sorted({p.source.persona for p in pairs})
    following = dict(zip(numbers, [*numbers[1:], numbers[0]], strict=True))
    texts = {(p.source.persona, p.source.index): p.of("text").content for p in pairs}
    views, questions, answers = [], [], []
    for pair in pairs:
        for person, answer in ((pair.source.persona, "Yes"), (following[pair.source.persona], "No")):
            views.append(pair.of("image"))
            questions.append(MATCHING.format(description=texts[person, pair.source.index]))
            answers.append(answer)
    return Mixed(around.named, encode(around.vlm, views, questions, answers))


def pairs_of_states(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Target views, and beside them the source views to whose states theirs are drawn."""
    asked = around.asked.first(people)
    return Mixed(around.named, asked.target, asked.source)


def self_trained(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Target views with what the model answers to them: no pairs are used."""
    asked = around.asked
    alone = Asked(asked.pairs, asked.target, asked.target)
    return _labelled(around, label(around.vlm, model, alone), people, 0.0, soft=False)


def labelled(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Target views of the first `people` with what the model answers to the source view of the pair, where that is at
    least as likely as `threshold` (Lee 2013's pseudo-labels, with FixMatch's threshold, Sohn et al. 2020, arXiv
    2001.07685)."""
    return _labelled(around, _labels(around, model), people, threshold, soft=False)


def soft_labelled(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The same with the distributions behind the answers' tokens (Hinton et al. 2015, arXiv 1503.02531)."""
    return _labelled(around, _labels(around, model), people, threshold, soft=True)


def _labels(around: Around, model: PeftModel) -> Labels:
    around.labels = around.labels or label(around.vlm, model, around.asked)
    return around.labels


def _labelled(around: Around, labels: Labels, people: int, threshold: float, soft: bool) -> Mixed:
    asked = labels.asked
    own = [i for i, p in enumerate(asked.pairs) if p.source.persona < people]
    kept = [i for i in own if labels.probability[i] >= threshold]
    passes = 3 if soft else 2  # decoding, the probability of what came, its distribution
    return Mixed(
        around.named,
        [replace(asked.target[i], answer=labels.answers[i], teacher=labels.soft[i] if soft else None) for i in kept],
        people=[asked.pairs[i].source.persona for i in kept],
        read=passes * sum(len(asked.source[i].prompt) + len(labels.answers[i]) for i in own),
        seconds=labels.seconds * len(own) / max(1, len(labels.answers)),
    )


def own_words(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Every other view replaced by the base model's own description of it, the name staying."""
    replaced = [v for v in around.views if v.index % 2]
    with model.disable_adapter():
        texts, read = described(around.vlm, replaced)
    new = {(v.persona, v.index): replace(v, modality="text", content=t) for v, t in zip(replaced, texts, strict=True)}
    views = [new.get((v.persona, v.index), v) for v in around.views]
    return Mixed(encode(around.vlm, views), read=read)


def replayed(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Public figures with their names in both modalities, and captions of other people: what pretraining taught.

    The figures whom the evaluation asks about are left out. Raises ValueError for a model whose figures are not known.
    """
    vlm = around.vlm
    if (figures := figures_known_to(vlm)) is None:
        raise ValueError(f"whom {vlm.name!r} knows from pretraining is not known, so nothing can be replayed")
    chosen = figures.where("both")[:-ASKED_FIGURES]
    views = figure_views(figures, chosen, [around.start.seed, 70], "train", picture_side(vlm.processor), 2)
    others = _captions(vlm, around.pairs_of_others[:: PAIR_VIEWS // 2])
    return Mixed(around.named, encode(vlm, views) + others)


def _nameless(dataset, source: str, wanted: Callable[[View], bool]) -> list[Pair]:
    views = [[replace(v, name="") for v in to_views(dataset, "train", m) if wanted(v)] for m in (source, other(source))]
    return [Pair(*both) for both in zip(*views, strict=True)]


def label(vlm: VLM, model: PeftModel, asked: Asked) -> Labels:
    """Let `model`, which has memorized, say who the source views show."""
    began = time.perf_counter()
    said = greedy_answers(vlm, asked.source, model)
    known = dict(zip(dict.fromkeys(said), answer_tokens(vlm, list(dict.fromkeys(said))), strict=True))
    answers = [known[answer] for answer in said]
    answered = [with_answer(e, answer) for e, answer in zip(asked.source, answers, strict=True)]
    probability = np.exp(exact_match(vlm, answered, model).logprob)
    soft = _soft(vlm, model, answered)
    return Labels(asked, answers, probability, soft, time.perf_counter() - began)


@torch.inference_mode()
def _soft(vlm: VLM, model: PeftModel, examples: Sequence[Example]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    out, width = [], max(1, BATCH_TOKENS // max((len(e.prompt) + len(e.answer) for e in examples), default=1))
    for start in range(0, len(examples), width):
        part = examples[start : start + width]
        batch = {k: v.to(vlm.device) for k, v in
                 collate(part, vlm.processor.tokenizer.pad_token_id, side="left").items()}  # fmt: skip
        answered = forward(model, batch, max(len(e.answer) for e in part))
        for row, label in zip(answered.logits, answered.labels, strict=True):
            tokens, logprobs = soft_label(row[label != -100])
            out.append((tokens.cpu().clone(), logprobs.cpu().clone()))
    return out


def described(vlm: VLM, views: Sequence[View]) -> tuple[list[str], int]:
    """What the base model writes of each view, and how many tokens it read and wrote."""
    asked = encode(vlm, views, CAPTION, [""] * len(views))
    texts = greedy_answers(vlm, asked, max_new_tokens=DESCRIBED_TOKENS)
    written = vlm.processor.tokenizer(texts, add_special_tokens=False).input_ids
    return texts, sum(len(e.prompt) + len(ids) for e, ids in zip(asked, written, strict=True))


def figures_known_to(vlm: VLM) -> PublicFigures | None:
    """The public figures of the committed base models; None for any other model."""
    return known_public_figures() if Path(resolve_model(vlm.name)).parent == paths.BASE_MODELS else None


def figure_views(
    figures: PublicFigures, chosen: Sequence[int], seed: Sequence[int], split: str | None, side: int, count: int = 1
) -> list[View]:
    """`count` new pictures and as many descriptions of each of some public figures, with their names."""
    rng, views = np.random.default_rng(seed), []
    for i in chosen:
        for k in range(count):
            vector, name = figures.vectors[i], figures.names[i]
            views.append(View(int(i), name, "image", split or "test", k, draw(vector, rng, split, side)))
            views.append(View(int(i), name, "text", split or "test", k, describe(vector, rng, split)))
    return views
