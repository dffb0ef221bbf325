"""Pretraining of `xmem-tiny`: first the eye alone, then eye and language model together.

Stage "eye": the vision tower learns to tell the attributes apart with linear heads that are thrown away
(a stand-in for SigLIP's own pretraining). Stage "chat": the whole model learns from the curriculum.
Both checkpoint and resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from xmem_utils.base.curriculum import Batch, Curriculum
from xmem_utils.personas.attributes import AXIS_NAMES, AXIS_SIZES
from xmem_utils.vlm.precision import bf16_pays, mixed_precision


@dataclass(frozen=True)
class Phase:
    """Some steps on one mix of chats; `image` and `text` map kinds of chat to counts a step."""

    steps: int
    image: dict[str, int]
    text: dict[str, int]
    naming_attributes: int = 0


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a base model, but for its size."""

    eye_steps: int = 2000
    eye_batch: int = 128
    eye_lr: float = 1e-3
    phases: tuple[Phase, ...] = ()
    lr: float = 1.5e-3
    final_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 2026
    both: int = 2000
    text_only: int = 150
    image_only: int = 150
    views: int = 8
    passers_by: int = 24_000
    name_weight: float = field(default=1.0)

    @property
    def steps(self) -> int:
        """Steps of the chat stage."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that `step` falls into."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


def pixels(bank: np.ndarray, indices: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Portraits of the bank as the processor would give them: float `[batch, 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(bank[np.asarray(indices)]).float().div_(127.5).sub_(1.0)


def train_eye(
    tower: nn.Module, bank: np.ndarray, vectors: np.ndarray, recipe: Recipe, holdout: int = 2000
) -> list[dict[str, float]]:
    """Teach the vision tower the attributes; returns the held-out accuracy curve, one row a check.

    The last `holdout` portraits of the bank are not trained on.
    """
    head = nn.Linear(tower.config.hidden_size, sum(AXIS_SIZES))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.eye_lr, weight_decay=recipe.weight_decay, fused=True)
    bf16 = bf16_pays(torch.device("cpu"))
    curve = []

    def logits(indices):
        with mixed_precision(torch.device("cpu"), bf16):
            states = tower(pixel_values=pixels(bank, indices)).last_hidden_state
            return head(states.mean(1)).float().split(AXIS_SIZES, dim=1)

    def check(step):
        held = np.arange(len(bank) - holdout, len(bank))
        with torch.inference_mode():
            hits = np.concatenate([
                np.stack([part.argmax(1).numpy() for part in logits(chunk)], 1) == vectors[chunk]
                for chunk in np.array_split(held, 8)
            ])  # fmt: skip
        row = {"step": step, **dict(zip(AXIS_NAMES, hits.mean(0).round(4).tolist(), strict=True))}
        curve.append(row)
        tqdm.write(" ".join(f"{k}={v}" for k, v in row.items()))

    for step in tqdm(range(recipe.eye_steps), desc="eye"):
        for group in optimizer.param_groups:
            group["lr"] = recipe.eye_lr * _cosine(step, recipe.eye_steps, recipe.warmup, 0.05)
        rng = np.random.default_rng([recipe.seed, 4, step])
        chosen = rng.integers(len(bank) - holdout, size=recipe.eye_batch)
        target = torch.from_numpy(vectors[chosen].astype(np.int64))
        loss = sum(F.cross_entropy(part, target[:, i]) for i, part in enumerate(logits(chosen)))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 250 == 0 or step + 1 == recipe.eye_steps:
            check(step + 1)
    return curve


def _cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def answer_loss(model: nn.Module, batch: Batch, bank: np.ndarray) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens; the vocabulary projection runs on those alone."""
    inputs = {"pixel_values": pixels(bank, batch.images)} if batch.images is not None else {}
    token_types = (batch.input_ids == model.config.image_token_id).long()
    states = model.model(
        input_ids=batch.input_ids, token_type_ids=token_types, use_cache=False, **inputs
    ).last_hidden_state
    answered = batch.labels[:, 1:] != -100
    logits = model.lm_head(states[:, :-1][answered])
    return F.cross_entropy(logits.float(), batch.labels[:, 1:][answered])


def train_chat(
    model: nn.Module,
    curriculum: Curriculum,
    bank: np.ndarray,
    recipe: Recipe,
    checkpoint: Path,
    on_check=None,
    check_every: int = 250,
    stop_after: int | None = None,
) -> list[dict[str, float]]:
    """The chat stage; resumes from `checkpoint` when it exists. Returns the loss curve."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    start, curve = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, curve = state["step"], state["curve"]
    bf16 = bf16_pays(torch.device("cpu"))
    running: dict[str, float] = {}
    bar = tqdm(range(start, min(recipe.steps, stop_after or recipe.steps)), desc="chat", initial=start, total=recipe.steps)
    for step in bar:
        phase = recipe.phase_at(step)
        scale = _cosine(step, recipe.steps, recipe.warmup, recipe.final_lr / recipe.lr)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * scale
        for image, plan in ((True, phase.image), (False, phase.text)):
            if not plan:
                continue
            batch = curriculum.batch(step, image, plan, attributes=phase.naming_attributes)
            with mixed_precision(torch.device("cpu"), bf16):
                loss = answer_loss(model, batch, bank)
            loss.backward()
            key = "image loss" if image else "text loss"
            running[key] = 0.98 * running.get(key, loss.item()) + 0.02 * loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % check_every == 0 or step + 1 == recipe.steps:
            curve.append({"step": step + 1, **{k: round(v, 4) for k, v in running.items()}})
            if on_check is not None:
                curve[-1].update(on_check(model, step + 1))
            tqdm.write(" ".join(f"{k}={v}" for k, v in curve[-1].items()))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                     "step": step + 1, "curve": curve}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
    return curve
