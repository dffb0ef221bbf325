"""Activation patching: give the target run the source run's state after one layer, and see whether the name comes.

Interchange of activations between runs as a causal test: Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv
2202.05262). Only the answer position, the last token of the prompt, is patched. The tokens of the name that follow
read it in all later layers, but are themselves computed from the patched run: a patch after the last layer therefore
decides the first token of the name and nothing beyond it, and a whole name can come back only from a patch that is
early enough to be read by what follows and late enough to hold the identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.mechanism.states import evaluating, in_batches, layers_of, replaced
from xmem_utils.recall import answer_logits
from xmem_utils.vlm.batches import Example
from xmem_utils.vlm.load import VLM


@dataclass(frozen=True)
class Patched:
    """Of each example `[n]`: is its answer said, is its first token, and log-probability of the answer (nats).

    Teacher-forced: every answer token is the model's first choice exactly when greedy decoding yields the answer.
    """

    exact: np.ndarray
    first: np.ndarray
    logprob: np.ndarray


def patched_recall(
    vlm: VLM,
    examples: Sequence[Example],
    layer: int = 0,
    states: torch.Tensor | None = None,
    model: nn.Module | None = None,
) -> Patched:
    """Recall of every example's answer when the state at its answer position after `layer` is `states` instead.

    `states` is `[examples, hidden]`, one for each example; layers count from 1, and 0 patches nothing. `model`
    replaces the VLM's own. Raises ValueError for a layer that the model lacks.
    """
    model = vlm.model if model is None else model
    layers = layers_of(model)
    if not 0 <= layer <= len(layers):
        raise ValueError(f"layer {layer} cannot be patched: the model has layers 1 to {len(layers)}")
    exact, first, logprob = np.zeros(len(examples), bool), np.zeros(len(examples), bool), np.zeros(len(examples))
    with evaluating(model):
        for rows, batch in in_batches(vlm, examples):
            lengths = torch.tensor([len(examples[i].answer) for i in rows], device=vlm.device)
            keep, width = int(lengths.max()), batch["input_ids"].shape[1]
            patch = contextlib.nullcontext()
            if layer:  # batches are left-padded, so the answer position lies one before the answer from the end
                patch = replaced(layers[layer - 1], width - lengths - 1, states[rows].to(vlm.device))
            with patch:
                logits, labels = answer_logits(model, batch, keep)
            asked = labels != -100
            right = (logits.argmax(-1) == labels) | ~asked
            exact[rows] = right.all(1).cpu().numpy()
            first[rows] = right.gather(1, (keep - lengths)[:, None])[:, 0].cpu().numpy()
            scores = torch.log_softmax(logits.float(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            logprob[rows] = (scores * asked).sum(1).cpu().numpy()
    return Patched(exact, first, logprob)
