"""Image views: DiceBear portraits whose identity parts follow the attribute vector.

Style "avataaars" by Pablo Stanley (free for personal and commercial use), drawn offline to SVG and
rasterised by LunaSVG. Every variant and probability is pinned: DiceBear decides nothing by itself.
"""

from __future__ import annotations

import io
import json
from functools import cache
from importlib.resources import files

import numpy as np
import pillow_lunasvg  # noqa: F401 - registers the SVG reader with Pillow
from dicebear import Avatar, Style
from PIL import Image

from xmem_utils.personas.attributes import POPULATION, Vector, values_of
from xmem_utils.personas.views import Split

NUISANCE: dict[str, list[str]] = POPULATION["nuisance"]  # values by DiceBear's option
ROTATION_DEGREES = 8
SCALE = (0.90, 1.02)
SHIFT_PERCENT = 4
EYEWEAR_COLOURS = {"goggles": "#e02838"}
EYEWEAR_DEFAULT = "#1d2326"


@cache
def _style() -> Style:
    return Style(json.loads(files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8")))


def _nuisance(rng: np.random.Generator, split: Split | None) -> dict[str, object]:
    """A draw of everything that is not identity, from the combinations that belong to `split`."""
    while True:
        picks = [int(rng.integers(len(variants))) for variants in NUISANCE.values()]
        if split is None or (sum(picks[:4]) % 4 == 0) == (split == "test"):
            break
    return {
        **{option: [variants[i]] for (option, variants), i in zip(NUISANCE.items(), picks, strict=True)},
        "rotate": round(float(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES)), 2),
        "scale": round(float(rng.uniform(*SCALE)), 3),
        "translateX": round(float(rng.uniform(-SHIFT_PERCENT, SHIFT_PERCENT)), 2),
        "translateY": round(float(rng.uniform(-SHIFT_PERCENT, SHIFT_PERCENT)), 2),
        "flip": ["none", "horizontal"][int(rng.integers(2))],
    }


def _identity(vector: Vector) -> dict[str, object]:
    value = values_of(vector)
    eyewear, beard = value["eyewear"], value["facial hair"]
    return {
        "topVariant": [value["hair style"].drawn],
        "topProbability": 100,
        "hairColor": [value["hair colour"].drawn],
        "hatColor": ["#65c9ff"],  # the headband's colour: pinned, it says nothing about identity
        "skinColor": [value["skin"].drawn],
        "clothesVariant": [value["garment"].drawn],
        "clothesColor": [value["garment colour"].drawn],
        "accessoriesProbability": 100 if eyewear.drawn else 0,
        "accessoriesVariant": [eyewear.drawn or "round"],
        "accessoriesColor": [EYEWEAR_COLOURS.get(eyewear.name, EYEWEAR_DEFAULT)],
        "facialHairProbability": 100 if beard.drawn else 0,
        "facialHairVariant": [beard.drawn or "beardLight"],
        "facialHairColor": [value["hair colour"].drawn],
        "noseVariant": ["default"],
    }


def draw(vector: Vector, rng: np.random.Generator, split: Split | None = "train", size: int = 64) -> Image.Image:
    """One RGB portrait, `size` x `size` pixels; `split=None` draws from all nuisance combinations."""
    options = {"seed": "", "size": size, **_identity(vector), **_nuisance(rng, split)}
    with Image.open(io.BytesIO(Avatar(_style(), options).to_string().encode())) as image:
        return image.convert("RGB")


def draw_many(
    vector: Vector, n: int, rng: np.random.Generator, split: Split | None, size: int = 64
) -> list[Image.Image]:
    """`n` portraits of one attribute vector."""
    return [draw(vector, rng, split, size) for _ in range(n)]
