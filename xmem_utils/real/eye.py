"""How well each layer of the eye shows the attributes, at several sizes of picture: what `parts` cuts it by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.portraits import draw
from xmem_utils.pretraining.train import CPU, regions
from xmem_utils.real.parts import PATCH_SIZE, eye, pictures
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

SIDES = (112, 168, 224)  # pixels; their patches divide into the 4 x 4 regions
BLOCK = 250  # portraits that pass at once
RIDGE = 1e-3  # as a share of the mean eigenvalue of X'X


def strangers(n: int, seed: int) -> np.ndarray:
    """Attributes of people without a name, `[people, axes]`."""
    return np.random.default_rng([seed, 2]).integers(0, AXIS_SIZES, size=(n, len(AXES)))


def block(vectors: np.ndarray, start: int, seed: int, see: BaseImageProcessor) -> Tensor:
    """Portraits of a block of vectors, as the eye takes them: `[portraits, 3, height, width]`."""
    rng, side = np.random.default_rng([seed, 3, start]), see.size["height"]
    return see(
        [draw(vector, rng, None, side) for vector in vectors[start : start + BLOCK]], return_tensors="pt"
    ).pixel_values


def probed(portraits: int = 3000, held_out: int = 500, seed: int = 43) -> pd.DataFrame:
    """A row a side, layer and axis: accuracy of a linear probe on the mean of the axis' region, on held-out portraits.

    Ridge regression on one-hot values, in closed form.
    """
    vectors, rows = strangers(portraits, seed), []
    for side in SIDES:
        for layer, by_axis in enumerate(_states(vectors, side, seed), start=1):
            for axis, seen in enumerate(by_axis):
                hits = _hits(seen, torch.from_numpy(vectors[:, axis].astype(np.int64)), AXIS_SIZES[axis], held_out)
                rows.append({"side": side, "layer": layer, "axis": AXIS_NAMES[axis], "n": held_out, "accuracy": hits})
    return pd.DataFrame(rows)


@torch.inference_mode()
def _states(vectors: np.ndarray, side: int, seed: int) -> Tensor:
    """Mean state of each axis' region behind every layer, `[layers, axes, portraits, width]`."""
    tower, see, where, out = eye(side, layers=12), pictures(side), regions(side // PATCH_SIZE), []
    for start in tqdm(range(0, len(vectors), BLOCK), desc=f"{side} px", unit="block"):
        with mixed_precision(CPU, bf16_pays(CPU)):
            layers = tower(block(vectors, start, seed, see), output_hidden_states=True).hidden_states[1:]
        out.append(torch.stack([torch.einsum("ap,bph->abh", where, layer[:, 1:].float()) for layer in layers]))
    return torch.cat(out, 2)


def _hits(seen: Tensor, value: Tensor, values: int, held_out: int) -> float:
    """Share of the last `held_out` states `[portraits, width]` whose value a probe on the others tells."""
    x, y = seen.double(), F.one_hot(value, values).double()
    x, y = x - x[:-held_out].mean(0), y - y[:-held_out].mean(0)
    trained, told = x[:-held_out], y[:-held_out]
    ridge = RIDGE * trained.square().sum() * torch.eye(x.shape[1], dtype=x.dtype) / x.shape[1]
    weights = torch.linalg.solve(trained.T @ trained + ridge, trained.T @ told)
    return ((x[-held_out:] @ weights).argmax(1) == value[-held_out:]).double().mean().item()
