"""Every unlearning loss against a closed form, on logits whose probabilities can be worked out by hand."""

import math

import pytest
import torch

from xmem_utils.train import Outputs
from xmem_utils.unlearning.losses import (
    dpo,
    gradient_ascent,
    gradient_difference,
    idk,
    kl_minimization,
    npo,
    rmu,
    scrub_forget,
    scrub_retain,
    sequence_logprob,
    simnpo,
    undial,
)


def logits(*probabilities):
    """`[1, tokens, 3]`: each token's distribution, given as probabilities."""
    return torch.log(torch.tensor([probabilities]))


HALF, SURE, THIRD = (0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3)
TWO = torch.tensor([[0, 0, -100]])  # two answer tokens, both token 0, and one position without a loss
PADDED = logits(HALF, HALF, SURE)
BEFORE = logits(SURE, SURE, HALF)
FORGET = Outputs(PADDED, TWO, reference=BEFORE)
RETAIN = Outputs(logits(SURE, HALF, HALF), TWO, reference=logits(SURE, SURE, THIRD))
RETAIN_NLL = -(math.log(0.8) + math.log(0.5)) / 2
LOG_RATIO = 2 * math.log(0.5 / 0.8)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def same(tensor, number):
    assert tensor.ndim == 0
    assert tensor.item() == pytest.approx(number, rel=1e-5, abs=1e-6)


def test_a_sequence_is_scored_by_its_answer_tokens_alone():
    same(sequence_logprob(PADDED, TWO).sum(), 2 * math.log(0.5))


def test_gradient_ascent():
    same(gradient_ascent(FORGET), math.log(0.5))


def test_gradient_difference():
    same(gradient_difference(FORGET, RETAIN, retain_weight=2.0), math.log(0.5) + 2 * RETAIN_NLL)


def test_kl_minimization():
    same(kl_minimization(FORGET, RETAIN, retain_weight=3.0), math.log(0.5) + 3 * (0 + kl(SURE, HALF)) / 2)


def test_npo():
    beta = 0.5
    expected = -2 / beta * math.log(sigmoid(-beta * LOG_RATIO)) + RETAIN_NLL
    same(npo(FORGET, RETAIN, beta=beta), expected)


def test_npo_approaches_gradient_ascent_as_beta_vanishes():
    """Zhang et al. 2024, proposition 1: up to a constant, the loss tends to the log-ratio."""
    beta = 1e-4
    constant = 2 / beta * math.log(2)
    value = npo(Outputs(PADDED.double(), TWO, BEFORE.double()), RETAIN, beta=beta, retain_weight=0.0).item()
    assert value - constant == pytest.approx(LOG_RATIO, rel=2e-2)


def test_simnpo_divides_by_the_length():
    beta, gamma = 2.0, 0.3
    expected = -2 / beta * math.log(sigmoid(-beta * math.log(0.5) - gamma))
    same(simnpo(FORGET, RETAIN, beta=beta, gamma=gamma, retain_weight=0.0), expected)


def test_dpo_prefers_the_refusal():
    refusal = Outputs(logits(SURE, THIRD, SURE), torch.tensor([[0, -100, -100]]), reference=logits(HALF, THIRD, SURE))
    beta = 0.5
    margin = math.log(0.8 / 0.5) - LOG_RATIO
    same(dpo(FORGET, refusal, RETAIN, beta=beta), -math.log(sigmoid(beta * margin)) / beta + RETAIN_NLL)


def test_dpo_is_symmetric_in_its_preference():
    """Without the preference term it would not change when name and refusal change places."""
    other = Outputs(logits(SURE, THIRD, SURE), TWO, reference=logits(HALF, THIRD, SURE))
    a, b = (dpo(x, y, RETAIN, beta=1.0, retain_weight=0.0).item() for x, y in ((FORGET, other), (other, FORGET)))
    assert math.exp(-a) + math.exp(-b) == pytest.approx(1.0, rel=1e-5)


def test_idk():
    same(idk(Outputs(logits(SURE, SURE, HALF), TWO), RETAIN), -math.log(0.8) + RETAIN_NLL)


def test_rmu_at_answer_positions_alone():
    direction = torch.tensor([1.0, 0.0])
    forget = Outputs(PADDED, TWO, states=torch.tensor([[[[1.0, 1.0], [4.0, 0.0], [99.0, 99.0]]]]))
    retain = Outputs(PADDED, TWO, states=torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]]]),
                  reference_states=torch.zeros(1, 1, 3, 2))  # fmt: skip
    push = ((1 - 4) ** 2 + 1 + 0 + 0) / 4
    same(rmu(forget, retain, direction, scale=4.0, retain_weight=2.0), push + 2 * (1 + 4) / 4)


def test_scrub():
    same(scrub_forget(FORGET), -kl(SURE, HALF))
    same(scrub_retain(RETAIN, alpha=2.0, gamma=3.0), 2 * kl(SURE, HALF) / 2 + 3 * RETAIN_NLL)


def test_undial_lowers_the_true_token_and_keeps_the_order_of_the_others():
    gamma = math.log(4)
    lowered = [0.8 / 4, 0.1, 0.1]
    target = [x / sum(lowered) for x in lowered]
    expected = -sum(t * math.log(q) for t, q in zip(target, HALF, strict=True))
    same(undial(FORGET, RETAIN, gamma=gamma, retain_weight=0.0), expected)


def test_the_reference_gets_no_gradient_and_the_model_does():
    model = PADDED.clone().requires_grad_()
    npo(Outputs(model, TWO, BEFORE), RETAIN).backward()
    assert model.grad[0, :2].abs().sum() > 0
    assert model.grad[0, 2].abs().sum() == 0, "a position without an answer"
