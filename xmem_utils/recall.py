"""Does the model say the name? Exact match by one forward pass, and the rank of the true name.

Under teacher forcing "every answer token, end of turn included, is the argmax" is the same event as
"greedy decoding yields exactly the answer": each token is judged given the true prefix, and greedy
decoding leaves the true prefix at the first miss. So one pass a batch replaces token-by-token decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.vlm.batches import Example, answer_tokens, collate, end_tokens, with_answer
from xmem_utils.vlm.load import VLM

# A batch holds about this many tokens: more pays little on two cores and costs memory.
BATCH_TOKENS = 6000


@dataclass(frozen=True)
class Recall:
    """Per example: exact match `[n]` and the answer's log-probability `[n]` (nats, end of turn included)."""

    exact: np.ndarray
    logprob: np.ndarray


def _batches(examples: Sequence[Example], budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices in batches of similar length, so that little is padding."""
    lengths = [len(e.prompt) + len(e.answer) for e in examples]
    batch: list[int] = []
    for i in sorted(range(len(examples)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def answer_logits(model: nn.Module, batch: dict[str, torch.Tensor], keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[batch, keep, vocabulary]` that predict the last `keep` tokens, and their labels `[batch, keep]`.

    Batches are left-padded, so answers end in the last column and the vocabulary projection, the largest
    product of a small model, runs on answer positions alone.
    """
    labels = batch["labels"][:, -keep:]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs, logits_to_keep=keep + 1, use_cache=False).logits[:, -keep - 1 : -1]
    return logits, labels


@torch.inference_mode()
def exact_match(vlm: VLM, examples: Sequence[Example], model: nn.Module | None = None) -> Recall:
    """Teacher-forced exact match and log-probability of every example's answer.

    `model` replaces the VLM's own (a PEFT model around it, say).
    """
    model = vlm.model if model is None else model
    exact, logprob = np.zeros(len(examples), bool), np.zeros(len(examples))
    training = model.training
    model.eval()
    for rows in _batches(examples):
        batch = collate([examples[i] for i in rows], vlm.processor.tokenizer.pad_token_id, side="left")
        batch = {k: v.to(vlm.device) for k, v in batch.items()}
        keep = max(len(examples[i].answer) for i in rows)
        logits, labels = answer_logits(model, batch, keep)
        asked = labels != -100
        exact[rows] = ((logits.argmax(-1) == labels) | ~asked).all(1).cpu().numpy()
        scores = torch.log_softmax(logits.float(), -1)
        scores = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        logprob[rows] = (scores * asked).sum(1).cpu().numpy()
    model.train(training)
    return Recall(exact, logprob)


@torch.inference_mode()
def name_logprobs(
    vlm: VLM, examples: Sequence[Example], names: Sequence[str], model: nn.Module | None = None
) -> np.ndarray:
    """Log-probability of every name after every prompt: `[examples, names]`, nats, end of turn included.

    Each prompt runs once; its key-value cache is repeated for the names, which run in one batch.
    """
    model = vlm.model if model is None else model
    training = model.training
    model.eval()
    pad = vlm.processor.tokenizer.pad_token_id
    answers = answer_tokens(vlm, names)
    width = max(map(len, answers))
    tokens = torch.full((len(names), width), pad)
    for i, answer in enumerate(answers):
        tokens[i, : len(answer)] = answer
    asked = torch.arange(width) < torch.tensor([len(a) for a in answers])[:, None]
    tokens, asked = tokens.to(vlm.device), asked.to(vlm.device)
    out = np.zeros((len(examples), len(names)), np.float32)
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    # the repeated caches, not the prompts, are what takes memory
    for rows in _batches(bare, budget=max(64, BATCH_TOKENS * 12 // len(names))):
        batch = collate([bare[i] for i in rows], pad, side="left")
        batch = {k: v.to(vlm.device) for k, v in batch.items() if k != "labels"}
        first = model(**batch, logits_to_keep=1, use_cache=True)
        start = torch.log_softmax(first.logits[:, -1].float(), -1)  # [batch, vocabulary]
        score = start[:, tokens[:, 0]]  # [batch, names]
        if width > 1:
            cache = first.past_key_values
            cache.batch_repeat_interleave(len(names))
            mask = batch["attention_mask"].repeat_interleave(len(names), 0)
            feed = tokens[:, :-1].repeat(len(rows), 1)
            mask = torch.cat([mask, torch.ones_like(feed)], 1)
            position = batch["attention_mask"].shape[1] + torch.arange(width - 1, device=vlm.device)
            logits = model(
                input_ids=feed,
                attention_mask=mask,
                position_ids=position[None].expand(len(feed), -1),
                past_key_values=cache,
                use_cache=True,
            ).logits
            rest = torch.log_softmax(logits.float(), -1)
            rest = rest.gather(-1, tokens[:, 1:].repeat(len(rows), 1)[..., None])[..., 0]
            rest = (rest * asked[:, 1:].repeat(len(rows), 1)).sum(1)
            score = score + rest.view(len(rows), len(names))
        out[rows] = score.cpu().numpy()
    model.train(training)
    return out


def ranks(logprobs: np.ndarray, true: np.ndarray) -> np.ndarray:
    """1-based rank of the true name in each row of `[n, names]`; ties count against the model."""
    mine = logprobs[np.arange(len(true)), true][:, None]
    return (logprobs >= mine).sum(1)


@torch.inference_mode()
def greedy_answers(
    vlm: VLM, examples: Sequence[Example], model: nn.Module | None = None, max_new_tokens: int = 12
) -> list[str]:
    """What the model writes, decoded greedily: to show wrong answers and to check `exact_match`."""
    model = vlm.model if model is None else model
    training = model.training
    model.eval()
    tokenizer, ends = vlm.processor.tokenizer, end_tokens(vlm)
    out = [""] * len(examples)
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    for rows in _batches(bare):
        batch = collate([bare[i] for i in rows], tokenizer.pad_token_id, side="left")
        batch = {k: v.to(vlm.device) for k, v in batch.items() if k != "labels"}
        made = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends))
        for i, ids in zip(rows, made[:, batch["input_ids"].shape[1] :], strict=True):
            out[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    model.train(training)
    return out
