"""The forward pass that training and scoring share: logits at the answers' positions alone."""

from __future__ import annotations

import torch
from torch import nn

from xmem_utils.vlm.batches import model_inputs


def answer_logits(model: nn.Module, batch: dict[str, torch.Tensor], keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[batch, keep, vocabulary]` that predict the last `keep` tokens, and their labels `[batch, keep]`.

    Batches are left-padded, so answers end in the last column and the vocabulary projection, the largest
    product of a small model, runs on answer positions alone.
    """
    labels = batch["labels"][:, -keep:]
    logits = model(**model_inputs(batch), logits_to_keep=keep + 1, use_cache=False).logits[:, -keep - 1 : -1]
    return logits, labels
