"""Processors: loading one and checking that it can ask questions, and the size at which it wants a picture."""

from __future__ import annotations

import inspect
import math
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from packaging.version import Version
from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from xmem_utils.params import shown
from xmem_utils.vlm.folder import one_sentence

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
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


def checked_processor(folder: Path, config: PreTrainedConfig, name: str, remote: bool) -> object:
    """The processor of a model folder; where torchvision is missing, one for pictures and text alone.

    Raises ValueError when there is none, or it lacks tokenizer, image processor, chat template or a package, or its
    chat template does not write a question about a text or a picture.
    """
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name!r} is an encoder-decoder ({config.model_type}), but the study reads prompt and answer in one "
            "sequence; take a model that is a decoder alone, such as 'google/gemma-3-4b-it'"
        )
    copy = (
        "copy tokenizer and processor files (tokenizer.json, preprocessor_config.json, ...) of the original model "
        "into its folder"
    )
    # transformers makes an empty tokenizer for a folder without one, and says nothing
    if not remote and not any((folder / file).is_file() for file in TOKENIZERS):
        raise ValueError(f"{name!r} has no tokenizer; {copy}")
    try:
        cls = PROCESSOR_MAPPING.get(type(config), None)
        if cls and not remote and not is_torchvision_available() and "video_processor" in cls.get_attributes():
            processor = without_video(cls).from_pretrained(str(folder))
        else:
            processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=remote)
    except Exception as error:  # tokenizers raises plain Exception
        if isinstance(error, ImportError) or "Missing optional dependen" in str(error):
            raise ValueError(f"the processor of {name!r} needs a missing package: {_missing_package(error)}") from error
        why = str(error).strip().splitlines()[:1]
        raise ValueError(f"{name!r} has no processor that transformers can load {why}; {copy}") from error
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise ValueError(f"the processor of {name!r} has no {part}; {copy}")
    start = type(processor).__init__
    if start is not ProcessorMixin.__init__ and "chat_template" not in inspect.signature(start).parameters:
        raise ValueError(
            f"the processor of {name!r} ({type(processor).__name__}) takes no chat template, so it cannot be asked "
            "questions; take a model made for chats, such as 'google/gemma-3-4b-it'"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"the processor of {name!r} has no chat template, so it cannot be asked questions; save one as "
            "chat_template.jinja in a local copy of the model's folder and give that folder as the model"
        )
    # templates are programs; transformers runs them in Jinja's sandbox
    text = {"type": "text", "text": "?"}
    with one_sentence(f"the chat template of {shown(name)} does not work", "take that of the original model"):
        for content in ([text], [{"type": "image"}, text]):
            turn = [{"role": "user", "content": content}]
            if not processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False):
                raise ValueError("it writes nothing")
    return processor


def _missing_package(error: Exception) -> str:
    """What to install, of an error that a processor met when it was loaded."""
    if "torchvision" not in str(error).lower():
        return " ".join(str(error).split())
    torch = Version(version("torch"))  # torchvision 0.15 came with torch 2.0, and so on
    return (
        f"install torchvision==0.{torch.minor + 15}.*, the release for torch {torch.base_version}, from where "
        "torch came (see pytorch.org/get-started)"
    )


def picture_side(processor: object) -> int:
    """Width and height, px, at which to draw a square picture for a processor.

    The size of the one square, crop or tile that the vision tower sees; `DEFAULT_SIDE` for a processor that
    keeps any resolution, or the largest square that it leaves as it is. Never above `LARGEST_SIDE`.
    """
    images = processor.image_processor
    tile, crop, size = (dict(getattr(images, key, None) or {}) for key in ("max_image_size", "crop_size", "size"))
    if tile.get("longest_edge"):
        return min(tile["longest_edge"], LARGEST_SIDE)
    for square in (crop if getattr(images, "do_center_crop", False) else {}, size):
        if square.get("height") and square.get("width"):
            return min(square["height"], square["width"], LARGEST_SIDE)
    longest = size.get("longest_edge") or DEFAULT_SIDE**2
    if getattr(images, "merge_size", None):  # processors that merge patches count pixels, not edges
        longest = math.isqrt(longest)
    return min(DEFAULT_SIDE, longest)
