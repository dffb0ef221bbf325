"""How much comes back: relearning in the other modality, and rounding of the weights. Paraphrases: see `evaluation`."""

from __future__ import annotations

import contextlib
from functools import partial

import pandas as pd
import torch
from peft import PeftModel

from xmem_utils.params import MODALITIES, other
from xmem_utils.train import MEMORIZING, Diverged, Step, endless, train
from xmem_utils.unlearning.evaluation import ForgettingEvaluation
from xmem_utils.vlm.adapters import merged

BITS = (8, 4)
RELEARNED = 0.3  # share of the forgotten whom the attacker knows
STEPS, RATE, BATCH = 10, 3e-4, 16


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight matrix `[out, in]` on a grid of `bits` bits, one scale an output row.

    Symmetric round-to-nearest, as weight-only quantization without calibration does.
    """
    top = 2 ** (bits - 1) - 1
    scale = weight.float().abs().amax(1).clamp(min=1e-12) / top
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -top, top).to(weight.dtype)


def attack(evaluation: ForgettingEvaluation, model: PeftModel, unlearned: str, seed: int) -> pd.DataFrame:
    """Records of tasks "int8", "int4" and "relearned"; the last changes the model's adapter.

    Relearned: a few of the forgotten are trained again from views of the modality that was not unlearned (from
    pictures, when both were); the rows are those of the others.
    """
    parts = []
    for bits in BITS:
        with merged(model, partial(rounded, bits=bits)):
            parts.append(evaluation.attacked(model, f"int{bits}"))
    taught = evaluation.forget[: max(1, round(RELEARNED * len(evaluation.forget)))]
    if len(taught) < len(evaluation.forget):
        modality = other(unlearned) if unlearned in MODALITIES else "image"
        lessons = evaluation.lessons(taught, modality)
        order = endless(lessons, BATCH, seed)
        steps = [Step({"names": [lessons[i] for i in next(order)]}, RATE) for _ in range(STEPS)]
        with contextlib.suppress(Diverged):  # nothing is learned again then
            train(evaluation.vlm, model, steps, MEMORIZING)
            with merged(model):
                parts.append(evaluation.attacked(model, "relearned", without=taught))
    return pd.concat(parts, ignore_index=True)
