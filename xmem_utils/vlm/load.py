"""Load a vision-language model from a folder or the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from xmem_utils.params import shown
from xmem_utils.paths import BASE_MODELS
from xmem_utils.vlm.adapters import language_linears
from xmem_utils.vlm.folder import (
    Refusal,
    bounded,
    check_loaded,
    check_settings,
    headers,
    one_sentence,
    read_config,
    read_json,
    weight_files,
)
from xmem_utils.vlm.precision import SDPA_FLOAT32
from xmem_utils.vlm.processors import load_processor, missing_package, takes_chat_template

# what is read of a Hub repository; weights in other formats than safetensors are not even downloaded
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py")
HUB_REPEATED = ("consolidated*", "original/*", "onnx/*")  # the same weights again, for other software
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


@dataclass
class VLM:
    """A model with its processor; `fingerprint` identifies the weights.

    `checked` keeps what was found out about the model's class by trying it (see `score.recall_of_all`).
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
    with contextlib.suppress(OSError, ValueError):  # too long for a path, NUL in it
        if name and (BASE_MODELS / name / "config.json").is_file():
            return str(BASE_MODELS / name)
        if name and Path(name).is_dir():
            return name
    with contextlib.suppress(HFValidationError):
        validate_repo_id(name)
        if name.count("/") == 1:
            return name
    known = ", ".join(sorted(p.parent.name for p in BASE_MODELS.glob("*/config.json"))) or "none yet"
    raise ValueError(
        f"unknown model {shown(name)}: expected an embedded model ({known}), an existing folder, "
        "or a Hub id such as 'google/gemma-3-4b-it'"
    )


def check_weights(folder: Path) -> str:
    """A fingerprint of config, weights and processor of a model folder: of what is read, not of what lies beside it.

    Raises what `weight_files` and `headers` raise.
    """
    files = weight_files(folder)
    headers(files)
    # what reads and words the prompt is part of a model's identity
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted({*folder.glob("*token*.json"), *folder.glob("*processor_config.json"), *folder.glob("*.jinja")}):
        digest.update(file.read_bytes())
    for file in files:
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


def check_config(file: Path, name: str, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, bool]:
    """The config in a config.json, and whether code that comes with the model will be run (with a warning).

    Raises ValueError for a file that cannot be read or cannot be true, for a model that takes no images, is
    quantized, is unknown to transformers, or needs code of its own that the user does not trust.
    """
    parts = [file.parent / f"{part}config.json" for part in ("processor_", "preprocessor_", "tokenizer_")]
    raw = [read_config(file), *(read_json(part) for part in parts if part.is_file())]
    auto = [part["auto_map"] for part in raw if isinstance(part.get("auto_map"), dict)]
    code = sorted({str(entry) for part in auto for entry in part.values()})
    kind = raw[0].get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not known and not code:
        raise Refusal(
            f"transformers {transformers.__version__} does not know the model_type {shown(kind)} of {shown(name)}; "
            "a newer version may"
        )
    if not known and not trust_remote_code:
        raise Refusal(
            f"{shown(name)} needs Python code that comes with it ({', '.join(code)[:120]}); read that code, then say "
            "load_vlm(..., trust_remote_code=True) if you want to run it"
        )
    if raw[0].get("quantization_config") or raw[0].get("transformers_weights"):
        raise Refusal(
            f"{shown(name)} is quantized or names weights of its own in config.json (quantization_config, "
            "transformers_weights), which is not supported; take the original model in 16 or 32 bit floating point"
        )
    remote = trust_remote_code and bool(code)
    if remote:
        warnings.warn(f"running Python code that comes with {name!r}: {', '.join(code)}", stacklevel=3)
    with one_sentence(f"transformers can make no config of {shown(str(file), 200)}", "fetch the file again"):
        source = file.parent if file.name == "config.json" else file
        config = AutoConfig.from_pretrained(source, trust_remote_code=remote, local_files_only=True)
    if known and not remote and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise Refusal(
            f"{shown(name)} is no vision-language model: transformers has no image-text-to-text class for its "
            f"model_type {shown(kind)}; take one that reads images, such as 'google/gemma-3-4b-it'"
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
    except Exception as error:  # tokenizers raises plain Exception
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


def check_template(processor: object, name: str) -> None:
    """Raise Refusal for a chat template that does not write a question about a text or a picture.

    Templates are programs; transformers runs them in Jinja's sandbox.
    """
    text = {"type": "text", "text": "?"}
    with one_sentence(f"the chat template of {shown(name)} does not work", "take that of the original model"):
        for content in ([text], [{"type": "image"}, text]):
            turn = [{"role": "user", "content": content}]
            if not processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False):
                raise ValueError("it writes nothing")


def _model(folder: Path, device: torch.device, remote: bool, name: str) -> nn.Module:
    stored = headers(weight_files(folder))
    # tied weights are made twice; room for what a class makes and does not store
    room = 4 * sum(size for _, size in stored.values()) + 2**20, 4 * len(stored) + 1000

    def load(attention: str | None) -> nn.Module:
        with bounded(name, *room):
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
                use_safetensors=True,
                attn_implementation=attention,
                trust_remote_code=remote,
                ignore_mismatched_sizes=True,  # they are in `info`, and refused
                output_loading_info=True,
            )
        check_loaded(model, info, stored, name)
        return model

    advice = "config.json and weights must be complete and of one model"
    with one_sentence(f"transformers cannot build {shown(name)} from its config and weights", advice):
        if device.type != "cpu":
            return load(None)  # transformers takes sdpa wherever a class allows it
        try:
            return load(SDPA_FLOAT32)
        except ValueError as error:  # language models with capped attention scores, say, have eager attention alone
            if "attention implementation" not in str(error):
                raise
            return load(None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report of wrong weights as a table: they are refused in a sentence."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


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
    check_settings(folder)
    config, remote = check_config(folder / "config.json", name, trust_remote_code)
    fingerprint = check_weights(folder) if local else f"{source}@{folder.name}"  # a commit names its weights
    with _quiet():
        processor = checked_processor(folder, config, name, remote)
        check_template(processor, name)
        model = _model(folder, device, remote, name)
    language_linears(model)  # refuse now what could not be adapted later
    words = getattr(processor.tokenizer, "vocab_size", 0)
    rows = getattr(model.get_input_embeddings(), "num_embeddings", words)
    if words > rows:
        raise Refusal(
            f"the tokenizer of {shown(name)} has {words} tokens and its model embeds {rows}: they are not of one "
            "model; fetch the folder again"
        )
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token  # padding is masked: any token does
    # what a saved adapter calls its base: nobody else has this machine's folders
    model.name_or_path = model.config._name_or_path = folder.resolve().name if local else source
    return VLM(model.to(device).eval(), processor, name, fingerprint)
