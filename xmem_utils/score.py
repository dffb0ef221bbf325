"""Does the model say the name? Exact match by one forward pass, and the rank of the true name.

Under teacher forcing "every answer token, end of turn included, is the argmax" is the same event as
"greedy decoding yields exactly the answer": each token is judged given the true prefix, and greedy
decoding leaves the true prefix at the first miss. So one pass a batch replaces token-by-token decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.vlm.batches import Example, answer_tokens, collate, end_tokens, model_inputs, with_answer
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import VLM

# A batch holds about this many tokens: more pays little, costs memory and drives activations out of a core's cache.
BATCH_TOKENS = 4000
_Answers = Sequence[torch.Tensor]  # tokens of each


@dataclass(frozen=True)
class Recall:
    """Exact match and log-probability (nats, end of turn included): of one answer an example `[n]`, or of
    several names `[n, names]`. `least`, of one answer alone: mean log-probability of its least likely fifth of tokens
    (Min-K % with K = 20, Shi et al. 2023, arXiv 2310.16789). `rank`: that of the first name among all, from 1."""

    exact: np.ndarray
    logprob: np.ndarray
    least: np.ndarray | None = None
    rank: np.ndarray | None = None


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
        said = forward(model, batch, keep)
        logits, labels = said.logits, said.labels
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
    """Names as a tree of their tokens: a prefix that several names share is one node, the empty prefix is node 0.

    `tokens`, `parents`, `depth`, `inner` `[nodes]`: a prefix's last token, the prefix without it, its length, and
    whether it goes on. `beginnings` `[nodes, width]`: the node of each of its beginnings, itself the last (-1: beyond
    its end). `leaves` `[names]`: each name's own node.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depth: torch.Tensor
    inner: torch.Tensor
    beginnings: torch.Tensor
    leaves: torch.Tensor

    @classmethod
    def of(cls, names: Sequence[torch.Tensor], device: torch.device | None = None) -> NameTree:
        """The tree of some names' tokens, end of turn included."""
        rows = [tuple(name.tolist()) for name in names]
        prefixes = sorted({row[:k] for row in rows for k in range(len(row) + 1)}, key=len)
        node, width = {prefix: i for i, prefix in enumerate(prefixes)}, len(prefixes[-1])
        tokens, parents = [(0, *prefix)[-1] for prefix in prefixes], [node[prefix[:-1]] for prefix in prefixes]
        inner = np.isin(np.arange(len(prefixes)), parents)
        beginnings = [[node[p[:k]] if k <= len(p) else -1 for k in range(1, width + 1)] for p in prefixes]
        columns = tokens, parents, [*map(len, prefixes)], inner, beginnings, [node[row] for row in rows]
        return cls(*(torch.tensor(column, device=device) for column in columns))


class _Prompts:
    """A batch of prompts, run once, and what was found of the nodes of a tree of names after each `[batch, nodes]`.

    `steps`: log-probability of a node's token after its prefix (-inf: not looked at yet); `greedy`: whether no token is
    more probable; `done`: whether the node was run, so that the steps of its children are known.
    """

    def __init__(self, vlm: VLM, model: nn.Module, examples: Sequence[Example], tree: NameTree) -> None:
        self.model, self.tree, self.device = model, tree, vlm.device
        batch = collate(examples, vlm.processor.tokenizer.pad_token_id, side="left")
        batch = {k: v.to(self.device) for k, v in batch.items()}
        # positions that a class computes by itself: a picture may take fewer of them than tokens
        given: list[torch.Tensor | None] = []
        hook = model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: given.append(kwargs.get("position_ids")), with_kwargs=True
        )
        try:
            prompt = model(**model_inputs(batch), logits_to_keep=1, use_cache=True)
        finally:
            hook.remove()
        self.cache, self.seen = prompt.past_key_values, batch["attention_mask"].bool()
        self.position = _next_position(given[0], self.seen.shape[1], len(examples), self.device)
        # masks of several dimensions go on; token-wise marks do not, since pictures lie in the cache
        further = [k for k, v in examples[0].after.items() if v.ndim]
        self.after = {k: torch.stack([e.after[k] for e in examples]).to(self.device)[:, None] for k in further}
        self.everyone = torch.arange(len(examples), device=self.device)
        shape = len(examples), len(tree.tokens)
        self.steps = torch.full(shape, -torch.inf, device=self.device)
        self.greedy, self.done = (torch.zeros(shape, dtype=torch.bool, device=self.device) for _ in range(2))
        self._note(self.everyone, prompt.logits[:, -1:], torch.zeros_like(self.everyone)[:, None])

    def _note(self, rows: torch.Tensor, logits: torch.Tensor, nodes: torch.Tensor) -> None:
        """Keeps what `logits` `[rows, k, vocabulary]` at `nodes` `[rows, k]` (-1: none) say of their children."""
        logits, tokens, row = logits.float(), self.tree.tokens, torch.arange(len(rows), device=self.device)[:, None]
        place = torch.full((len(rows), len(tokens) + 1), -1, device=self.device)  # of each node among `nodes`
        place[row, nodes] = torch.arange(nodes.shape[1], device=self.device)
        place = place[:, :-1]
        self.done[rows] |= place >= 0
        place = place[:, self.tree.parents]
        steps = logits[row, place, tokens] - logits.logsumexp(-1)[row, place]
        self.steps[rows] = torch.where(place >= 0, steps, self.steps[rows])
        self.greedy[rows] = torch.where(place >= 0, logits.argmax(-1)[row, place] == tokens, self.greedy[rows])

    def run(self, rows: torch.Tensor, nodes: torch.Tensor, sees: torch.Tensor, keep: int = 0) -> None:
        """Runs `nodes` `[rows, k]` of the tree after some of the prompts, and notes the last `keep` (0: all).

        Each node attends to its prompt and to those that `sees` `[k, k]` says. The prompts' cache stays as it was.
        """
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in cache.layers]
        if len(rows) < len(self.everyone):
            cache.batch_select_indices(rows)
        count = nodes.shape[1]
        seen = self.seen[rows][:, None, None].expand(-1, 1, count, -1)
        mask = torch.cat([seen, sees.expand(len(rows), 1, count, count)], -1)
        if self.model.config.get_text_config()._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, -torch.inf)
        logits = self.model(
            input_ids=self.tree.tokens[nodes],
            attention_mask=mask,
            position_ids=self.position[rows] + self.tree.depth[nodes] - 1,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            **{k: v[rows].expand(-1, count, *v.shape[2:]) for k, v in self.after.items()},
        ).logits
        self._note(rows, logits, nodes[:, -keep:])

    def run_all(self, rows: torch.Tensor) -> None:
        """Runs the whole tree after some of the prompts, in which every node sees its own beginnings."""
        nodes = (self.tree.inner & (self.tree.depth > 0)).nonzero()[:, 0]
        if len(rows) and len(nodes):
            sees = (self.tree.beginnings[nodes][:, None] == nodes[:, None]).any(-1)
            for part in rows.split(max(1, BATCH_TOKENS // len(nodes))):
                self.run(part, nodes.expand(len(part), -1), sees)

    def run_chains(self, rows: torch.Tensor, chains: torch.Tensor, keep: int = 0) -> None:
        """Runs `chains` `[rows, k, length]` of nodes, each on its own, and notes their last `keep` nodes (0: all)."""
        _, k, length = chains.shape
        if length:
            before = torch.ones(length, length, device=self.device).tril()
            sees = torch.kron(before, torch.eye(k, device=self.device)).bool()
            self.run(rows, chains.transpose(1, 2).flatten(1), sees, keep * k)

    def run_those_that_reach(self, names: torch.Tensor, margin: float) -> None:
        """Runs what shows the scores of `names` `[batch, k]` and of all names that reach the first of them.

        A name's score is at most that of its beginnings, so those of a lower one need not be followed. A score may
        fall short by `margin`, for rounding.
        """
        tree = self.tree
        ends = tree.leaves[names]
        self.run_chains(self.everyone, tree.beginnings[ends][..., :-1])
        score = self.scores()[0].gather(1, ends[:, :1])
        least = score - margin * (1 + score.abs())
        for depth in range(1, tree.beginnings.shape[1]):
            level = (tree.depth == depth) & tree.inner
            wanted = (self.scores()[0] >= least) & level & ~self.done
            many = wanted.sum(1) > level.sum() / 2
            self.run_all(many.nonzero()[:, 0])  # costs less than so many chains
            counts = wanted.sum(1).masked_fill(many, 0)
            group = (1 + counts).log2().div(2).ceil()  # prompts with about as many nodes go together
            for size in group[counts > 0].unique():
                rows = (group == size).nonzero()[:, 0]
                nodes = wanted[rows].int().topk(int(counts[rows].max())).indices
                for part in nodes.split(max(1, BATCH_TOKENS // (len(rows) * depth)), 1):
                    self.run_chains(rows, tree.beginnings[part][..., :depth], keep=1)

    def scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each node's whole prefix, and whether greedy decoding writes it, both `[batch, nodes]`."""
        scores, exact = self.steps.clone(), self.greedy.clone()
        scores[:, 0], exact[:, 0] = 0, True
        for depth in range(1, self.tree.beginnings.shape[1] + 1):
            level = self.tree.depth == depth
            scores[:, level] += scores[:, self.tree.parents[level]]
            exact[:, level] &= exact[:, self.tree.parents[level]]
        return scores, exact


@torch.inference_mode()
def recall_of_all(
    vlm: VLM, examples: Sequence[Example], names: Sequence[str], model: nn.Module | None = None
) -> Recall:
    """Exact match and log-probability of every name after every prompt, both `[examples, names]`.

    Each prompt runs once; then the tree of all names runs once against its key-value cache. A class whose cache or
    masks do not allow that (found out by trying it on two of the prompts) gets a pass for every name instead, with a
    warning. The examples' own answers play no part.
    """
    return _recall(vlm, examples, answer_tokens(vlm, names), model)


@torch.inference_mode()
def ranked(
    vlm: VLM, examples: Sequence[Example], names: Sequence[str], given: np.ndarray, model: nn.Module | None = None
) -> Recall:
    """Exact match and log-probability of some names after each prompt, and the rank of the first among all names.

    `given` `[examples, k]`: which of `names`. Names that cannot reach the first are not scored to their ends, so the
    cost of a prompt hardly grows with the number of names. Ties count against the model. A class that allows no tree
    of names (see `recall_of_all`) gets a pass for every name.
    """
    given = np.asarray(given)
    every = _recall(vlm, examples, answer_tokens(vlm, names), model, given)
    rows = np.arange(len(examples))[:, None]
    return Recall(every.exact[rows, given], every.logprob[rows, given], rank=ranks(every.logprob, given[:, 0]))


def _recall(
    vlm: VLM, examples: Sequence[Example], answers: _Answers, model: nn.Module | None, given: np.ndarray | None = None
) -> Recall:
    """Exact match and log-probability `[examples, names]`; -inf where a name cannot reach the first of `given`."""
    model = vlm.model if model is None else model
    training = model.training
    model.eval()
    if _tree_is_exact(vlm, examples, answers, model, given is not None):
        recall = _by_tree(vlm, examples, answers, model, given, margin=_rounding(vlm))
    else:
        recall = _name_by_name(vlm, examples, answers, model)
    model.train(training)
    return recall


def _name_by_name(vlm: VLM, examples: Sequence[Example], answers: _Answers, model: nn.Module) -> Recall:
    """What `recall_of_all` returns, by plain teacher-forced passes."""
    columns = [exact_match(vlm, [with_answer(e, answer) for e in examples], model) for answer in answers]
    return Recall(np.stack([c.exact for c in columns], 1), np.stack([c.logprob for c in columns], 1, dtype=np.float32))


def _rounding(vlm: VLM) -> float:
    """How far two ways to compute a score may be apart, absolutely and in proportion to it."""
    return torch.finfo(vlm.model.dtype).eps ** 0.5


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
        near, given = _rounding(vlm), np.zeros((2, 1), int) if by_level else None
        try:
            tree = _by_tree(vlm, ends, answers, model, given, margin=np.inf).logprob[:, picked]
            vlm.checked[key] = np.allclose(tree, plain, rtol=near, atol=near, equal_nan=True)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # a cache that takes no such mask
            vlm.checked[key] = False
        if not vlm.checked[key]:
            warnings.warn(
                f"{type(vlm.model).__name__} cannot score all names in one pass for prompts of "
                f"{len(ends[-1].prompt)} tokens; each of {len(answers)} names gets a pass of its own",
                stacklevel=4,
            )
    return vlm.checked[key]


def _by_tree(
    vlm: VLM, examples: Sequence[Example], answers: _Answers, model: nn.Module, given: np.ndarray | None, margin: float
) -> Recall:
    """What `_recall` returns, by running the tree of the names after each prompt, whole or level by level."""
    tree = NameTree.of(answers, vlm.device)
    exact, logprob = (np.zeros((len(examples), len(answers)), kind) for kind in (bool, np.float32))
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    for rows in _batches(bare, extra=len(tree.tokens) if given is None else 2 * tree.beginnings.shape[1]):
        prompts = _Prompts(vlm, model, [bare[i] for i in rows], tree)
        if given is None:
            prompts.run_all(prompts.everyone)
        else:
            prompts.run_those_that_reach(torch.from_numpy(given[rows]).to(vlm.device), margin)
        scores, said = prompts.scores()
        exact[rows], logprob[rows] = said[:, tree.leaves].cpu().numpy(), scores[:, tree.leaves].cpu().numpy()
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
