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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from xmem_utils.mechanism.states import evaluating, in_batches, layers_of, name_columns, recorded, repeated, replaced
from xmem_utils.vlm.batches import Example
from xmem_utils.vlm.forward import Answered, forward
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
    vlm: VLM, examples: Sequence[Example], patches: Sequence[tuple[int, torch.Tensor]] = ()
) -> list[Patched]:
    """Recall of every example's answer: without a patch, and with each of `patches`.

    A patch is a layer, counted from 1, and the states `[examples, places, hidden]` that stand in for what it hands on:
    one place is the answer position alone, and as many as the longest answer has tokens are all that predict it (see
    `states.name_states`). Up to its layer a patched run is the run without a patch, and not computed again.
    Raises ValueError for a layer that the model lacks.
    """
    layers, n = layers_of(vlm.model), len(examples)
    if lacking := [layer for layer, _ in patches if not 1 <= layer <= len(layers)]:
        raise ValueError(f"layer {lacking[0]} cannot be patched: the model has layers 1 to {len(layers)}")
    found = [Patched(np.zeros(n, bool), np.zeros(n, int), np.zeros(n)) for _ in (None, *patches)]
    with evaluating(vlm.model):
        for rows, batch in in_batches(vlm, examples):
            keep = max(len(examples[i].answer) for i in rows)
            with recorded(layers) as outputs:
                _note(found[0], rows, forward(vlm.model, batch, keep))
            for own, (layer, states) in zip(found[1:], patches, strict=True):
                patch = replaced(layers[layer - 1], name_columns(batch, states.shape[1]), states[rows].to(vlm.device))
                with patch, repeated(layers[:layer], outputs[:layer]):
                    _note(own, rows, forward(vlm.model, batch, keep))
    return found


def _note(found: Patched, rows: list[int], answered: Answered) -> None:
    logits, labels = answered.logits, answered.labels
    asked, said = labels != -100, logits.argmax(-1)
    found.exact[rows] = ((said == labels) | ~asked).all(1).cpu().numpy()
    found.first[rows] = said.gather(1, asked.int().argmax(1, keepdim=True))[:, 0].cpu().numpy()
    scores = torch.log_softmax(logits.float(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    found.logprob[rows] = (scores * asked).sum(1).cpu().numpy()
