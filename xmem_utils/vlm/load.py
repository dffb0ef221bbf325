"""Load a vision-language model from a folder or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from xmem_utils.paths import BASE_MODELS
from xmem_utils.vlm.adapters import language_linears
from xmem_utils.vlm.precision import SDPA_FLOAT32
from xmem_utils.vlm.processors import load_processor, missing_package, takes_chat_template

# what is read of a Hub repository; weights in other formats than safetensors are not even downloaded
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py")
HUB_REPEATED = ("consolidated*", "original/*", "onnx/*")  # the same weights again, for other software
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass
class VLM:
    """A model with its processor; `fingerprint` identifies the weights.

    `checked` keeps what was found out about the model's class by trying it (see `recall.recall_of_all`).
    """

    model: nn.Module
    processor: object
    name: str
    fingerprint: str
    checked: dict[object, bool] = field(default_factory=dict, repr=False)

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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, complete.

    Raises FileNotFoundError with a sentence for a folder without config or weights, with pickled weights alone
    (they could run code when they are read), or without some of the files that its index names.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(f.name for kind in PICKLES for f in folder.glob(kind))
        raise FileNotFoundError(
            f"{folder} has a config but no .safetensors weights; only safetensors are read, never pickles"
            + (f" ({', '.join(pickled)}): convert them with from_pretrained and save_pretrained" if pickled else "")
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(wanted - {f.name for f in files}):
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named in its weight index")
    return files


def check_weights(folder: Path) -> str:
    """Open every safetensors file of a model folder; return a fingerprint of config, weights and processor.

    Raises FileNotFoundError as `weight_files` does, or ValueError for a file that is cut short.
    """
    files = weight_files(folder)
    # what reads and words the prompt is part of a model's identity
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted({*folder.glob("*token*.json"), *folder.glob("*processor_config.json"), *folder.glob("*.jinja")}):
        digest.update(file.read_bytes())
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


def hub_snapshot(name: str) -> Path:
    """The local folder of a Hub model, downloaded first when the Hub can be reached.

    Raises FileNotFoundError, saying how to get it, when it is not there.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_REPEATED))
    except (OSError, ValueError) as error:  # offline, unknown, gated without a token, an impossible name
        raise FileNotFoundError(
            f"the model {name!r} is not in the local Hugging Face cache and cannot be downloaded now "
            f"({type(error).__name__}); fetch it while online with `hf download {name}` (for a gated model, accept its "
            f"licence at https://huggingface.co/{name} and log in with `hf auth login` first)"
        ) from error


def check_config(folder: Path, name: str, trust_remote_code: bool) -> tuple[PreTrainedConfig, bool]:
    """The config of a model folder, and whether code that comes with the model will be run (with a warning).

    Raises ValueError for a model that takes no images, is unknown to transformers, or needs code of its own
    that the user does not trust.
    """
    parts = [folder / f"{part}config.json" for part in ("", "processor_", "preprocessor_", "tokenizer_")]
    raw = [json.loads(part.read_text()) if part.is_file() else {} for part in parts]
    code = sorted({str(entry) for part in raw for entry in part.get("auto_map", {}).values()})
    kind = raw[0].get("model_type")
    if kind not in CONFIG_MAPPING and "auto_map" not in raw[0]:
        raise ValueError(
            f"transformers {transformers.__version__} does not know the model_type {kind!r} of {name!r}; "
            "a newer version may"
        )
    if kind not in CONFIG_MAPPING and not trust_remote_code:
        raise ValueError(
            f"{name!r} needs Python code that comes with it ({', '.join(code)}); read that code, then say "
            "load_vlm(..., trust_remote_code=True) if you want to run it"
        )
    remote = trust_remote_code and bool(code)
    if remote:
        warnings.warn(f"running Python code that comes with {name!r}: {', '.join(code)}", stacklevel=3)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
    if kind in CONFIG_MAPPING and not remote and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{name!r} is no vision-language model: transformers has no image-text-to-text class for its "
            f"model_type {kind!r}; take one that reads images, such as 'google/gemma-3-4b-it'"
        )
    return config, remote


def checked_processor(folder: Path, config: PreTrainedConfig, name: str, remote: bool) -> object:
    """The processor of a model folder.

    Raises ValueError when there is none, or it lacks tokenizer, image processor, chat template or a package.
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
        processor = load_processor(str(folder), config, remote)
    except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ImportError) or "Missing optional dependen" in str(error):
            raise ValueError(f"the processor of {name!r} needs a missing package: {missing_package(error)}") from error
        why = str(error).strip().splitlines()[:1]
        raise ValueError(f"{name!r} has no processor that transformers can load {why}; {copy}") from error
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise ValueError(f"the processor of {name!r} has no {part}; {copy}")
    if not takes_chat_template(processor):
        raise ValueError(
            f"the processor of {name!r} ({type(processor).__name__}) takes no chat template, so it cannot be asked "
            "questions; take a model made for chats, such as 'google/gemma-3-4b-it'"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"the processor of {name!r} has no chat template, so it cannot be asked questions; save one as "
            "chat_template.jinja in a local copy of the model's folder and give that folder as the model"
        )
    return processor


def _model(folder: Path, device: torch.device, remote: bool) -> nn.Module:
    def load(attention: str | None) -> nn.Module:
        return AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            use_safetensors=True,
            attn_implementation=attention,
            trust_remote_code=remote,
        )

    if device.type != "cpu":
        return load(None)  # transformers takes sdpa wherever a class allows it
    try:
        return load(SDPA_FLOAT32)
    except ValueError as error:  # some language models, with capped attention scores say, have eager attention alone
        if "attention implementation" not in str(error):
            raise
        return load(None)


def default_device() -> torch.device:
    """`XMEM_DEVICE` where it is set, else the first CUDA device, else the CPU."""
    return torch.device(os.environ.get("XMEM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_vlm(name: str, device: str | torch.device | None = None, trust_remote_code: bool = False) -> VLM:
    """Load model and processor in eval mode. `name`: an embedded model, a folder, or a Hub id.

    `device` is `default_device()` unless given: float32 on the CPU, bf16 on a GPU. Only safetensors are read, and code
    that comes with a model is run on `trust_remote_code` alone, with a warning. Raises ValueError or
    FileNotFoundError with a sentence when the model is unknown, incomplete, damaged, or not of the kind that the
    study needs.
    """
    source, device = resolve_model(name), torch.device(device or default_device())
    local = Path(source).is_dir()
    folder = Path(source) if local else hub_snapshot(source)
    weight_files(folder)
    fingerprint = check_weights(folder) if local else f"{source}@{folder.name}"  # a commit names its weights
    config, remote = check_config(folder, name, trust_remote_code)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        processor = checked_processor(folder, config, name, remote)
        model = _model(folder, device, remote)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    language_linears(model)  # refuse now what could not be adapted later
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token  # padding is masked: any token does
    return VLM(model.to(device).eval(), processor, name, fingerprint)
