"""A training that was interrupted goes on: adapter, optimizer and schedule in one file.

The base model is not in it. Weights are whole, however the model was spread over processes, so a checkpoint of
several processes (DDP, FSDP) resumes on one, and the other way round.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from xmem_utils.processes import is_main


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rest: Mapping[str, object]) -> None:
    """Write a checkpoint, whole or not at all; `rest` (numbers, strings, tensors) goes with it.

    All processes must call; the main one writes.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    if is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        torch.save({**rest, "weights": weights, "moments": moments}, partial)
        os.replace(partial, path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, purpose: Mapping[str, object]) -> dict:
    """Put a checkpoint's weights and moments in place; returns the `rest` it was saved with.

    All processes must call; each reads the file. No code is unpickled. Raises ValueError when the file is damaged,
    or when its own `purpose` is another.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        message = f"checkpoint {path} is damaged or unreadable ({error}); delete it to train from the start"
        raise ValueError(message) from error
    for key, wanted in purpose.items():
        if found["purpose"].get(key) != wanted:
            raise ValueError(
                f"checkpoint {path} is of another training: {key} is {found['purpose'].get(key)!r} there and "
                f"{wanted!r} here; delete it to train from the start"
            )
    set_state_dict(
        model,
        optimizer,
        model_state_dict=found.pop("weights"),
        optim_state_dict=found.pop("moments"),
        # strict=False: the frozen weights are not in it
        options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False),
    )
    return found


def adapter_writer(model: PeftModel) -> Callable[[Path], None]:
    """What writes a trained adapter, as it is now, into a folder that `peft.PeftModel.from_pretrained` reads.

    All processes must call (FSDP spreads the weights, which are gathered); one can write alone.
    """
    weights = {
        name: p.full_tensor() if isinstance(p, DTensor) else p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    # the vocabulary is never resized; "auto" would look for the base on the Hub to compare
    return partial(model.save_pretrained, state_dict=weights, save_embedding_layers=False)
