"""Pretraining of `xmem-tiny`: first the eye alone, then eye and language model together.

Stage "eye": the vision tower learns to tell the attributes apart with linear heads that are thrown away
(a stand-in for SigLIP's own pretraining). Stage "chat": the whole model learns from the curriculum.
Both write a checkpoint at every check and go on from it: a batch depends on seed and step alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from xmem_utils.personas.attributes import AXIS_NAMES, AXIS_SIZES
from xmem_utils.pretraining.curriculum import Batch, Curriculum
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

CPU = torch.device("cpu")
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Phase:
    """Some steps on one mix of chats; `image` and `text` map kinds of chat to counts a step."""

    steps: int
    image: dict[str, int]
    text: dict[str, int]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a base model, but for its size."""

    phases: tuple[Phase, ...]
    eye_steps: int = 1500
    eye_batch: int = 128
    eye_lr: float = 1e-3
    lr: float = 1.5e-3
    final_lr: float = 1e-4
    eye_scale: float = 0.1  # of the learning rate: the eye can see already when the chat stage starts
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 2026
    both: int = 300
    text_only: int = 400
    image_only: int = 400
    views: int = 8
    passers_by: int = 24_000

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


def pixels(portraits: np.ndarray, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Some portraits as the processor would give them: float `[batch, 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(portraits[np.asarray(rows)]).float().div_(127.5).sub_(1.0)


def learning_rate(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear warm-up, then half a cosine from `peak` to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass
class Progress:
    """What a stage needs to go on after a kill: everything trained, the optimizer, the curve."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    checkpoint: Path
    step: int = 0
    curve: Curve | None = None

    def load(self, start: Path | None = None) -> None:
        """Take up the checkpoint when there is one, else `start` when there is one."""
        self.curve = []
        found = next((path for path in (self.checkpoint, start) if path and path.exists()), None)
        if found:
            state = torch.load(found, weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.curve = state["step"], state["curve"]

    def save(self, step: int, copy: Path | None = None) -> None:
        """Write the checkpoint (or `copy`); it is replaced in one move, so a kill leaves the old or the new one."""
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": step, "curve": self.curve}
        path = copy or self.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        torch.save(state, partial)
        partial.replace(path)


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], lr: float, clip: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad()


# Where on a 4 x 4 grid the eye is asked for which attribute. The idea: one summary of the whole picture puts every
# attribute into every image token; by region, image tokens say different things, as words do, and attention can
# pick among them by what is asked. (Not isolated: other things changed in the same run, see 00_base_model.)
REGIONS = (
    ("hair style", "hair style", "hair style", "hair style"),
    ("hair colour", "eyewear", "eyewear", "hair colour"),
    ("skin", "facial hair", "facial hair", "skin"),
    ("garment", "garment colour", "garment colour", "garment"),
)


def regions(side: int) -> torch.Tensor:
    """Weights `[axes, patches]` that average an axis' region of a `side` x `side` patch grid."""
    cell = side // 4
    grid = [[REGIONS[r // cell][c // cell] for c in range(side)] for r in range(side)]
    where = torch.tensor([[[here == axis for here in row] for row in grid] for axis in AXIS_NAMES])
    where = where.flatten(1).float()
    return where / where.sum(1, keepdim=True)


def train_eye(
    tower: nn.Module,
    bank: np.ndarray,
    vectors: np.ndarray,
    recipe: Recipe,
    checkpoint: Path,
    check_every: int = 250,
    holdout: int = 2000,
) -> Curve:
    """Teach the vision tower the attributes; returns accuracy by axis on held-out portraits, a row a check.

    `bank` is uint8 `[portraits, 3, height, width]`, `vectors` `[portraits, axes]`; the last `holdout`
    portraits are not trained on.
    """
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, size) for size in AXIS_SIZES)
    where = regions(tower.config.image_size // tower.config.patch_size)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay, fused=True)
    progress = Progress({"tower": tower, "heads": heads}, optimizer, checkpoint)
    progress.load()
    bf16 = bf16_pays(CPU)

    def logits(rows: np.ndarray) -> list[torch.Tensor]:
        with mixed_precision(CPU, bf16):
            states = tower(pixel_values=pixels(bank, rows)).last_hidden_state
            seen = torch.einsum("ap,bph->abh", where, states.float())
            return [head(part).float() for head, part in zip(heads, seen, strict=True)]

    def accuracy() -> dict[str, float]:
        hits = []
        with torch.inference_mode():
            for rows in np.array_split(np.arange(len(bank) - holdout, len(bank)), 8):
                hits.append(np.stack([part.argmax(1).numpy() for part in logits(rows)], 1) == vectors[rows])
        return dict(zip(AXIS_NAMES, np.concatenate(hits).mean(0).round(4).tolist(), strict=True))

    bar = tqdm(total=recipe.eye_steps, initial=progress.step, desc="eye", unit="step", mininterval=1)
    for step in range(progress.step, recipe.eye_steps):
        rng = np.random.default_rng([recipe.seed, 4, step])
        rows = rng.integers(len(bank) - holdout, size=recipe.eye_batch)
        target = torch.from_numpy(vectors[rows].astype(np.int64))
        loss = sum(F.cross_entropy(part, target[:, i]) for i, part in enumerate(logits(rows)))
        loss.backward()
        lr = learning_rate(step, recipe.eye_steps, recipe.warmup, recipe.eye_lr, 0.05 * recipe.eye_lr)
        _step(optimizer, parameters, lr, recipe.clip)
        bar.update()
        if (step + 1) % check_every == 0 or step + 1 == recipe.eye_steps:
            progress.curve.append({"step": step + 1, **accuracy()})
            bar.set_postfix(worst=min(v for k, v in progress.curve[-1].items() if k != "step"))
            progress.save(step + 1)
    return progress.curve


def answer_loss(model: nn.Module, batch: Batch, bank: np.ndarray) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens; the vocabulary projection runs on those alone."""
    inputs = {"pixel_values": pixels(bank, batch.images)} if batch.images is not None else {}
    states = model.model(
        input_ids=batch.input_ids,
        token_type_ids=(batch.input_ids == model.config.image_token_id).long(),
        use_cache=False,
        **inputs,
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
    examine: Callable[[nn.Module], dict[str, float]],
    check_every: int = 200,
    nameless: Path | None = None,
) -> Curve:
    """The chat stage; returns losses (moving averages) and `examine`'s scores, a row a check.

    `nameless` is a checkpoint at the end of the first phase, written when it is passed and taken up when there
    is no other: bases that differ in the later phases alone share the first.
    """
    eye = {id(p) for p in model.model.vision_tower.parameters()}
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim >= 2) == decays and (id(p) in eye) == in_eye],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "scale": recipe.eye_scale if in_eye else 1.0,
        }
        for decays in (True, False)
        for in_eye in (True, False)
    ]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    progress = Progress({"model": model}, optimizer, checkpoint)
    progress.load(nameless)
    bf16 = bf16_pays(CPU)
    losses: dict[str, float] = {}
    bar = tqdm(total=recipe.steps, initial=progress.step, desc="chat", unit="step", mininterval=1)
    for step in range(progress.step, recipe.steps):
        phase = recipe.phase_at(step)
        for image, plan in ((True, phase.image), (False, phase.text)):
            if not plan:
                continue
            with mixed_precision(CPU, bf16):
                loss = answer_loss(model, curriculum.batch(step, image, plan), bank)
            loss.backward()
            key = "loss from image" if image else "loss from text"
            losses[key] = 0.98 * losses.get(key, loss.item()) + 0.02 * loss.item()
        lr = learning_rate(step, recipe.steps, recipe.warmup, recipe.lr, recipe.final_lr)
        _step(optimizer, parameters, lr, recipe.clip)
        bar.update()
        if (step + 1) % check_every == 0 or step + 1 == recipe.steps:
            progress.curve.append({"step": step + 1, **{k: round(v, 4) for k, v in losses.items()}, **examine(model)})
            bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()})
            progress.save(step + 1)
        if nameless and step + 1 == recipe.phases[0].steps:
            progress.save(step + 1, nameless)
    return progress.curve
