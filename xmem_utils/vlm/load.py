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
from transformers import PreTrainedConfig
from transformers.utils import logging

from xmem_utils.fingerprint import by_content
from xmem_utils.params import shown
from xmem_utils.paths import BASE_MODELS
from xmem_utils.replicates import families, seeds_of
from xmem_utils.vlm.adapters import language_linears
from xmem_utils.vlm.folder import (
    Refusal,
    Stored,
    bounded,
    check_loaded,
    check_settings,
    headers,
    one_sentence,
    read_config,
    read_json,
    weight_files,
)
from xmem_utils.vlm.precision import SDPA_FLOAT32, kept_in
from xmem_utils.vlm.processors import checked_processor

# what is read of a Hub repository; weights in other formats than safetensors are not even downloaded
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py")
HUB_REPEATED = ("consolidated*", "original/*", "onnx/*")  # the same weights again, for other software


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


@by_content
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
    if seeds := seeds_of(name):
        raise ValueError(f"{name} is a family of {len(seeds)} bases: name one of them, such as {name}-{seeds[0]}")
    known = ", ".join(families()) or "none yet"
    raise ValueError(
        f"unknown model {shown(name)}: expected an embedded model ({known}; one base: xmem-tiny-s-11), an existing "
        "folder, or a Hub id such as 'google/gemma-3-4b-it'"
    )


def fingerprint_of(folder: Path) -> str:
    """A fingerprint of config, weights and processor of a model folder: of what is read, not of what lies beside it."""
    digest = hashlib.sha256()
    # what reads and words the prompt is part of a model's identity
    words = {file for kind in ("*token*.json", "*processor_config.json", "*.jinja") for file in folder.glob(kind)}
    for file in (folder / "config.json", *sorted(words), *weight_files(folder)):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
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
    raw, parts = read_config(file), [file.with_name(f"{part}processor_config.json") for part in ("", "pre")]
    settings = [raw, *(read_json(part) for part in (*parts, file.with_name("tokenizer_config.json")) if part.is_file())]
    auto = [part["auto_map"] for part in settings if isinstance(part.get("auto_map"), dict)]
    code = sorted({str(entry) for part in auto for entry in part.values()})
    kind = raw.get("model_type")
    known = isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
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
    if raw.get("quantization_config") or raw.get("transformers_weights"):
        raise Refusal(
            f"{shown(name)} is quantized or names weights of its own in config.json (quantization_config, "
            "transformers_weights), which is not supported; take the original model in 16 or 32 bit floating point"
        )
    remote = trust_remote_code and bool(code)
    if remote:
        warnings.warn(f"running Python code that comes with {name!r}: {', '.join(code)}", stacklevel=3)
    with one_sentence(f"transformers can make no config of {shown(str(file), 200)}", "fetch the file again"):
        source = file.parent if file.name == "config.json" else file
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=remote, local_files_only=True)
    if known and not remote and type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise Refusal(
            f"{shown(name)} is no vision-language model: transformers has no image-text-to-text class for its "
            f"model_type {shown(kind)}; take one that reads images, such as 'google/gemma-3-4b-it'"
        )
    return config, remote


def _model(folder: Path, stored: Stored, device: torch.device, remote: bool, name: str) -> nn.Module:
    # tied weights are made twice; room for what a class makes and does not store
    room = 4 * sum(size for _, size in stored.values()) + 2**20, 4 * len(stored) + 1000

    def load(attention: str | None) -> nn.Module:
        with bounded(name, *room):
            model, info = transformers.AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=kept_in(device, sum(size for _, size in stored.values())),
                use_safetensors=True,
                attn_implementation=attention,  # None: sdpa wherever a class allows it
                trust_remote_code=remote,
                ignore_mismatched_sizes=True,  # they are in `info`, and refused
                output_loading_info=True,
            )
        check_loaded(model, info, stored, name)
        return model

    advice = "config.json and weights must be complete and of one model"
    with one_sentence(f"transformers cannot build {shown(name)} from its config and weights", advice):
        try:
            return load(SDPA_FLOAT32 if device.type == "cpu" else None)
        except ValueError as error:  # language models with capped attention scores, say, have eager attention alone
            if "attention implementation" not in str(error):
                raise
            return load(None)


def _contiguous(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The last positions of each row, side by side: torch copies a frozen matrix for every row of a batch with gaps."""
    return (given[0].contiguous(), *given[1:])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report of wrong weights as a table: they are refused in a sentence."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def default_device() -> torch.device:
    """`XMEM_DEVICE`, else the first CUDA device, else the CPU."""
    return torch.device(os.environ.get("XMEM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


@by_content
def load_vlm(name: str, device: str | torch.device | None = None, trust_remote_code: bool = False) -> VLM:
    """Load model and processor in eval mode. `name`: an embedded model, a folder, or a Hub id.

    bf16 on a GPU (`device`; see `default_device`), float32 on the CPU but for large models (`kept_in`). Only
    safetensors are read, and code that comes with a model is run on `trust_remote_code` alone, with a warning. Raises
    ValueError or FileNotFoundError with a sentence when the model is unknown, incomplete, damaged, or not of the kind
    that the study needs.
    """
    source, device = resolve_model(name), torch.device(device or default_device())
    local = Path(source).is_dir()
    folder = Path(source) if local else hub_snapshot(source)
    weights = weight_files(folder)
    check_settings(folder)
    config, remote = check_config(folder / "config.json", name, trust_remote_code)
    stored = headers(weights)
    fingerprint = fingerprint_of(folder) if local else f"{source}@{folder.name}"  # a commit names its weights
    with _quiet():
        processor = checked_processor(folder, config, name, remote)
        model = _model(folder, stored, device, remote, name)
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
    if head := model.get_output_embeddings():
        head.register_forward_pre_hook(_contiguous)
    # what a saved adapter calls its base: nobody else has this machine's folders
    model.name_or_path = model.config._name_or_path = folder.resolve().name if local else source
    return VLM(model.to(device).eval(), processor, name, fingerprint)
