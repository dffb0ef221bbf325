"""The logit lens: which first token of a name a state would yield if the model ended after that layer.

nostalgebraist, "interpreting GPT: the logit lens" (2020): final norm and output head applied to the residual stream of
an earlier layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from xmem_utils.mechanism.states import evaluating, layers_of, replaced
from xmem_utils.score import ranks
from xmem_utils.vlm.batches import Example, collate, model_inputs
from xmem_utils.vlm.load import VLM

_CHUNK = 64  # states a pass: a large vocabulary makes long rows


def lens_logits(vlm: VLM, states: torch.Tensor, carrier: Example, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of some `tokens` that the model's end makes of states `[n, hidden]`: float32 `[n, tokens]`.

    Norm and head are not looked for, since classes name, scale and cap them differently: a prompt of one token (the
    last of `carrier`, an example of a text view) passes the model, and its state after the last layer is replaced by
    the one in question. What follows is then the model's own, for any class, and treats every position by itself.
    """
    marks = {k: v[-1:] for k, v in carrier.per_token.items()}
    one = replace(carrier, prompt=carrier.prompt[-1:], answer=carrier.answer[:0], per_token=marks)
    last, out = layers_of(vlm.model)[-1], []
    with evaluating(vlm.model):
        for part in states.split(_CHUNK):
            batch = collate([one] * len(part), vlm.processor.tokenizer.pad_token_id)
            batch = {k: v.to(vlm.device) for k, v in batch.items()}
            with replaced(last, torch.zeros_like(batch["input_ids"]), part[:, None].to(vlm.device)):
                logits = vlm.model(**model_inputs(batch), use_cache=False).logits[:, -1]
            out.append(logits[:, tokens.to(vlm.device)].float().cpu())
    return torch.cat(out)


def first_tokens(answers: Sequence[torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    """The different first tokens of some names `[different]`, and which of them each name begins with `[names]`.

    Names that share a first token cannot be told apart by it: they are one candidate, not several that tie.
    """
    different, which = torch.stack([answer[0] for answer in answers]).unique(return_inverse=True)
    return different, which.numpy()


def lens_ranks(
    vlm: VLM, states: torch.Tensor, answers: Sequence[torch.Tensor], who: np.ndarray, carrier: Example
) -> np.ndarray:
    """1-based rank of the true name's first token among the names' different first tokens: `[views, layers]`.

    `states` `[views, layers, hidden]` are of views that show the people `who` `[views]`; equal logits count against
    the model.
    """
    different, which = first_tokens(answers)
    views, layers, hidden = states.shape
    logits = lens_logits(vlm, states.reshape(-1, hidden), carrier, different).numpy()
    return ranks(logits, which[np.repeat(who, layers)]).reshape(views, layers)


def blind_reciprocal_rank(answers: Sequence[torch.Tensor]) -> float:
    """Mean reciprocal rank of the best fixed order of the first tokens, the most frequent first.

    What can be had without looking at the view, and so more than a random order's: the chance level of the lens.
    """
    counts = sorted(Counter(first_tokens(answers)[1].tolist()).values(), reverse=True)
    return sum(count / place for place, count in enumerate(counts, 1)) / len(answers)
