"""What the auxiliary data is trained by, beside the names: pure functions of what the model says or holds."""

from __future__ import annotations

import torch
from torch import Tensor

from xmem_utils.train import Outputs, nll

KEPT = 64  # the likeliest tokens of a soft label that stand for themselves; all others are one event


def answers(names: Outputs, auxiliary: Outputs, weight: float = 1.0) -> Tensor:
    """NLL(names) + w NLL(auxiliary)."""
    return nll(names) + weight * nll(auxiliary)


def soft_labels(names: Outputs, auxiliary: Outputs, weight: float = 1.0) -> Tensor:
    """NLL(names) + w distillation(auxiliary)."""
    return nll(names) + weight * distillation(auxiliary)


def aligned_states(names: Outputs, auxiliary: Outputs, partners: Outputs, weight: float = 1.0) -> Tensor:
    """NLL(names) + w alignment of the auxiliary views' states to those of the other views of their pairs."""
    return nll(names) + weight * alignment(auxiliary, partners)


def soft_label(logits: Tensor, kept: int = KEPT) -> tuple[Tensor, Tensor]:
    """Of `logits` `[..., vocabulary]` the `kept` likeliest tokens `[..., kept]` and their log-probabilities."""
    top = torch.log_softmax(logits.float(), -1).topk(min(kept, logits.shape[-1] - 1), -1)
    return top.indices, top.values


def distillation(outputs: Outputs) -> Tensor:
    """KL(teacher || student) over the teacher's likeliest tokens and the event that it is none of them.

    The teachers are those of the examples (`soft_label`). Mean over answer tokens, in nats, as in Hinton et al. 2015
    (arXiv 1503.02531) at temperature 1.
    """
    logits = outputs.logits[outputs.labels != -100]
    tokens, logprobs = (
        torch.cat(parts).to(logits.device) for parts in zip(*(e.teacher for e in outputs.examples), strict=True)
    )
    scores = torch.log_softmax(logits.float(), -1).gather(-1, tokens)
    kl = (_with_rest(logprobs).exp() * (_with_rest(logprobs) - _with_rest(scores))).sum(-1)
    return kl.sum() / outputs.tokens


def _with_rest(logprobs: Tensor) -> Tensor:
    """Log-probabilities `[..., events + 1]`: the last is that of all other events together."""
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=1e-9).log()
    return torch.cat([logprobs, rest], -1)


def alignment(target: Outputs, source: Outputs) -> Tensor:
    """How far the target views' states before the answer are from the source views', which stay where they are.

    Mean over layers and examples of |target - source|^2 / |source|^2, without a unit.
    """
    here, there = target.states[:, :, -1], source.states[:, :, -1].detach()
    distance = (here - there).square().sum(-1) / there.square().sum(-1).clamp(min=1e-9)
    return distance.sum() / (len(distance) * target.rows)
