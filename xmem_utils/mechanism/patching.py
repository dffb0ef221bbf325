"""Activation patching: give the target run the source run's state after one layer, and see whether the name comes.

Interchange of activations between runs as a causal test: Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv
2202.05262). Two extents:

- the answer position alone. It decides the first token of the name; the tokens that follow are computed in the patched
  run and can read the view they follow anew. So the whole name comes only if that one state carries it.
- every position that predicts a token of the name, each with the state of the source run at the same place (under
  teacher forcing, of the same name). Does the target run say the name from here on? After the last layer that is the
  source run's own answer, so the curve ends at source recall by construction; what tells is how early it gets there.

The first token is the same under both, since no later position can reach back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from xmem_utils.mechanism.states import evaluating, in_batches, layers_of, name_columns, replaced
from xmem_utils.score import answer_logits
from xmem_utils.vlm.batches import Example
from xmem_utils.vlm.load import VLM


@dataclass(frozen=True)
class Patched:
    """Of each example `[n]`: is its answer said, which token comes first, and log-probability of the answer (nats).

    Teacher-forced: every answer token is the model's first choice exactly when greedy decoding yields the answer.
    """

    exact: np.ndarray
    first: np.ndarray
    logprob: np.ndarray


def patched_recall(
    vlm: VLM, examples: Sequence[Example], layer: int = 0, states: torch.Tensor | None = None
) -> Patched:
    """Recall of every example's answer when `states` stand in for what `layer` hands on at its first places.

    `states` is `[examples, places, hidden]`: one place is the answer position alone, and as many as the longest answer
    has tokens are all that predict it (see `states.name_states`). Layers count from 1, and 0 patches nothing.
    Raises ValueError for a layer that the model lacks.
    """
    layers, n = layers_of(vlm.model), len(examples)
    if not 0 <= layer <= len(layers):
        raise ValueError(f"layer {layer} cannot be patched: the model has layers 1 to {len(layers)}")
    found = Patched(np.zeros(n, bool), np.zeros(n, int), np.zeros(n))
    with evaluating(vlm.model):
        for rows, batch in in_batches(vlm, examples):
            patch = contextlib.nullcontext()
            if layer:
                columns = name_columns(batch, states.shape[1])
                patch = replaced(layers[layer - 1], columns, states[rows].to(vlm.device))
            with patch:
                logits, labels = answer_logits(vlm.model, batch, max(len(examples[i].answer) for i in rows))
            asked, said = labels != -100, logits.argmax(-1)
            found.exact[rows] = ((said == labels) | ~asked).all(1).cpu().numpy()
            found.first[rows] = said.gather(1, asked.int().argmax(1, keepdim=True))[:, 0].cpu().numpy()
            scores = torch.log_softmax(logits.float(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            found.logprob[rows] = (scores * asked).sum(1).cpu().numpy()
    return found
