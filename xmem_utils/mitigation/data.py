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

import numpy as np
from peft import PeftModel

from xmem_utils.memorization.experiment import Memorization, MemorizationCondition
from xmem_utils.mitigation.losses import soft_label
from xmem_utils.params import other
from xmem_utils.personas.dataset import PersonaSpec, load_personas, others, to_views
from xmem_utils.personas.public_figures import figure_views
from xmem_utils.personas.views import View
from xmem_utils.score import evaluating, exact_match, greedy_answers, in_batches
from xmem_utils.vlm.batches import Example, answer_tokens, encode, with_answer
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import CAPTION

PAIR_VIEWS = 8  # pairs a person
OTHERS_SEED = 40_000  # other people come from seeds this far from the study's
STRANGER = -1  # stands for whoever has no name
ASKED_FIGURES = 100  # public figures whom the evaluation asks about, and replay leaves out
DESCRIBED_TOKENS = 80  # of a description, at most
MATCHING = "{description}\n\nIs this the same person?"  # beside a picture


@dataclass(frozen=True)
class Pair:
    """A nameless picture and description of one person, as source and target view; or both encoded, with the question
    who it is and no answer."""

    person: int
    source: View | Example
    target: View | Example

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
class Labels:
    """What a model answered, pair by pair: examples with its answer, and the distributions behind the answer's tokens
    (`losses.soft_label`) as their teacher; the answers' probabilities `[pairs]`; `seconds` that it took."""

    said: list[Example]
    probability: np.ndarray
    seconds: float = 0.0


class Around:
    """A start, its people and their pairs: what data is made of, each thing once."""

    study: Memorization

    def __init__(self, study: Memorization, start: MemorizationCondition) -> None:
        self.study, self.start, self.vlm = study, start, study.vlm(start.replicate)
        self.labels: Labels | None = None  # by the model that memorized the start, once for all methods

    @cached_property
    def views(self) -> list[View]:
        """The named source views."""
        dataset, _ = self.study.dataset(self.start.replicate)
        return to_views(dataset, "train", self.start.source, self.start.train_views)

    @cached_property
    def named(self) -> list[Example]:
        """The same, encoded."""
        return encode(self.vlm, self.views)

    @property
    def spec(self) -> PersonaSpec:
        """What the study's people are drawn from."""
        return self.study.spec(self.start.replicate)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Pairs of the study's people, from views that no condition is trained on."""
        first, last = self.start.train_views, self.start.train_views + PAIR_VIEWS
        more = replace(self.spec, train_views=max(self.spec.train_views, last))  # earlier views stay the same
        dataset, _ = load_personas(more)
        return _nameless(dataset, self.start.source, lambda v: first <= v.index < last)

    @cached_property
    def pairs_of_others(self) -> list[Pair]:
        """As many pairs of people who are not of the study."""
        dataset, _ = load_personas(replace(others(self.spec, OTHERS_SEED), train_views=PAIR_VIEWS, test_views=1))
        return _nameless(dataset, self.start.source, lambda v: True)

    @cached_property
    def asked(self) -> list[Pair]:
        """The pairs, encoded."""
        return _bare(self.vlm, self.pairs)

    @cached_property
    def asked_others(self) -> list[Pair]:
        """Those of other people, encoded."""
        return _bare(self.vlm, self.pairs_of_others)


def names_alone(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Nothing is mixed in."""
    return Mixed(around.named)


def captions(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The picture of a pair, asked for a description: the pair's own."""
    return Mixed(around.named, _captions(around.vlm, _first(around.pairs, people)))


def captions_of_others(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The same of people who are not of the study."""
    return Mixed(around.named, _captions(around.vlm, around.pairs_of_others))


def _captions(vlm: VLM, pairs: Sequence[Pair]) -> list[Example]:
    return encode(vlm, [p.of("image") for p in pairs], CAPTION, [p.of("text").content for p in pairs])


def _first(pairs: Sequence[Pair], people: int) -> list[Pair]:
    """Pairs of the first `people`."""
    return [p for p in pairs if p.person < people]


def matching(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The picture of each pair with its own description, and with one of the next person: is it the same?"""
    pairs = _first(around.pairs, people)
    of_next = [*pairs[PAIR_VIEWS:], *pairs[:PAIR_VIEWS]]
    shown = [p.of("image") for p in pairs for _ in ("Yes", "No")]
    texts = [p.of("text").content for both in zip(pairs, of_next, strict=True) for p in both]
    questions = [MATCHING.format(description=text) for text in texts]
    return Mixed(around.named, encode(around.vlm, shown, questions, ["Yes", "No"] * len(pairs)))


def pairs_of_states(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Target views, and beside them the source views to whose states theirs are drawn."""
    asked = _first(around.asked, people)
    return Mixed(around.named, [p.target for p in asked], [p.source for p in asked])


def self_trained(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Target views with what the model answers to them: no pairs are used."""
    return _labelled(around, label(around.vlm, model, [p.target for p in around.asked]), people, 0.0, soft=False)


def labelled(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """Target views of the first `people` with what the model answers to the source view of the pair, where that is at
    least as likely as `threshold` (Lee 2013's pseudo-labels, with FixMatch's threshold, Sohn et al. 2020, arXiv
    2001.07685)."""
    return _labelled(around, _labels(around, model), people, threshold, soft=False)


def labelled_with_strangers(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The same of half of them; the other pairs are of people whom nobody named, so that their labels are wrong."""
    half = labelled(around, model, people // 2, threshold)
    shown = [p for p in around.asked_others if people // 2 <= p.person < people]
    labels = label(around.vlm, model, [p.source for p in shown])
    every = zip(shown, labels.said, labels.probability, strict=True)
    sure = [(p, said) for p, said, likely in every if likely >= threshold]
    return replace(
        half,
        auxiliary=half.auxiliary + [replace(p.target, answer=said.answer, teacher=None) for p, said in sure],
        people=half.people + [STRANGER] * len(sure),
        read=half.read + 2 * length(labels.said),
        seconds=half.seconds + labels.seconds,
    )


def soft_labelled(around: Around, model: PeftModel, people: int, threshold: float) -> Mixed:
    """The same with the distributions behind the answers' tokens (Hinton et al. 2015, arXiv 1503.02531)."""
    return _labelled(around, _labels(around, model), people, threshold, soft=True)


def _labels(around: Around, model: PeftModel) -> Labels:
    around.labels = around.labels or label(around.vlm, model, [p.source for p in around.asked])
    return around.labels


def _labelled(around: Around, labels: Labels, people: int, threshold: float, soft: bool) -> Mixed:
    every = zip(around.asked, labels.said, labels.probability, strict=True)
    own = [(pair, said, likely >= threshold) for pair, said, likely in every if pair.person < people]
    kept = [(pair, said) for pair, said, sure in own if sure]
    passes = 3 if soft else 2  # decoding, the probability of what came, its distribution
    return Mixed(
        around.named,
        [replace(pair.target, answer=said.answer, teacher=said.teacher if soft else None) for pair, said in kept],
        people=[pair.person for pair, _ in kept],
        read=passes * length([said for _, said, _ in own]),
        seconds=labels.seconds * len(own) / max(1, len(labels.said)),
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
    if (figures := around.study.evaluation_of(around.start.replicate).figures) is None:
        raise ValueError(f"whom {vlm.name!r} knows from pretraining is not known, so nothing can be replayed")
    chosen = figures.where("both")[:-ASKED_FIGURES]
    views = figure_views(figures, chosen, [around.start.replicate, 70], "train", picture_side(vlm.processor), 2)
    others = _captions(vlm, around.pairs_of_others[:: PAIR_VIEWS // 2])
    return Mixed(around.named, encode(vlm, views) + others)


def _nameless(dataset, source: str, wanted: Callable[[View], bool]) -> list[Pair]:
    views = [[replace(v, name="") for v in to_views(dataset, "train", m) if wanted(v)] for m in (source, other(source))]
    return [Pair(own.persona, own, across) for own, across in zip(*views, strict=True)]


def _bare(vlm: VLM, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs encoded, with the question who it is and no answer."""
    sides = [p.source for p in pairs], [p.target for p in pairs]
    bare = [[with_answer(e, e.answer[:0]) for e in encode(vlm, views, answers=[""] * len(pairs))] for views in sides]
    return [Pair(p.person, *both) for p, *both in zip(pairs, *bare, strict=True)]


def length(examples: Sequence[Example]) -> int:
    """Tokens of some examples, answers included."""
    return sum(len(e.prompt) + len(e.answer) for e in examples)


def label(vlm: VLM, model: PeftModel, asked: Sequence[Example]) -> Labels:
    """Let `model`, which has memorized, say who some views show."""
    began = time.perf_counter()
    answers = answer_tokens(vlm, greedy_answers(vlm, asked, model))
    answered = [with_answer(e, answer) for e, answer in zip(asked, answers, strict=True)]
    probability = np.exp(exact_match(vlm, answered, model).logprob)
    said = _with_teacher(vlm, model, answered)
    return Labels(said, probability, time.perf_counter() - began)


def _with_teacher(vlm: VLM, model: PeftModel, examples: Sequence[Example]) -> list[Example]:
    out = list(examples)
    with evaluating(model):
        for rows, batch in in_batches(vlm, examples):
            answered = forward(model, batch, max(len(examples[i].answer) for i in rows))
            for i, logits, labels in zip(rows, answered.logits, answered.labels, strict=True):
                tokens, logprobs = soft_label(logits[labels != -100])
                out[i] = replace(examples[i], teacher=(tokens.cpu().clone(), logprobs.cpu().clone()))
    return out


def described(vlm: VLM, views: Sequence[View]) -> tuple[list[str], int]:
    """What the base model writes of each view, and how many tokens it read and wrote."""
    asked = encode(vlm, views, CAPTION, [""] * len(views))
    texts = greedy_answers(vlm, asked, max_new_tokens=DESCRIBED_TOKENS)
    written = vlm.processor.tokenizer(texts, add_special_tokens=False).input_ids
    return texts, sum(len(e.prompt) + len(ids) for e, ids in zip(asked, written, strict=True))
