"""The portraits pretraining sees: several of every figure, one each of many passers-by."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from xmem_utils.personas.attributes import AXIS_SIZES
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import Figures
from xmem_utils.vlm.tiny import IMAGE_SIZE

_BLOCK = 500


def bank_layout(
    figures: Figures, views: int, passers_by: int, seed: int, late: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Who is on which portrait: vectors `[portraits, axes]`, and figure views `[figures, views]`.

    The last `late` figures stand behind the passers-by, so that all portraits before them are the same
    whatever their number.
    """
    rng = np.random.default_rng([seed, 2])
    others = rng.integers(0, AXIS_SIZES, size=(passers_by, len(AXIS_SIZES)))
    people, early = np.repeat(figures.vectors, views, axis=0), (len(figures) - late) * views
    rows = np.arange(len(people))
    rows[early:] += passers_by
    return np.concatenate([people[:early], others, people[early:]]), rows.reshape(len(figures), views)


def _draw_block(vectors: np.ndarray, seed: int, block: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 3, block])
    return np.stack([np.asarray(draw(v, rng, None, IMAGE_SIZE)).transpose(2, 0, 1) for v in vectors])


def draw_bank(vectors: np.ndarray, seed: int, path: Path) -> np.ndarray:
    """Draw (or map, when `path` is there already) the portraits: uint8 `[portraits, 3, height, width]`."""
    shape = (len(vectors), 3, IMAGE_SIZE, IMAGE_SIZE)
    if path.exists():
        bank = np.load(path, mmap_mode="r")
        if bank.shape == shape:
            return bank
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    bank = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    starts = range(0, len(vectors), _BLOCK)
    # spawn, not fork: a forked child would inherit torch's threads in an unusable state
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_draw_block, vectors[s : s + _BLOCK], seed, s // _BLOCK) for s in starts]
        for start, job in tqdm(zip(starts, jobs, strict=True), total=len(jobs), desc="portraits", unit="block"):
            bank[start : start + _BLOCK] = job.result()
    bank.flush()
    partial.rename(path)
    return np.load(path, mmap_mode="r")
