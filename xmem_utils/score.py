"""Does the model say the name? Exact match by one forward pass, and the rank of the true name.

Under teacher forcing "every answer token, end of turn included, is the argmax" is the same event as
"greedy decoding yields exactly the answer": each token is judged given the true prefix, and greedy
decoding leaves the true prefix at the first miss. So one pass a batch replaces token-by-token decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.vlm.batches import Example, answer_tokens, collate, end_tokens, model_inputs, with_answer
from xmem_utils.vlm.load import VLM

# A batch holds about this many tokens: more pays little, costs memory and drives activations out of a core's cache.
BATCH_TOKENS = 4000


@dataclass(frozen=True)
class Recall:
    """Exact match and log-probability (nats, end of turn included): of one answer an example `[n]`, or of
    every name `[n, names]`. `least`, of one answer alone: mean log-probability of its least likely fifth of tokens
    (Min-K % with K = 20, Shi et al. 2023, arXiv 2310.16789)."""

    exact: np.ndarray
    logprob: np.ndarray
    least: np.ndarray | None = None


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


def answer_logits(model: nn.Module, batch: dict[str, torch.Tensor], keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[batch, keep, vocabulary]` that predict the last `keep` tokens, and their labels `[batch, keep]`.

    Batches are left-padded, so answers end in the last column and the vocabulary projection, the largest
    product of a small model, runs on answer positions alone.
    """
    labels = batch["labels"][:, -keep:]
    logits = model(**model_inputs(batch), logits_to_keep=keep + 1, use_cache=False).logits[:, -keep - 1 : -1]
    return logits, labels


@torch.inference_mode()
def exact_match(vlm: VLM, examples: Sequence[Example], model: nn.Module | None = None) -> Recall:
    """Teacher-forced exact match and log-probability of every example's answer.

    `model` replaces the VLM's own (a PEFT model around it, say).
    """
    model = vlm.model if model is None else model
    exact, logprob, least = np.zeros(len(examples), bool), np.zeros(len(examples)), np.zeros(len(examples))
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
        fifth = (asked.sum(1) / 5).ceil().long()[:, None]
        sorted_scores = scores.masked_fill(~asked, torch.inf).sort(1).values
        among = torch.arange(keep, device=scores.device) < fifth
        least[rows] = (sorted_scores.masked_fill(~among, 0).sum(1) / fifth[:, 0]).cpu().numpy()
    model.train(training)
    return Recall(exact, logprob, least)


@dataclass(frozen=True)
class NameTree:
    """Names as a tree of their tokens: a prefix that several names share is one node.

    `tokens`, `depth` `[nodes]`: every proper prefix of a name, by its last token and its length less 1.
    `sees` `[nodes, nodes]` bool: each node attends to itself and its ancestors. `paths` `[names, width]`:
    the node that predicts each of a name's tokens but the first (-1: beyond its end); `answers` likewise.
    """

    tokens: torch.Tensor
    depth: torch.Tensor
    sees: torch.Tensor
    first: torch.Tensor
    paths: torch.Tensor
    answers: torch.Tensor

    @classmethod
    def of(cls, names: Sequence[torch.Tensor]) -> NameTree:
        """The tree of some names' tokens, end of turn included."""
        nodes: dict[tuple[int, ...], int] = {}
        width = max(map(len, names)) - 1
        paths, answers = torch.full((len(names), width), -1), torch.zeros((len(names), width), dtype=torch.long)
        for i, name in enumerate(names):
            for k in range(1, len(name)):
                paths[i, k - 1] = nodes.setdefault(tuple(name[:k].tolist()), len(nodes))
                answers[i, k - 1] = name[k]
        sees = torch.eye(len(nodes), dtype=torch.bool)
        for prefix, node in nodes.items():
            for k in range(1, len(prefix)):
                sees[node, nodes[prefix[:k]]] = True
        return cls(
            tokens=torch.tensor([prefix[-1] for prefix in nodes], dtype=torch.long),
            depth=torch.tensor([len(prefix) - 1 for prefix in nodes], dtype=torch.long),
            sees=sees,
            first=torch.stack([name[0] for name in names]),
            paths=paths,
            answers=answers,
        )


@torch.inference_mode()
def recall_of_all(
    vlm: VLM, examples: Sequence[Example], names: Sequence[str], model: nn.Module | None = None
) -> Recall:
    """Exact match and log-probability of every name after every prompt, both `[examples, names]`.

    Each prompt runs once; then the tree of all names runs once against its key-value cache, in which every
    node sees the prompt and its own ancestors only. A class whose cache or masks do not allow that (found out
    by trying it on two of the prompts) gets a pass for every name instead, with a warning. The examples' own
    answers play no part.
    """
    model = vlm.model if model is None else model
    answers = answer_tokens(vlm, names)
    training = model.training
    model.eval()
    if _tree_is_exact(vlm, examples, answers, model):
        recall = _by_tree(vlm, examples, answers, model)
    else:
        recall = _name_by_name(vlm, examples, answers, model)
    model.train(training)
    return recall


def _name_by_name(vlm: VLM, examples: Sequence[Example], answers: Sequence[torch.Tensor], model: nn.Module) -> Recall:
    """What `recall_of_all` returns, by plain teacher-forced passes."""
    columns = [exact_match(vlm, [with_answer(e, answer) for e in examples], model) for answer in answers]
    return Recall(np.stack([c.exact for c in columns], 1), np.stack([c.logprob for c in columns], 1, dtype=np.float32))


def _tree_is_exact(vlm: VLM, examples: Sequence[Example], answers: Sequence[torch.Tensor], model: nn.Module) -> bool:
    """Whether the tree of names scores as plain passes do, tried on the shortest and the longest prompt.

    The longest fills caches of limited length, and beside it the shortest is padded. What was found is kept.
    """
    if not len(examples):
        return True
    by_length = sorted(examples, key=lambda e: len(e.prompt))
    ends = [by_length[0], by_length[-1]]
    key = (frozenset(ends[-1].inputs), len(ends[-1].prompt), max(map(len, answers)))
    if key not in vlm.checked:
        picked = sorted({0, len(answers) - 1, max(range(len(answers)), key=lambda i: len(answers[i]))})
        plain = _name_by_name(vlm, ends, [answers[i] for i in picked], model).logprob
        near = torch.finfo(vlm.model.dtype).eps ** 0.5
        try:
            tree = _by_tree(vlm, ends, answers, model).logprob[:, picked]
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


def _by_tree(vlm: VLM, examples: Sequence[Example], answers: Sequence[torch.Tensor], model: nn.Module) -> Recall:
    """What `recall_of_all` returns, by one pass over the tree of the names after each prompt."""
    pad, device = vlm.processor.tokenizer.pad_token_id, vlm.device
    tree = NameTree.of(answers)
    n, paths, answers = len(tree.tokens), tree.paths.to(device), tree.answers.to(device)
    beyond, parents = paths < 0, paths.clamp(min=0)
    exact = np.zeros((len(examples), len(tree.first)), bool)
    logprob = np.zeros((len(examples), len(tree.first)), np.float32)
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    additive = model.config.get_text_config()._attn_implementation == "eager"
    # positions that a class computes by itself: a picture may take fewer of them than tokens
    given: list[torch.Tensor | None] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs.get("position_ids")), with_kwargs=True
    )
    try:
        for rows in _batches(bare, extra=n):
            batch = {k: v.to(device) for k, v in collate([bare[i] for i in rows], pad, side="left").items()}
            given.clear()
            prompt = model(**model_inputs(batch), logits_to_keep=1, use_cache=True)
            start = prompt.logits[:, -1].float()
            score = (start - start.logsumexp(-1, keepdim=True))[:, tree.first]  # [batch, names]
            said = start.argmax(-1)[:, None] == tree.first.to(device)
            if n:
                seen = batch["attention_mask"].bool()[:, None, None].expand(-1, 1, n, -1)
                mask = torch.cat([seen, tree.sees.to(device).expand(len(rows), 1, n, n)], -1)
                if additive:
                    mask = torch.zeros_like(mask, dtype=vlm.model.dtype).masked_fill(~mask, -torch.inf)
                # masks of several dimensions go on; token-wise marks do not, since pictures lie in the cache
                further = {
                    k: torch.stack([examples[i].after[k] for i in rows]).to(device)[:, None].expand(-1, n, *v.shape)
                    for k, v in examples[rows[0]].after.items()
                    if v.ndim
                }
                logits = model(
                    input_ids=tree.tokens.to(device).expand(len(rows), n),
                    attention_mask=mask,
                    position_ids=_next_position(given[0], seen.shape[-1], len(rows), device)
                    + tree.depth.to(device).expand(len(rows), n),
                    past_key_values=prompt.past_key_values,
                    use_cache=True,
                    **further,
                ).logits.float()
                rest = logits[:, parents, answers] - logits.logsumexp(-1)[:, parents]  # [batch, names, width]
                score = score + rest.masked_fill(beyond, 0).sum(-1)
                said = said & ((logits.argmax(-1)[:, parents] == answers) | beyond).all(-1)
            exact[rows], logprob[rows] = said.cpu().numpy(), score.cpu().numpy()
    finally:
        hook.remove()
    return Recall(exact, logprob)


def _next_position(positions: torch.Tensor | None, width: int, batch: int, device: torch.device) -> torch.Tensor:
    """Position `[batch, 1]` of the token after a prompt of `width` tokens, whose positions its class gave or not.

    With several axes (time, height, width of an image) text goes on from the furthest.
    """
    if positions is None:
        return torch.full((batch, 1), width, device=device)
    furthest = positions.amax(0) if positions.ndim == 3 else positions
    return furthest[:, -1:].expand(batch, 1) + 1


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
        batch = {k: v.to(vlm.device) for k, v in batch.items()}
        made = model.generate(
            **model_inputs(batch), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends)
        )
        for i, ids in zip(rows, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((k for k, token in enumerate(ids) if token in ends), len(ids))
            # special tokens are shown: a name with image tokens behind it is not the name
            out[i] = tokenizer.decode(ids[:end], skip_special_tokens=False).strip()
    model.train(training)
    return out
