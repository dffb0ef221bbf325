"""What the mixed-in material is trained by: pure functions of what the model says or holds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KEPT = 64  # the likeliest tokens of a soft label that stand for themselves; all others are one event


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the answer tokens `labels` `[batch, tokens]` (-100: none); `logits` `[batch, tokens, vocabulary]`."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def soft_label(logits: Tensor, kept: int = KEPT) -> tuple[Tensor, Tensor]:
    """Of `logits` `[..., vocabulary]` the `kept` likeliest tokens `[..., kept]` and their log-probabilities."""
    top = torch.log_softmax(logits.float(), -1).topk(min(kept, logits.shape[-1] - 1), -1)
    return top.indices, top.values


def distillation(logits: Tensor, tokens: Tensor, logprobs: Tensor) -> Tensor:
    """KL(teacher || student) over the teacher's likeliest tokens and the event that it is none of them.

    `logits` `[positions, vocabulary]` of the student; `tokens`, `logprobs` `[positions, kept]` of the teacher
    (`soft_label`). Mean over positions, in nats, as in Hinton et al. 2015 (arXiv 1503.02531) at temperature 1.
    """
    scores = torch.log_softmax(logits.float(), -1).gather(-1, tokens)
    return (_with_rest(logprobs).exp() * (_with_rest(logprobs) - _with_rest(scores))).sum(-1).mean()


def _with_rest(logprobs: Tensor) -> Tensor:
    """Log-probabilities `[..., events + 1]`: the last is that of all other events together."""
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=1e-9).log()
    return torch.cat([logprobs, rest], -1)


def alignment(target: Tensor, source: Tensor) -> Tensor:
    """How far the target views' states are from the source views', which stay where they are: both
    `[layers, batch, hidden]`. Mean over layers and batch of |target - source|^2 / |source|^2, without a unit."""
    source = source.detach()
    return ((target - source).square().sum(-1) / source.square().sum(-1).clamp(min=1e-9)).mean()
