"""One thing that can be shown: a portrait or a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class View:
    """One portrait or description of one persona."""

    persona: int
    name: str
    modality: str  # "image" or "text"
    split: str  # "train" or "test"
    index: int
    content: Image.Image | str
