"""The forward pass that training and scoring share: at the positions of the answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xmem_utils.vlm.batches import model_inputs


@dataclass(frozen=True)
class Answered:
    """What a model says where it predicts answers."""

    logits: Tensor  # [batch, answer tokens, vocabulary]
    labels: Tensor  # [batch, answer tokens], -100 where there is no answer
    states: Tensor | None = None  # hidden states [layers, batch, positions, width] there; at the last without answers


def forward(model: nn.Module, batch: dict[str, Tensor], keep: int, depth: float | None = None) -> Answered:
    """One pass over a left-padded batch whose last `keep` tokens hold the answers.

    Answers end in the last column, so the vocabulary projection, the largest product of a small model, runs on answer
    positions alone. With a `depth`, also hidden states after the layer at that share of the depth, or (0) after each;
    after the last, as the output head reads them.
    """
    inputs, wants_states = model_inputs(batch), depth is not None
    out = model(**inputs, logits_to_keep=keep + 1, use_cache=False, output_hidden_states=wants_states)
    states = None
    if wants_states:
        layers = out.hidden_states[1:]  # the first are the embeddings
        layers = layers[max(1, round(depth * len(layers))) - 1 :][:1] if depth else layers
        shown = slice(-keep - 1, -1) if keep else slice(-1, None)
        states = torch.stack([layer[:, shown].float() for layer in layers])
    return Answered(out.logits[:, -keep - 1 : -1], batch["labels"][:, batch["labels"].shape[1] - keep :], states)
