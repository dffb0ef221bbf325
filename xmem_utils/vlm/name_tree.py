"""Many names scored after one prompt: the prompt runs once, then nodes of the tree of the names against its cache."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.vlm.batches import Example, collate, model_inputs
from xmem_utils.vlm.load import VLM

# A batch holds about this many tokens: more pays little, costs memory and drives activations out of a core's cache.
BATCH_TOKENS = 4000


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


class Prompts:
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

    def scores(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each node's whole prefix its log-probability, whether greedy decoding writes it, and whether it does where
        nothing but the names may be written (of those that were followed). All `[batch, nodes]`.
        """
        parents = self.tree.parents.expand_as(self.steps)
        best = torch.full_like(self.steps, -torch.inf).scatter_reduce(1, parents, self.steps, "amax")  # of the children
        scores, exact, among = self.steps.clone(), self.greedy.clone(), self.steps >= best.gather(1, parents)
        scores[:, 0], exact[:, 0], among[:, 0] = 0, True, True
        for depth in range(1, self.tree.beginnings.shape[1] + 1):
            level = self.tree.depth == depth
            scores[:, level] += scores[:, self.tree.parents[level]]
            for said in (exact, among):
                said[:, level] &= said[:, self.tree.parents[level]]
        return scores, exact, among


def _next_position(positions: torch.Tensor | None, width: int, batch: int, device: torch.device) -> torch.Tensor:
    """Position `[batch, 1]` of the token after a prompt of `width` tokens, whose positions its class gave or not.

    With several axes (time, height, width of an image) text goes on from the furthest.
    """
    if positions is None:
        return torch.full((batch, 1), width, device=device)
    furthest = positions.amax(0) if positions.ndim == 3 else positions
    return furthest[:, -1:].expand(batch, 1) + 1
