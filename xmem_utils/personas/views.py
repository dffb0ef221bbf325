"""One thing that can be shown: a portrait or a description."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class View:
    """One portrait or description of one persona."""

    persona: int
    name: str
    modality: str  # "image" or "text"
    split: str  # "train" or "test"
    index: int
    content: Image.Image | str
