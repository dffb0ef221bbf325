"""What joins eye and language model, first stage: image tokens are drawn to the words for what they show.

No language model takes part: the target of a token is the input embedding of the attribute that its region of the
picture is asked for (`pretraining.train.REGIONS`). What frozen patches hold is computed once and kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from xmem_utils.personas.attributes import AXES, AXIS_NAMES
from xmem_utils.pretraining.train import CPU, Checkpoints, Curve, Recipe, descend, learning_rates, regions
from xmem_utils.real.eye import BLOCK, block
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

SIDE = 4  # image tokens a side
TEMPERATURE = 0.05  # of the cosine with each value's word


def patches(vlm: VLM, vectors: np.ndarray, seed: int, folder: Path) -> np.ndarray:
    """What the eye makes of a portrait of each vector: float16 `[people, patches, width]`; kept, block by block."""
    folder.mkdir(parents=True, exist_ok=True)
    out, tower = [], vlm.model.model.vision_tower
    for start in tqdm(range(0, len(vectors), BLOCK), desc="eye", unit="block"):
        if not (file := folder / f"{start}.npy").exists():
            with torch.inference_mode(), mixed_precision(CPU, bf16_pays(CPU)):
                pixels = block(vectors, start, seed, vlm.processor.image_processor)
                states = tower(pixels, output_hidden_states=True).hidden_states[-1]
            partial = file.with_suffix(".partial.npy")
            np.save(partial, states[:, 1:].half().numpy())
            partial.rename(file)
        out.append(np.load(file))
    return np.concatenate(out)


def words(vlm: VLM) -> list[Tensor]:
    """For each axis the mean input embedding of every value's tokens, `[values, width]`."""
    embed = vlm.model.get_input_embeddings().weight.detach()

    def word(name: str) -> Tensor:
        return embed[vlm.processor.tokenizer(f" {name}", add_special_tokens=False).input_ids].mean(0)

    return [torch.stack([word(value.name) for value in values]) for values in AXES.values()]


def train_projector(
    vlm: VLM, states: np.ndarray, vectors: np.ndarray, recipe: Recipe, kept: Checkpoints, holdout: int = 500
) -> Curve:
    """Teach the projector the words; returns accuracy by axis on the last `holdout` portraits, a row a check.

    A token's loss is the cross-entropy of its cosines with the axis' words, and its distance from the right one in
    squares of their mean length.
    """
    projector, targets = vlm.model.model.multi_modal_projector, words(vlm)
    length = torch.cat(targets).norm(dim=1).mean()
    where = regions(SIDE)
    trained = len(states) - holdout

    def tokens(rows: np.ndarray) -> Tensor:
        with mixed_precision(CPU, bf16_pays(CPU)):
            return projector(torch.from_numpy(states[rows]).float()).flatten(1, 2).float()

    def cosines(made: Tensor, axis: int) -> Tensor:
        own = made[:, where[axis] > 0]
        return F.normalize(own, dim=-1) @ F.normalize(targets[axis], dim=-1).T

    def backward(step: int) -> None:
        rows = np.random.default_rng([recipe.seed, 4, step]).integers(trained, size=recipe.eye_batch)
        made, loss = tokens(rows), torch.zeros(())
        for axis in range(len(AXES)):
            value = torch.from_numpy(vectors[rows, axis].astype(np.int64))[:, None]
            cosine = cosines(made, axis)
            loss = loss + F.cross_entropy(cosine.flatten(0, 1) / TEMPERATURE, value.expand(cosine.shape[:2]).flatten())
            loss = loss + ((made[:, where[axis] > 0] - targets[axis][value]) / length).square().sum(-1).mean()
        loss.backward()

    @torch.inference_mode()
    def accuracy() -> dict[str, float]:
        rows = np.arange(trained, len(states))
        made = tokens(rows)
        best = np.stack([cosines(made, axis).mean(1).argmax(1).numpy() for axis in range(len(AXES))], 1)
        return dict(zip(AXIS_NAMES, (best == vectors[rows]).mean(0).round(4).tolist(), strict=True))

    parameters = list(projector.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay, fused=True)
    rates = learning_rates(recipe.eye_steps, recipe.warmup, recipe.eye_lr, 0.05 * recipe.eye_lr)
    return descend({"projector": projector, "optimizer": optimizer}, rates, recipe, kept, backward, accuracy)
