"""LoRA on a language model, found by structure: nothing here knows a model by name."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from xmem_utils.vlm.folder import check_finite, headers, one_sentence, read_json


def language_linears(model: nn.Module) -> list[str]:
    """Full names of all linear layers inside the language model, found by structure.

    The vocabulary projection is left out, tied to the embeddings as it often is, and so are subclasses that compute
    something else (a router, say). Raises ValueError when the model has no decoder to put LoRA on, or none apart from
    its vision tower.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    # a class without a language model of its own answers with itself, vision tower included
    own = isinstance(decoder, nn.Module) and decoder is not model and decoder is not getattr(model, "base_model", None)
    inside = {id(module) for module in decoder.modules()} - {id(head)} if own else set()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and id(module) in inside
    ]
    if not names:
        raise ValueError(
            f"{type(model).__name__} shows no language model with linear layers to adapt: its get_decoder() must "
            "return one, apart from the vision tower"
        )
    return names


def adapt(model: nn.Module, rank: int) -> PeftModel:
    """Wrap a model with fresh LoRA on its language model; all base weights are frozen."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=language_linears(model), bias="none"
    )
    return get_peft_model(model, config)


def load_adapter(model: nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """A model with a stored adapter, as `PeftModel.from_pretrained` makes it, which passes over what does not fit.

    Raises FileNotFoundError for a folder without config or safetensors of an adapter, ValueError for an adapter that
    is no LoRA, lacks a tensor, has one more or one of another shape, sits elsewhere than on the language model, or
    holds NaN. The model is then as before.
    """
    fresh = "train it again, or take the model that it was trained on"
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if gone := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{folder} holds no adapter: it has no {gone[0]}")
    stored, wanted = headers(files[1:]), language_linears(model)
    with one_sentence(f"the adapter in {folder} does not fit {type(model).__name__}", fresh):
        read_json(files[0])
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig) or config.task_type is not None:
            raise ValueError("it is no LoRA, or one for a task of PEFT's own")
        config.inference_mode = not trainable
        adapted = PeftModel(model, config)
        try:
            with warnings.catch_warnings(action="ignore"):
                # ignored sizes: tensors of another shape are then among the missing
                found = adapted.load_adapter(str(folder), "default", trainable, ignore_mismatched_sizes=True)
            lost, more = sorted(found.missing_keys), sorted(found.unexpected_keys)
            if lost:
                raise ValueError(f"{len(lost)} tensors are missing in it or of another shape, such as {lost[0]}")
            if more:
                raise ValueError(f"{len(more)} of its {len(stored)} tensors have no place, such as {more[0]}")
            if {name for name, m in model.named_modules() if isinstance(m, LoraLayer)} != set(wanted):
                raise ValueError("it sits on other layers than the linear ones of the language model")
            own = ((name, p) for name, p in adapted.named_parameters() if "lora_" in name)
            check_finite(own, f"the weights of the adapter in {folder}")
        except BaseException:
            adapted.unload()
            raise
    return adapted


@contextlib.contextmanager
def merged(model: PeftModel, change: Callable[[Tensor], Tensor] = lambda weight: weight) -> Iterator[PeftModel]:
    """The model with its adapter merged into the weights, and these changed by `change`, for as long as the context is.

    Afterwards base weights and adapter are what they were, to the bit (unmerging by subtraction would round).
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            both = weight + layer.get_delta_weight("default").detach().to(weight.dtype)
            layer.get_base_layer().weight.data = change(both)
        with model.disable_adapter():
            yield model
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight


def for_evaluation(model: nn.Module | None) -> contextlib.AbstractContextManager:
    """The model with its adapter merged, one product in place of three, where that rounds nothing that matters.

    Left as they are: models without an adapter, weights of fewer bits than float32, and weights that several processes
    share out.
    """
    if not isinstance(model, PeftModel):
        return contextlib.nullcontext()
    whole = all(type(p.data) is Tensor and p.dtype == torch.float32 for p in model.parameters())
    return merged(model) if whole else contextlib.nullcontext()
