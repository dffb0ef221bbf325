"""Load a vision-language model from a folder or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from xmem_utils.paths import BASE_MODELS
from xmem_utils.vlm.precision import SDPA_FLOAT32


@dataclass
class VLM:
    """A model with its processor; `fingerprint` identifies the weights."""

    model: nn.Module
    processor: object
    name: str
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device


def resolve_model(name: str) -> str:
    """A folder for an embedded model's name or an existing folder; a Hub id (owner/name) as it is.

    Raises ValueError, naming the known models, for anything else.
    """
    embedded = BASE_MODELS / name
    if (embedded / "config.json").is_file():
        return str(embedded)
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    known = ", ".join(sorted(p.parent.name for p in BASE_MODELS.glob("*/config.json"))) or "none yet"
    raise ValueError(
        f"unknown model {name!r}: expected an embedded model ({known}), an existing folder, "
        "or a Hub id such as 'google/gemma-3-4b-it'"
    )


def check_weights(folder: Path) -> str:
    """Open every safetensors file of a model folder; return a fingerprint of config and weights.

    Raises FileNotFoundError or ValueError with a sentence for a folder without config or weights, or
    with a file that is cut short.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has a config but no .safetensors weights; only safetensors are read, never pickles"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(wanted - {f.name for f in files}):
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named in its weight index")
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is damaged or cut short ({error}); restore it, e.g. with git or by downloading again"
            ) from error
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def load_vlm(name: str, device: str | torch.device = "cpu") -> VLM:
    """Load model and processor in eval mode. `name`: an embedded model, a folder, or a Hub id.

    Remote code is never run and only safetensors are read. Raises ValueError or FileNotFoundError with a
    sentence when the model is unknown, incomplete or damaged.
    """
    source = resolve_model(name)
    local = Path(source).is_dir()
    fingerprint = check_weights(Path(source)) if local else source
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype="auto", use_safetensors=True, attn_implementation=SDPA_FLOAT32
        )
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    if not local:
        fingerprint = f"{source}@{getattr(model.config, '_commit_hash', None)}"
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"the processor of {name!r} has no chat template, so it cannot be asked questions")
    return VLM(model.to(device).eval(), processor, name, fingerprint)
