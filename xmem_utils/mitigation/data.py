"""What is mixed into memorizing. No view of the target modality comes with a name, but one the model itself gave it.
(In a model's own words, a picture with a name becomes a description with that name: made, not given.)

A pair is a picture and a description of one person, seen nowhere else, names taken away before anything is made of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from xmem_utils import paths
from xmem_utils.memorization.experiment import Study, persona_spec
from xmem_utils.mitigation.losses import soft_label
from xmem_utils.params import Condition, other
from xmem_utils.personas.dataset import load_personas, to_views
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import PublicFigures, known_public_figures
from xmem_utils.personas.views import View
from xmem_utils.score import BATCH_TOKENS, answer_logits, exact_match, greedy_answers
from xmem_utils.vlm.batches import Example, answer_tokens, collate, encode, with_answer
from xmem_utils.vlm.load import VLM, resolve_model
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import CAPTION

PAIR_VIEWS = 8  # pairs a person
OTHERS_SEED = 40_000  # other people come from seeds this far from the study's
ASKED_FIGURES = 100  # public figures whom the exam asks about, and replay leaves out
DESCRIBED_TOKENS = 80  # of a description, at most
MATCHING = "{description}\n\nIs this the same person?"  # beside a picture


@dataclass(frozen=True)
class Pair:
    """A nameless source and target view of one person."""

    source: View
    target: View


@dataclass(frozen=True)
class Material:
    """Examples to be mixed in. With soft labels, `soft[i]` holds the teacher's likeliest tokens and their
    log-probabilities, each `[answer tokens, kept]`; to be aligned, `partners[i]` is the source view of `examples[i]`;
    labelled, `people[i]` is the person shown. `read`, `seconds`: tokens only read to make it, and the time it took."""

    examples: list[Example]
    soft: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    partners: list[Example] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    read: int = 0
    seconds: float = 0.0


def pairs(study: Study, condition: Condition) -> list[Pair]:
    """Pairs of the study's people, from views that no condition is trained on."""
    spec = persona_spec(study.profile, condition.seed, picture_side(study.vlm.processor))
    last = condition.train_views + PAIR_VIEWS
    dataset, _ = load_personas(replace(spec, train_views=max(spec.train_views, last)))  # earlier views stay the same
    return _nameless(dataset, condition.source, lambda v: condition.train_views <= v.index < last)


def pairs_of_others(study: Study, condition: Condition) -> list[Pair]:
    """As many pairs of people who are not of the study."""
    spec = persona_spec(study.profile, condition.seed + OTHERS_SEED, picture_side(study.vlm.processor))
    dataset, _ = load_personas(replace(spec, train_views=PAIR_VIEWS, test_views=1))
    return _nameless(dataset, condition.source, lambda v: True)


def _nameless(dataset, source: str, wanted: Callable[[View], bool]) -> list[Pair]:
    views = [[replace(v, name="") for v in to_views(dataset, "train", m) if wanted(v)] for m in (source, other(source))]
    return [Pair(*both) for both in zip(*views, strict=True)]


def captions(vlm: VLM, own: Sequence[Pair]) -> Material:
    """The picture of a pair, asked for a description: the pair's own."""
    views = [p.source if p.source.modality == "image" else p.target for p in own]
    texts = [(p.target if p.source.modality == "image" else p.source).content for p in own]
    return Material(encode(vlm, views, CAPTION, texts))


def matching(vlm: VLM, own: Sequence[Pair]) -> Material:
    """The picture of each pair with its own description, and with one of the next person: is it the same?"""
    people = sorted({p.source.persona for p in own})
    following = dict(zip(people, [*people[1:], people[0]], strict=True))
    texts = {(p.source.persona, p.source.index): (p.target if p.source.modality == "image" else p.source).content
             for p in own}  # fmt: skip
    views, questions, answers = [], [], []
    for pair in own:
        for person, answer in ((pair.source.persona, "Yes"), (following[pair.source.persona], "No")):
            views.append(pair.source if pair.source.modality == "image" else pair.target)
            questions.append(MATCHING.format(description=texts[person, pair.source.index]))
            answers.append(answer)
    return Material(encode(vlm, views, questions, answers))


@dataclass(frozen=True)
class Asked:
    """Pairs, both views encoded with the question who it is; nobody answers."""

    pairs: list[Pair]
    source: list[Example]
    target: list[Example]

    @classmethod
    def of(cls, vlm: VLM, own: Sequence[Pair]) -> Asked:
        """Encode some pairs."""
        sides = [[p.source for p in own], [p.target for p in own]]
        bare = [[with_answer(e, e.answer[:0]) for e in encode(vlm, views, answers=[""] * len(own))] for views in sides]
        return cls(list(own), *bare)

    def target_alone(self) -> Asked:
        """The target views in the place of the source views, too: what is answered is trained on."""
        return Asked(self.pairs, self.target, self.target)

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


def labelled(labels: Labels, people: int, threshold: float, soft: bool) -> Material:
    """Target views of the first `people` with what the model answers to the source view of the pair, where that is at
    least as likely as `threshold`: the answer itself, or with `soft` the distributions behind its tokens (Lee 2013's
    pseudo-labels, with FixMatch's threshold, Sohn et al. 2020, arXiv 2001.07685; soft: Hinton et al. 2015, arXiv
    1503.02531)."""
    own = [i for i, p in enumerate(labels.asked.pairs) if p.source.persona < people]
    kept = [i for i in own if labels.probability[i] >= threshold]
    passes = 3 if soft else 2  # decoding, the probability of what came, its distribution
    read = passes * sum(len(labels.asked.source[i].prompt) + len(labels.answers[i]) for i in own)
    targets = [with_answer(labels.asked.target[i], labels.answers[i]) for i in kept]
    people = [labels.asked.pairs[i].source.persona for i in kept]
    seconds = labels.seconds * len(own) / max(1, len(labels.answers))
    return Material(targets, [labels.soft[i] for i in kept] if soft else [], [], people, read, seconds)


@torch.inference_mode()
def _soft(vlm: VLM, model: PeftModel, examples: Sequence[Example]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    out, width = [], max(1, BATCH_TOKENS // max((len(e.prompt) + len(e.answer) for e in examples), default=1))
    for start in range(0, len(examples), width):
        part = examples[start : start + width]
        batch = {k: v.to(vlm.device) for k, v in
                 collate(part, vlm.processor.tokenizer.pad_token_id, side="left").items()}  # fmt: skip
        logits, asked = answer_logits(model, batch, max(len(e.answer) for e in part))
        for row, label in zip(logits, asked, strict=True):
            tokens, logprobs = soft_label(row[label != -100])
            out.append((tokens.cpu().clone(), logprobs.cpu().clone()))
    return out


def own_words(vlm: VLM, views: Sequence[View]) -> tuple[list[View], int]:
    """Every other view replaced by the base model's own description of it, the name staying; and the tokens read."""
    replaced = [v for v in views if v.index % 2]
    texts, read = described(vlm, replaced)
    new = {(v.persona, v.index): replace(v, modality="text", content=t) for v, t in zip(replaced, texts, strict=True)}
    return [new.get((v.persona, v.index), v) for v in views], read


def described(vlm: VLM, views: Sequence[View]) -> tuple[list[str], int]:
    """What the base model writes of each view, and how many tokens it read and wrote."""
    asked = encode(vlm, views, CAPTION, [""] * len(views))
    texts = greedy_answers(vlm, asked, max_new_tokens=DESCRIBED_TOKENS)
    written = vlm.processor.tokenizer(texts, add_special_tokens=False).input_ids
    return texts, sum(len(e.prompt) + len(ids) for e, ids in zip(asked, written, strict=True))


def replayed(study: Study, condition: Condition) -> Material:
    """Public figures with their names in both modalities, and captions of other people: what pretraining taught.

    The figures whom the exam asks about are left out. Raises ValueError for a model whose figures are not known.
    """
    figures = figures_known_to(study.vlm)
    if figures is None:
        raise ValueError(f"whom {study.vlm.name!r} knows from pretraining is not known, so nothing can be replayed")
    chosen = figures.where("both")[:-ASKED_FIGURES]
    views = figure_views(figures, chosen, [condition.seed, 70], "train", picture_side(study.vlm.processor), 2)
    others = captions(study.vlm, pairs_of_others(study, condition)[:: PAIR_VIEWS // 2])
    return Material(encode(study.vlm, views) + others.examples)


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
