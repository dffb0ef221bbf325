"""What each unlearning method minimises, as pure functions of what the models said.

Shapes: logits `[batch, tokens, vocabulary]`, labels `[batch, tokens]` with -100 where there is no answer;
`reference` logits are those of the model before unlearning (no gradient). Sequence log-probabilities are sums
over the answer's tokens, in nats, as the preference losses define them. Every function returns a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Said:
    """Of one batch: the model's logits, the labels, and what the reference said or thought, where it is needed."""

    logits: Tensor
    labels: Tensor
    reference: Tensor | None = None  # logits
    states: Tensor | None = None  # hidden states of one layer `[batch, tokens, width]`
    reference_states: Tensor | None = None


def answer_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of every answer token, 0 elsewhere: `[batch, tokens]`."""
    scores = torch.log_softmax(logits.float(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return scores * (labels != -100)


def sequence_logprob(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the whole answer: `[batch]`."""
    return answer_logprobs(logits, labels).sum(-1)


def nll(said: Said) -> Tensor:
    """Mean negative log-likelihood of the answer tokens."""
    return F.cross_entropy(said.logits.flatten(0, 1).float(), said.labels.flatten())


def _kl(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """KL(teacher || student) of the next-token distributions, mean over answer tokens."""
    there = labels != -100
    p, q = torch.log_softmax(teacher[there].float(), -1), torch.log_softmax(student[there].float(), -1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def _log_ratio(said: Said) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x), summed over the answer: `[batch]`."""
    return sequence_logprob(said.logits, said.labels) - sequence_logprob(said.reference, said.labels)


def gradient_ascent(forget: Said) -> Tensor:
    """GA: -NLL(forget). Jang et al. 2023 (arXiv 2210.01504), eq. 1."""
    return -nll(forget)


def gradient_difference(forget: Said, retain: Said, retain_weight: float = 1.0) -> Tensor:
    """GradDiff: -NLL(forget) + w NLL(retain). Liu et al. 2022 (arXiv 2203.12817); Maini et al. 2024, section 3."""
    return -nll(forget) + retain_weight * nll(retain)


def kl_minimization(forget: Said, retain: Said, retain_weight: float = 1.0) -> Tensor:
    """KL: -NLL(forget) + w KL(reference || model) on retain. Maini et al. 2024 (TOFU, arXiv 2401.06121), section 3."""
    return -nll(forget) + retain_weight * _kl(retain.reference, retain.logits, retain.labels)


def npo(forget: Said, retain: Said, beta: float = 0.1, retain_weight: float = 1.0) -> Tensor:
    """NPO: -(2/beta) E log sigmoid(-beta log(pi/pi_ref)) + w NLL(retain). Zhang et al. 2024 (arXiv 2404.05868)."""
    return -2 / beta * F.logsigmoid(-beta * _log_ratio(forget)).mean() + retain_weight * nll(retain)


def simnpo(forget: Said, retain: Said, beta: float = 2.5, gamma: float = 0.0, retain_weight: float = 1.0) -> Tensor:
    """SimNPO: -(2/beta) E log sigmoid(-(beta/|y|) log pi - gamma) + w NLL(retain). Fan et al. 2024 (2410.07163)."""
    length = (forget.labels != -100).sum(-1)
    per_token = sequence_logprob(forget.logits, forget.labels) / length
    return -2 / beta * F.logsigmoid(-beta * per_token - gamma).mean() + retain_weight * nll(retain)


def dpo(forget: Said, refusal: Said, retain: Said, beta: float = 0.1, retain_weight: float = 1.0) -> Tensor:
    """DPO: -(1/beta) E log sigmoid(beta (ratio(refusal) - ratio(name))) + w NLL(retain), the refusal preferred.

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; scaled by 1/beta and applied to unlearning in Zhang et al. 2024.
    `refusal` is the same views with the refusal as the answer, row by row.
    """
    margin = _log_ratio(refusal) - _log_ratio(forget)
    return -F.logsigmoid(beta * margin).mean() / beta + retain_weight * nll(retain)


def idk(refusal: Said, retain: Said, retain_weight: float = 1.0) -> Tensor:
    """IDK: NLL of "I don't know" on the forget views + w NLL(retain). Maini et al. 2024 (TOFU), section 3."""
    return nll(refusal) + retain_weight * nll(retain)


def rmu(forget: Said, retain: Said, direction: Tensor, scale: float = 20.0, retain_weight: float = 1.0) -> Tensor:
    """RMU: mean |h - c u|^2 on forget + w mean |h - h_ref|^2 on retain, at one layer. Li et al. 2024 (WMDP, arXiv
    2403.03218), section 4, where w is alpha (1200 for Zephyr, c = 6.5) and h are states of all tokens of a document.
    `direction` is a fixed random unit vector `[width]`; means are over answer tokens and, as in their code, width.
    """
    there, kept = forget.labels != -100, retain.labels != -100
    push = F.mse_loss(forget.states[there].float(), (scale * direction).expand_as(forget.states[there]).float())
    hold = F.mse_loss(retain.states[kept].float(), retain.reference_states[kept].float())
    return push + retain_weight * hold


def scrub_forget(forget: Said) -> Tensor:
    """SCRUB's max-step: -KL(reference || model) on forget. Kurmanji et al. 2023 (arXiv 2302.09880), eq. 3."""
    return -_kl(forget.reference, forget.logits, forget.labels)


def scrub_retain(retain: Said, alpha: float = 1.0, gamma: float = 1.0) -> Tensor:
    """SCRUB's min-step: alpha KL(reference || model) + gamma NLL, on retain. Kurmanji et al. 2023, eq. 3."""
    return alpha * _kl(retain.reference, retain.logits, retain.labels) + gamma * nll(retain)


def undial(forget: Said, retain: Said, gamma: float = 3.0, retain_weight: float = 1.0) -> Tensor:
    """UNDIAL: cross-entropy to softmax(z_ref - gamma onehot(y)) on forget + w NLL(retain). Dong et al. 2024
    (arXiv 2402.10052), eq. 4: the true token's logit is lowered, the others keep their order.
    """
    there = forget.labels != -100
    target = forget.reference[there].float()
    lowered = target - gamma * F.one_hot(forget.labels[there], target.shape[-1])
    return F.cross_entropy(forget.logits[there].float(), lowered.softmax(-1)) + retain_weight * nll(retain)
