"""Pretraining of `xmem-tiny`: first the eye alone, then eye and language model together.

Stage "eye": the vision tower learns to tell the attributes apart with linear heads that are thrown away
(a stand-in for SigLIP's own pretraining). Stage "chat": the whole model learns from the curriculum, its matrices by
Muon (Jordan et al. 2024, github.com/KellerJordan/Muon), the rest by AdamW.
Both write a checkpoint at every check and go on from it: a batch depends on seed and step alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from xmem_utils.params import TUNING_BASE
from xmem_utils.personas.attributes import AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.public_figures import FIGURES
from xmem_utils.pretraining.curriculum import Batch, Curriculum
from xmem_utils.vlm.lean import compiler
from xmem_utils.vlm.precision import bf16_pays, bf16_where_it_pays, mixed_precision

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
    lr: float = 2e-3
    final_lr: float = 1e-4
    eye_scale: float = 0.1  # of the learning rate: the eye can see already when the chat stage starts
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    parts: int = 2  # a batch passes in so many parts of similar lengths, so that little is padding
    figures: tuple[int, int, int] = FIGURES  # public figures of each of GROUPS
    seed: int = TUNING_BASE
    known: int | None = None  # a rung of the knowledge ladder: of the first group so many instead, all else being equal
    heard_of: int = 800  # people known by name and facts alone
    views: int = 8
    passers_by: int = 24_000


@dataclass(frozen=True)
class Checkpoints:
    """Where a stage keeps what it needs to go on after a kill, and how often it checks what was learned.

    `first_phase` is written at the end of a recipe's first phase, and taken up where there is no other: bases that
    differ in the later phases alone share the first.
    """

    path: Path
    every: int = 200  # steps
    first_phase: Path | None = None

    def load(self, parts: dict[str, Any]) -> tuple[int, Curve]:
        """Put what was kept into modules and optimizers; returns the steps done and the curve so far."""
        for path in (self.path, self.first_phase):
            if path and path.exists():
                state = torch.load(path, weights_only=True)
                for name, part in parts.items():
                    part.load_state_dict(state[name])
                return state["step"], state["curve"] if path == self.path else []  # others asked others
        return 0, []

    def save(self, path: Path, parts: dict[str, Any], step: int, curve: Curve) -> None:
        """Write one of the two files; it is replaced in one move, so a kill leaves the old or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save(states | {"step": step, "curve": curve}, partial)
        partial.replace(path)


def pixels(portraits: np.ndarray) -> torch.Tensor:
    """Portraits, uint8 `[batch, 3, height, width]`, as the processor would give them: float in [-1, 1]."""
    return torch.from_numpy(portraits).float().div_(127.5).sub_(1.0)


def learning_rates(steps: int, warmup: int, peak: float, final: float) -> list[float]:
    """Linear warm-up, then half a cosine from `peak` to `final`: a rate a step."""
    rising = [peak * (step + 1) / warmup for step in range(min(steps, warmup))]
    left = steps - warmup
    return rising + [final + (peak - final) * 0.5 * (1 + math.cos(math.pi * step / left)) for step in range(left)]


def descend(
    parts: dict[str, Any],
    rates: list[float],
    recipe: Recipe,
    kept: Checkpoints,
    backward: Callable[[int], None],
    check: Callable[[], dict[str, float]],
) -> Curve:
    """Train modules with the optimizers beside them, a step a rate; returns what `check` gave, a row a check.

    Raises ValueError where gradients stop being finite.
    """
    optimizers, steps = [part for part in parts.values() if isinstance(part, torch.optim.Optimizer)], len(rates)
    parameters = [p for part in parts.values() if isinstance(part, nn.Module) for p in part.parameters()]
    done, curve = kept.load(parts)
    bar = tqdm(total=steps, initial=done, desc=kept.path.stem, unit="step", mininterval=1)
    for step in range(done, steps):
        backward(step)
        if not nn.utils.clip_grad_norm_(parameters, recipe.clip).isfinite():
            raise ValueError(
                f"{kept.path}: in step {step + 1} gradients are no numbers any more, so nothing can be learned"
            )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rates[step] * group.get("scale", 1.0)
            with bf16_where_it_pays(CPU):
                optimizer.step()
            optimizer.zero_grad()
        bar.update()
        if (step + 1) % kept.every == 0 or step + 1 == steps:
            curve.append({"step": step + 1, **check()})
            bar.set_postfix(dict(islice(curve[-1].items(), 1, 3)))
            kept.save(kept.path, parts, step + 1, curve)
        if kept.first_phase and step + 1 == recipe.phases[0].steps:
            kept.save(kept.first_phase, parts, step + 1, curve)
    return curve


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
    grid = np.repeat(np.repeat(REGIONS, side // 4, axis=0), side // 4, axis=1).ravel()
    where = torch.tensor(np.array([grid == axis for axis in AXIS_NAMES])).float()
    return where / where.sum(1, keepdim=True)


def train_eye(
    tower: nn.Module, bank: np.ndarray, vectors: np.ndarray, recipe: Recipe, kept: Checkpoints, holdout: int = 2000
) -> Curve:
    """Teach the vision tower the attributes; returns accuracy by axis on held-out portraits, a row a check.

    `bank` is uint8 `[portraits, 3, height, width]`, `vectors` `[portraits, axes]`; the last `holdout`
    portraits are not trained on.
    """
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, size) for size in AXIS_SIZES)
    where = regions(tower.config.image_size // tower.config.patch_size)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay, fused=True)
    trained = len(bank) - holdout

    def logits(rows: np.ndarray) -> list[torch.Tensor]:
        with mixed_precision(CPU, bf16_pays(CPU)):
            states = tower(pixel_values=pixels(bank[rows])).last_hidden_state
            seen = torch.einsum("ap,bph->abh", where, states.float())
            return [head(part).float() for head, part in zip(heads, seen, strict=True)]

    def backward(step: int) -> None:
        rows = np.random.default_rng([recipe.seed, 4, step]).integers(trained, size=recipe.eye_batch)
        target = torch.from_numpy(vectors[rows].astype(np.int64))
        sum(F.cross_entropy(part, target[:, i]) for i, part in enumerate(logits(rows))).backward()

    @torch.inference_mode()
    def accuracy() -> dict[str, float]:
        hits = [
            np.stack([part.argmax(1).numpy() for part in logits(rows)], 1) == vectors[rows]
            for rows in np.array_split(np.arange(trained, len(bank)), 8)
        ]
        return dict(zip(AXIS_NAMES, np.concatenate(hits).mean(0).round(4).tolist(), strict=True))

    rates = learning_rates(recipe.eye_steps, recipe.warmup, recipe.eye_lr, 0.05 * recipe.eye_lr)
    return descend({"tower": tower, "heads": heads, "optimizer": optimizer}, rates, recipe, kept, backward, accuracy)


def answer_logits(model: nn.Module, batch: Batch, portraits: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[answer tokens, vocabulary]` of a batch and the tokens; the projection runs on those alone.

    `portraits` are uint8 `[batch, 3, height, width]`.
    """
    inputs = {} if portraits is None else {"pixel_values": pixels(portraits)}
    states = model.model(
        input_ids=batch.input_ids,
        token_type_ids=(batch.input_ids == model.config.image_token_id).long(),
        use_cache=False,
        **inputs,
    ).last_hidden_state
    answered = batch.labels[:, 1:] != -100
    return model.lm_head(states[:, :-1][answered]), batch.labels[:, 1:][answered]


def train_chat(
    model: nn.Module,
    curriculum: Curriculum,
    bank: np.ndarray,
    recipe: Recipe,
    kept: Checkpoints,
    evaluate: Callable[[nn.Module], dict[str, float]],
) -> Curve:
    """The chat stage; returns losses (moving averages) and `evaluate`'s scores, a row a check."""
    if compiler():
        # not the vision tower's: those of 64 channels (xs) have NaN in their gradients then (torch 2.13, bf16 autocast)
        layers = (b for m in model.model.language_model.modules() if isinstance(m, nn.ModuleList) for b in m)
        for layer in layers:
            layer.compile(dynamic=True)
    losses: dict[str, float] = {}
    plan = [phase for phase in recipe.phases for _ in range(phase.steps)]

    def backward(step: int) -> None:
        for image, chats in ((True, plan[step].image), (False, plan[step].text)):
            if chats:
                batch, total = curriculum.batch(step, image, chats), 0.0
                answers = (batch.labels != -100).sum()
                for part in in_parts(batch, recipe.parts):
                    with mixed_precision(CPU, bf16_pays(CPU)):
                        logits, labels = answer_logits(model, part, bank[part.images.numpy()] if image else None)
                        loss = F.cross_entropy(logits.float(), labels, reduction="sum") / answers
                    loss.backward()
                    total += loss.item()
                key = "loss from image" if image else "loss from text"
                losses[key] = 0.98 * losses.get(key, total) + 0.02 * total

    def check() -> dict[str, float]:
        return {**{key: round(loss, 4) for key, loss in losses.items()}, **evaluate(model)}

    rates = learning_rates(len(plan), recipe.warmup, recipe.lr, recipe.final_lr)
    return descend({"model": model} | optimizers(model, recipe), rates, recipe, kept, backward, check)


def optimizers(model: nn.Module, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of layers and projector; AdamW for embeddings, the patches' convolution and vectors."""
    eye = {id(p) for p in model.model.vision_tower.parameters()}
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    def groups(decay: float, chosen: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
        return [
            {"params": own, "weight_decay": decay, "scale": scale}
            for in_eye, scale in ((True, recipe.eye_scale), (False, 1.0))
            if (own := [p for p in model.parameters() if chosen(p) and (id(p) in eye) == in_eye])
        ]

    def matrix(p: nn.Parameter) -> bool:
        return p.ndim == 2 and id(p) not in looked_up

    rest = groups(recipe.weight_decay, lambda p: p.ndim >= 2 and not matrix(p)) + groups(0.0, lambda p: p.ndim < 2)
    # its updates as large as AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both
    muon = torch.optim.Muon(groups(recipe.weight_decay, matrix), adjust_lr_fn="match_rms_adamw")
    return {"muon": muon, "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.98), fused=True)}


def in_parts(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch in parts of similar lengths, each as long as its longest chat."""
    lengths = 1 + (batch.labels != -100).long().mul(torch.arange(batch.labels.shape[1])).max(1).values
    for rows in np.array_split(lengths.argsort(stable=True).numpy(), parts):
        longest = int(lengths[rows].max())
        images = None if batch.images is None else batch.images[rows]
        yield Batch(batch.input_ids[rows, :longest], batch.labels[rows, :longest], images)
