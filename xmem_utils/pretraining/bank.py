"""The portraits pretraining sees: several of every public figure, one each of many passers-by."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import count, repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from xmem_utils.personas.attributes import AXIS_SIZES
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import PublicFigures
from xmem_utils.vlm.tiny import IMAGE_SIZE

_BLOCK = 500


def bank_layout(
    public_figures: PublicFigures, views: int, passers_by: int, seed: int, late: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Who is on which portrait: vectors `[portraits, axes]`, and the public figures' views `[people, views]`.

    The last `late` people stand behind the passers-by, so that all portraits before them are the same
    whatever their number.
    """
    rng = np.random.default_rng([seed, 2])
    others = rng.integers(0, AXIS_SIZES, size=(passers_by, len(AXIS_SIZES)))
    known, early = np.repeat(public_figures.vectors, views, axis=0), (len(public_figures) - late) * views
    rows = np.arange(len(known))
    rows[early:] += passers_by
    return np.concatenate([known[:early], others, known[early:]]), rows.reshape(len(public_figures), views)


def portraits_of(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A portrait of each attribute vector, as the vision tower takes them: uint8 `[n, 3, height, width]`."""
    return np.stack([np.asarray(draw(vector, rng, None, IMAGE_SIZE)).transpose(2, 0, 1) for vector in vectors])


def _draw_block(vectors: np.ndarray, seed: int, block: int) -> np.ndarray:
    return portraits_of(vectors, np.random.default_rng([seed, 3, block]))


def draw_bank(vectors: np.ndarray, seed: int, path: Path) -> np.ndarray:
    """Draw (or map, when `path` is there already) the portraits: uint8 `[portraits, 3, height, width]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # sizes and rungs of a seed share them
        if not path.exists():
            _draw(vectors, seed, path)
    return np.load(path, mmap_mode="r")


def _draw(vectors: np.ndarray, seed: int, path: Path) -> None:
    partial = path.with_suffix(".partial.npy")
    bank = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(vectors), 3, IMAGE_SIZE, IMAGE_SIZE))
    blocks = [vectors[start : start + _BLOCK] for start in range(0, len(vectors), _BLOCK)]
    # spawn, not fork: a forked child would inherit torch's threads in an unusable state
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        drawn = pool.map(_draw_block, blocks, repeat(seed), count())
        for k, portraits in enumerate(tqdm(drawn, total=len(blocks), desc="portraits", unit="block")):
            bank[k * _BLOCK : (k + 1) * _BLOCK] = portraits
    bank.flush()
    partial.rename(path)
