"""Does the model say the name? Exact match by one forward pass, and the rank of the true name.

Under teacher forcing "every answer token, end of turn included, is the argmax" is the same event as
"greedy decoding yields exactly the answer": each token is judged given the true prefix, and greedy
decoding leaves the true prefix at the first miss. So one pass a batch replaces token-by-token decoding.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.vlm.batches import Example, answer_tokens, collate, end_tokens, model_inputs, with_answer
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.name_tree import BATCH_TOKENS, NameTree, Prompts
from xmem_utils.vlm.precision import rounding

_Answers = Sequence[torch.Tensor]  # tokens of each


@dataclass(frozen=True)
class Recall:
    """Exact match and log-probability (nats, end of turn included): of one answer an example `[n]`, or of
    several names `[n, names]`. `rank`: that of the first name among all, from 1. `among`: whether greedy decoding that
    may write nothing but the names writes it; None where names were scored one by one.

    Of one answer, on demand: `least`, the mean log-probability of its least likely fifth of tokens (Min-K %, K = 20,
    Shi et al. 2023, arXiv 2310.16789); `least_z`, the same of log-probabilities in standard deviations from their mean
    over the vocabulary (Min-K %++, Zhang et al. 2024, arXiv 2404.02936); `extracted`, the share of tokens at its end
    that are all said once those before are given (extraction strength, as open-unlearning has it).
    """

    exact: np.ndarray
    logprob: np.ndarray
    least: np.ndarray | None = None
    rank: np.ndarray | None = None
    among: np.ndarray | None = None
    least_z: np.ndarray | None = None
    extracted: np.ndarray | None = None


def _batches(examples: Sequence[Example], extra: int = 0) -> Iterator[list[int]]:
    """Indices in batches of similar length, so that little is padding; `extra` tokens go with each example."""
    lengths = [len(e.prompt) + len(e.answer) + extra for e in examples]
    batch: list[int] = []
    for i in sorted(range(len(examples)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def in_batches(vlm: VLM, examples: Sequence[Example]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Rows and left-padded batches on the model's device, of similar lengths so that little is padding."""
    for rows in _batches(examples):
        batch = collate([examples[i] for i in rows], vlm.processor.tokenizer.pad_token_id, side="left")
        yield rows, {k: v.to(vlm.device) for k, v in batch.items()}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(training)


def exact_match(
    vlm: VLM, examples: Sequence[Example], model: nn.Module | None = None, thorough: bool = False
) -> Recall:
    """Teacher-forced exact match and log-probability of every example's answer; if `thorough`, also what membership
    attacks and extraction strength need.

    `model` replaces the VLM's own (a PEFT model around it, say).
    """
    exact = np.zeros(len(examples), bool)
    logprob, least, least_z, extracted = np.zeros((4, len(examples)))
    with evaluating(vlm.model if model is None else model) as model:
        for rows, batch in in_batches(vlm, examples):
            keep = max(len(examples[i].answer) for i in rows)
            said = forward(model, batch, keep)
            logits, labels = said.logits, said.labels
            asked = labels != -100
            hit = (logits.argmax(-1) == labels) | ~asked  # answers end where rows end
            exact[rows] = hit.all(1).cpu().numpy()
            every = torch.log_softmax(logits.float(), -1)
            scores = every.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            logprob[rows] = (scores * asked).sum(1).cpu().numpy()
            if not thorough:
                continue
            ending = hit.flip(1).long().cumprod(1).flip(1) * asked
            extracted[rows] = (ending.sum(1) / asked.sum(1)).cpu().numpy()
            mean = (every.exp() * every).sum(-1)
            spread = ((every.exp() * every**2).sum(-1) - mean**2).clamp(min=1e-6).sqrt()
            least[rows] = _least_fifth(scores, asked).cpu().numpy()
            least_z[rows] = _least_fifth((scores - mean) / spread, asked).cpu().numpy()
    return Recall(exact, logprob, least, least_z=least_z, extracted=extracted) if thorough else Recall(exact, logprob)


def _least_fifth(scores: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Mean of the lowest fifth (rounded up) of each row's scores `[batch, tokens]`, where `asked`: `[batch]`."""
    fifth = (asked.sum(1) / 5).ceil().long()[:, None]
    among = torch.arange(scores.shape[1], device=scores.device) < fifth
    return scores.masked_fill(~asked, torch.inf).sort(1).values.masked_fill(~among, 0).sum(1) / fifth[:, 0]


def recall_of_all(
    vlm: VLM,
    examples: Sequence[Example],
    names: Sequence[str],
    model: nn.Module | None = None,
    given: np.ndarray | None = None,
) -> Recall:
    """Exact match and log-probability of every name after every prompt, both `[examples, names]`.

    Each prompt runs once; then the tree of all names runs once against its key-value cache. A class whose cache or
    masks do not allow that (found out by trying it on two of the prompts) gets a pass for every name instead, with a
    warning. The examples' own answers play no part. With `given`, see `ranked`, names that cannot reach the first of
    them have -inf.
    """
    answers = answer_tokens(vlm, names)
    with evaluating(vlm.model if model is None else model) as model:
        if _tree_is_exact(vlm, examples, answers, model, given is not None):
            return _by_tree(vlm, examples, answers, model, given, margin=rounding(vlm.model.dtype))
        return _name_by_name(vlm, examples, answers, model)


def ranked(
    vlm: VLM, examples: Sequence[Example], names: Sequence[str], given: np.ndarray, model: nn.Module | None = None
) -> Recall:
    """Exact match and log-probability of some names after each prompt, and the rank of the first among all names.

    `given` `[examples, k]`: which of `names`. Names that cannot reach the first are not scored to their ends, so the
    cost of a prompt hardly grows with the number of names. Ties count against the model. A class that allows no tree
    of names (see `recall_of_all`) gets a pass for every name.
    """
    given = np.asarray(given)
    every = recall_of_all(vlm, examples, names, model, given)
    rows = np.arange(len(examples))[:, None]
    among = None if every.among is None else every.among[rows, given]
    rank = ranks(every.logprob, given[:, 0])
    return Recall(every.exact[rows, given], every.logprob[rows, given], rank=rank, among=among)


def _name_by_name(vlm: VLM, examples: Sequence[Example], answers: _Answers, model: nn.Module) -> Recall:
    """What `recall_of_all` returns, by plain teacher-forced passes."""
    columns = [exact_match(vlm, [with_answer(e, answer) for e in examples], model) for answer in answers]
    return Recall(np.stack([c.exact for c in columns], 1), np.stack([c.logprob for c in columns], 1, dtype=np.float32))


def _tree_is_exact(vlm: VLM, examples: Sequence[Example], answers: _Answers, model: nn.Module, by_level: bool) -> bool:
    """Whether the tree of names scores as plain passes do, tried on the shortest and the longest prompt.

    The longest fills caches of limited length, and beside it the shortest is padded. What was found is kept.
    """
    if not len(examples):
        return True
    by_length = sorted(examples, key=lambda e: len(e.prompt))
    ends = [by_length[0], by_length[-1]]
    key = (frozenset(ends[-1].inputs), len(ends[-1].prompt), max(map(len, answers)), by_level)
    if key not in vlm.checked:
        picked = sorted({0, len(answers) - 1, max(range(len(answers)), key=lambda i: len(answers[i]))})
        plain = _name_by_name(vlm, ends, [answers[i] for i in picked], model).logprob
        near, given = rounding(vlm.model.dtype), np.zeros((2, 1), int) if by_level else None
        try:
            tree = _by_tree(vlm, ends, answers, model, given, margin=np.inf).logprob[:, picked]
            vlm.checked[key] = np.allclose(tree, plain, rtol=near, atol=near, equal_nan=True)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # a cache that takes no such mask
            vlm.checked[key] = False
        if not vlm.checked[key]:
            warnings.warn(
                f"{type(vlm.model).__name__} cannot score all names in one pass for prompts of "
                f"{len(ends[-1].prompt)} tokens; each of {len(answers)} names gets a pass of its own",
                stacklevel=3,
            )
    return vlm.checked[key]


def _by_tree(
    vlm: VLM, examples: Sequence[Example], answers: _Answers, model: nn.Module, given: np.ndarray | None, margin: float
) -> Recall:
    """What `recall_of_all` returns, by running the tree of the names after each prompt, whole or level by level."""
    tree = NameTree.of(answers, vlm.device)
    exact, logprob, among = (np.zeros((len(examples), len(answers)), kind) for kind in (bool, np.float32, bool))
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    for rows in _batches(bare, extra=len(tree.tokens) if given is None else 2 * tree.beginnings.shape[1]):
        prompts = Prompts(vlm, model, [bare[i] for i in rows], tree)
        if given is None:
            prompts.run_all(prompts.everyone)
        else:
            prompts.run_those_that_reach(torch.from_numpy(given[rows]).to(vlm.device), margin)
        found = (part[:, tree.leaves].cpu().numpy() for part in prompts.scores())
        logprob[rows], exact[rows], among[rows] = found
    return Recall(exact, logprob, among=among)


def ranks(logprobs: np.ndarray, true: np.ndarray) -> np.ndarray:
    """1-based rank of the true name in each row of `[n, names]`; ties count against the model."""
    mine = logprobs[np.arange(len(true)), true][:, None]
    return (logprobs >= mine).sum(1)


def greedy_answers(
    vlm: VLM, examples: Sequence[Example], model: nn.Module | None = None, max_new_tokens: int = 12
) -> list[str]:
    """What the model writes, decoded greedily: to show wrong answers and to check `exact_match`."""
    tokenizer, ends = vlm.processor.tokenizer, end_tokens(vlm)
    out = [""] * len(examples)
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    with evaluating(vlm.model if model is None else model) as model:
        for rows, batch in in_batches(vlm, bare):
            made = model.generate(
                **model_inputs(batch), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends)
            )
            for i, ids in zip(rows, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((k for k, token in enumerate(ids) if token in ends), len(ids))
                # special tokens are shown: a name with image tokens behind it is not the name
                out[i] = tokenizer.decode(ids[:end], skip_special_tokens=False).strip()
    return out
