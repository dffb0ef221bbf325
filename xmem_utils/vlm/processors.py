"""Processors: loading one without its video half, and the size at which it wants a picture."""

from __future__ import annotations

import math

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

DEFAULT_SIDE = 448  # for processors that take any resolution
LARGEST_SIDE = 1024


def without_video(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor class for pictures and text alone.

    transformers' video processors need torchvision, their picture counterparts do not.
    """

    class StillsOnly(cls):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

    StillsOnly.__name__ = StillsOnly.__qualname__ = cls.__name__  # what a saved processor is named after
    return StillsOnly


def load_processor(source: str, config: PreTrainedConfig, trust_remote_code: bool = False) -> object:
    """The processor of a model folder; where torchvision is missing, one for pictures and text alone.

    Raises what transformers raises.
    """
    cls = PROCESSOR_MAPPING.get(type(config), None)
    if cls is None or trust_remote_code or is_torchvision_available() or "video_processor" not in cls.get_attributes():
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    return without_video(cls).from_pretrained(source)


def picture_side(processor: object) -> int:
    """Width and height, px, at which to draw a square picture for a processor.

    The size of the one square, crop or tile that the vision tower sees; `DEFAULT_SIDE` for a processor that
    keeps any resolution, or the largest square that it leaves as it is. Never above `LARGEST_SIDE`.
    """
    images = processor.image_processor
    size = dict(getattr(images, "size", None) or {})
    crop = dict(getattr(images, "crop_size", None) or {}) if getattr(images, "do_center_crop", False) else {}
    tile = dict(getattr(images, "max_image_size", None) or {})
    edges = (
        (tile.get("longest_edge"),),
        (crop.get("height"), crop.get("width")),
        (size.get("height"), size.get("width")),
    )
    for found in edges:
        if all(found):
            return min(*found, LARGEST_SIDE)
    longest = size.get("longest_edge") or DEFAULT_SIDE**2
    if getattr(images, "merge_size", None):  # processors that merge patches count pixels, not edges
        longest = math.isqrt(longest)
    return min(DEFAULT_SIDE, longest)
