"""Processors: loading one without its video half, and the size at which it wants a picture."""

from __future__ import annotations

import inspect
import math
from importlib.metadata import version
from types import SimpleNamespace

from packaging.version import Version
from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

DEFAULT_SIDE = 448  # for processors that take any resolution
LARGEST_SIDE = 1024


def without_video(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor class for pictures and text alone.

    transformers' video processors need torchvision, their picture counterparts do not.
    """
    parts = cls.get_attributes()
    stills = [name for name in parts if "video" not in name]

    class Stills(ProcessorMixin):  # stands between the class and the mixin, and keeps videos from the latter
        def __init__(self, *args: object, **kwargs: object) -> None:
            given = {**dict(zip(parts, args, strict=False)), **kwargs}
            super().__init__(**{name: value for name, value in given.items() if "video" not in name})

    class StillsOnly(cls, Stills):
        video_processor = SimpleNamespace(num_frames=None, fps=None)  # asked for when a prompt is worded

        @classmethod
        def get_attributes(cls) -> list[str]:
            return stills

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: object, **kwargs: object) -> list[object]:
            found = dict(zip(stills, super()._get_arguments_from_pretrained(*args, **kwargs), strict=True))
            return [found.get(name) for name in parts]  # a video processor has its place, whether needed or not

    StillsOnly.__name__ = StillsOnly.__qualname__ = cls.__name__  # what a saved processor is named after
    return StillsOnly


def takes_chat_template(processor: object) -> bool:
    """Whether a processor class keeps a chat template that it is given."""
    start = type(processor).__init__
    return start is ProcessorMixin.__init__ or "chat_template" in inspect.signature(start).parameters


def missing_package(error: ImportError) -> str:
    """What to install, of an error that a processor met when it was loaded."""
    if "torchvision" in str(error).lower():
        torch = Version(version("torch"))  # torchvision 0.15 came with torch 2.0, and so on
        return (
            f"install torchvision==0.{torch.minor + 15}.*, the release for torch {torch.base_version}, from where "
            "torch came (see pytorch.org/get-started)"
        )
    return " ".join(str(error).split())


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
