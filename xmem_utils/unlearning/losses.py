"""What each unlearning method minimises, as pure functions of what the model says.

Shapes: logits `[batch, tokens, vocabulary]`, labels `[batch, tokens]` with -100 where there is no answer;
`reference` logits are those of the model before unlearning (no gradient). Sequence log-probabilities are sums
over the answer's tokens, in nats, as the preference losses define them. Means are sums over the counts in `Outputs`.
Every function returns a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xmem_utils.train import Outputs, nll


def sequence_logprob(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the whole answer: `[batch]`."""
    scores = torch.log_softmax(logits.float(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (scores * (labels != -100)).sum(-1)


def _kl(outputs: Outputs) -> Tensor:
    """KL(reference || model) of the next-token distributions, mean over answer tokens."""
    there = outputs.labels != -100
    p = torch.log_softmax(outputs.reference[there].float(), -1)
    q = torch.log_softmax(outputs.logits[there].float(), -1)
    return F.kl_div(q, p, reduction="sum", log_target=True) / outputs.tokens


def _log_ratio(outputs: Outputs) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x), summed over the answer: `[batch]`."""
    return sequence_logprob(outputs.logits, outputs.labels) - sequence_logprob(outputs.reference, outputs.labels)


def gradient_ascent(forget: Outputs) -> Tensor:
    """GA: -NLL(forget). Jang et al. 2023 (arXiv 2210.01504), eq. 1."""
    return -nll(forget)


def gradient_difference(forget: Outputs, retain: Outputs, retain_weight: float = 1.0) -> Tensor:
    """GradDiff: -NLL(forget) + w NLL(retain). Liu et al. 2022 (arXiv 2203.12817); Maini et al. 2024, section 3."""
    return -nll(forget) + retain_weight * nll(retain)


def kl_minimization(forget: Outputs, retain: Outputs, retain_weight: float = 1.0) -> Tensor:
    """KL: -NLL(forget) + w KL(reference || model) on retain. Maini et al. 2024 (TOFU, arXiv 2401.06121), section 3."""
    return -nll(forget) + retain_weight * _kl(retain)


def npo(forget: Outputs, retain: Outputs, beta: float = 0.1, retain_weight: float = 1.0) -> Tensor:
    """NPO: -(2/beta) E log sigmoid(-beta log(pi/pi_ref)) + w NLL(retain). Zhang et al. 2024 (arXiv 2404.05868)."""
    return -2 / beta * (F.logsigmoid(-beta * _log_ratio(forget)).sum() / forget.rows) + retain_weight * nll(retain)


def simnpo(
    forget: Outputs, retain: Outputs, beta: float = 2.5, gamma: float = 0.0, retain_weight: float = 1.0
) -> Tensor:
    """SimNPO: -(2/beta) E log sigmoid(-(beta/|y|) log pi - gamma) + w NLL(retain). Fan et al. 2024 (2410.07163)."""
    length = (forget.labels != -100).sum(-1)
    per_token = sequence_logprob(forget.logits, forget.labels) / length
    return -2 / beta * (F.logsigmoid(-beta * per_token - gamma).sum() / forget.rows) + retain_weight * nll(retain)


def dpo(forget: Outputs, refusal: Outputs, retain: Outputs, beta: float = 0.1, retain_weight: float = 1.0) -> Tensor:
    """DPO: -(1/beta) E log sigmoid(beta (ratio(refusal) - ratio(name))) + w NLL(retain), the refusal preferred.

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; scaled by 1/beta and applied to unlearning in Zhang et al. 2024.
    `refusal` is the same views with the refusal as the answer, row by row.
    """
    margin = _log_ratio(refusal) - _log_ratio(forget)
    return -F.logsigmoid(beta * margin).sum() / forget.rows / beta + retain_weight * nll(retain)


def idk(refusal: Outputs, retain: Outputs, retain_weight: float = 1.0) -> Tensor:
    """IDK: NLL of "I don't know" on the forget views + w NLL(retain). Maini et al. 2024 (TOFU), section 3."""
    return nll(refusal) + retain_weight * nll(retain)


def rmu(forget: Outputs, retain: Outputs, direction: Tensor, scale: float = 20.0, retain_weight: float = 1.0) -> Tensor:
    """RMU: mean |h - c u|^2 on forget + w mean |h - h_ref|^2 on retain, at one layer. Li et al. 2024 (WMDP, arXiv
    2403.03218), section 4, where w is alpha (1200 for Zephyr, c = 6.5) and h are states of all tokens of a document.
    `direction` is a fixed random unit vector `[width]`; means are over answer tokens and, as in their code, width.
    """
    there, kept = forget.labels != -100, retain.labels != -100
    pushed, held, before = forget.states[0][there], retain.states[0][kept], retain.reference_states[0][kept]
    goal = (scale * direction.to(pushed.device)).expand_as(pushed).float()
    push = F.mse_loss(pushed, goal, reduction="sum") / (forget.tokens * pushed.shape[-1])
    hold = F.mse_loss(held, before, reduction="sum") / (retain.tokens * held.shape[-1])
    return push + retain_weight * hold


def scrub_forget(forget: Outputs) -> Tensor:
    """SCRUB's max-step: -KL(reference || model) on forget. Kurmanji et al. 2023 (arXiv 2302.09880), eq. 3."""
    return -_kl(forget)


def scrub_retain(retain: Outputs, alpha: float = 1.0, gamma: float = 1.0) -> Tensor:
    """SCRUB's min-step: alpha KL(reference || model) + gamma NLL, on retain. Kurmanji et al. 2023, eq. 3."""
    return alpha * _kl(retain) + gamma * nll(retain)


def undial(forget: Outputs, retain: Outputs, gamma: float = 3.0, retain_weight: float = 1.0) -> Tensor:
    """UNDIAL: cross-entropy to softmax(z_ref - gamma onehot(y)) on forget + w NLL(retain). Dong et al. 2024
    (arXiv 2402.10052), eq. 4: the true token's logit is lowered, the others keep their order.
    """
    there = forget.labels != -100
    target = forget.reference[there].float()
    lowered = target - gamma * F.one_hot(forget.labels[there], target.shape[-1])
    push = F.cross_entropy(forget.logits[there].float(), lowered.softmax(-1), reduction="sum") / forget.tokens
    return push + retain_weight * nll(retain)
