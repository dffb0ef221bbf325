"""LoRA on a language model, found by structure: nothing here knows a model by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


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
