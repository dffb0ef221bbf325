"""What memorizing with a model will take: parameters, memory, steps, operations, time. Needs a config, no weights.

The model is built on the meta device, so parameters and their bytes are counted, not estimated. Activations,
operations and time are estimates; their formulas stand in `activation_bytes` and `operations`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median_high

import torch
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import AutoModelForImageTextToText, PretrainedConfig

from xmem_utils.params import Profile, shown
from xmem_utils.personas.dataset import PersonaSpec, build, to_views
from xmem_utils.train import Training, memorize
from xmem_utils.vlm.adapters import adapt, language_linears
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.folder import bounded, one_sentence
from xmem_utils.vlm.load import check_config, load_vlm, resolve_model

TEXT_TOKENS = 64  # template, question, name; with a description, a text view has about as many and no picture
ANSWER_TOKENS = 8  # of a name, end of turn included: the vocabulary projection runs on these alone


@dataclass(frozen=True)
class Plan:
    """Counts, bytes, floating-point operations and (where a throughput is known) seconds, for one condition."""

    parameters: int
    parameters_of_language_model: int
    lora_parameters: int
    memory: dict[str, int]  # bytes by what they hold; the allocator and the libraries come on top
    memory_bytes: int  # their sum
    sequence_tokens: int
    steps: int
    flops: float
    seconds: float | None


def config_of(model: str) -> PretrainedConfig:
    """The config of an embedded model, a folder, a config.json, or a Hub id in the local cache.

    Raises ValueError with a sentence when there is none, or none to build on; nothing is downloaded.
    """
    try:
        file = Path(model) if os.path.isfile(model) else Path(resolve_model(model)) / "config.json"
        if not file.parent.is_dir():
            file = Path(hf_hub_download(model, "config.json", local_files_only=True))
        if not file.is_file():
            raise FileNotFoundError(file)
    except OSError as error:
        command = f"hf download {model[:60]} config.json"
        raise ValueError(
            f"no config of {shown(model)} here: fetch it with `{command}`, or give a config.json"
        ) from error
    return check_config(file, model)[0]


def on_meta(config: PretrainedConfig) -> nn.Module:
    """The model with shapes and dtypes, without weights. Raises ValueError for sizes that no model has."""
    name = config.model_type
    with (
        one_sentence(f"transformers can build no model of this {name} config", "take the config of a real model"),
        bounded(name),
        torch.device("meta"),
    ):
        return AutoModelForImageTextToText.from_config(config)


def sequence_length(config: PretrainedConfig, text_tokens: int = TEXT_TOKENS) -> int:
    """Tokens of an image view with its question and name.

    Raises ValueError when the config does not say how many tokens a picture takes.
    """
    for name in ("mm_tokens_per_image", "image_seq_length"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name) + text_tokens
    raise ValueError(f"a {config.model_type} config does not say how many tokens a picture takes; give --tokens")


def activation_bytes(config: PretrainedConfig, model: nn.Module, tokens: int, checkpointing: bool) -> int:
    """Bytes kept for the backward pass of `tokens` (of all examples of a pass) through the language model.

    Counted as Korthikanti et al. (2022, arXiv 2205.05198, section 4.1) count, with what differs here: base weights
    are frozen, so a linear layer keeps its input for LoRA alone; the MLP is gated; fused attention keeps no
    tokens x tokens matrix and runs in float32 (`vlm.precision`); norms compute in float32. A layer of width h, MLP
    width f, query width q and key width k, with n norms of width h, keeps for each token

        2 (5 h + q + f)  inputs of LoRA      + 4 (2 q + 2 k)  attention: query, key, value, output
        + 2 * 3 f        the gated MLP       + 4 n h          inputs of the norms

    and 4 (q + k) more where queries and keys have norms of their own,
    bytes. With gradient checkpointing (their section 5, "full recomputation") every layer keeps its input, 2 h, and
    one layer at a time all of it. On float32 weights inputs and norms take up to twice as much.
    """
    text = config.get_text_config()
    h, f, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    width = getattr(text, "head_dim", None) or h // heads
    q, k = heads * width, (getattr(text, "num_key_value_heads", None) or heads) * width
    layers = text.num_hidden_layers
    first = [m for name, m in model.get_decoder().named_modules() if name.startswith("layers.0.")]
    norms = sum(_is_norm(m, h) for m in first)
    attention = 3 if any(_is_norm(m, width) for m in first) else 2
    layer = 2 * (5 * h + q + f) + 4 * attention * (q + k) + 2 * 3 * f + 4 * norms * h
    return tokens * (layers * 2 * h + layer if checkpointing else layers * layer)


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and weight is not None and weight.shape == (width,)


def operations(linear: int, lora: int, again: bool) -> int:
    """Floating-point operations of a training for each token.

    Kaplan et al. (2020, arXiv 2001.08361, section 2.1) count 2 operations a weight and token in the forward pass, and
    in the backward pass 2 for the activations' gradients and 2 for the weights'. Frozen weights need the first two,
    LoRA's all three: 4 `linear` + 6 `lora`, and 2 `linear` more when the forward pass runs `again` (gradient
    checkpointing). Attention scores, small at a few hundred tokens, and the vocabulary projection are left out.
    """
    return (6 if again else 4) * linear + 6 * lora


def plan(
    config: PretrainedConfig,
    profile: Profile,
    training: Training,
    processes: int = 1,
    tokens: int | None = None,
    tflops: float | None = None,
) -> Plan:
    """The plan of one condition: one source, one seed; epochs are the profile's. Memory is that of each process (DDP).

    `tokens` is the length of a view (default: as the config says); `tflops` what all processes reach together, in
    10^12 operations a second. LoRA is in float32 on 16-bit weights, as PEFT makes it. Raises ValueError when the
    config does not tell the length.
    """
    model = on_meta(config)
    length = tokens or sequence_length(config)
    memory: Counter[str] = Counter()
    for p in model.parameters():
        memory[f"weights, {str(p.dtype).removeprefix('torch.')}"] += p.nbytes
    linear = sum(model.get_submodule(name).weight.numel() for name in language_linears(model))
    language, total = (sum(p.numel() for p in part.parameters()) for part in (model.get_decoder(), model))
    together = -(-training.batch_size // (training.resources.accumulation * processes))  # examples in one pass
    activations = activation_bytes(config, model, together * length, training.resources.gradient_checkpointing)
    # of the answer's logits there are three in float32: themselves, their softmax, their gradient
    logits = together * ANSWER_TOKENS * config.get_text_config().vocab_size * 4 * 3
    with torch.device("meta"):
        trained = [p for p in adapt(model, training.rank).parameters() if p.requires_grad]
    lora = sum(p.numel() for p in trained)
    # AdamW: first and second moment
    memory["LoRA and its gradients"] = memory["optimizer"] = 2 * sum(p.nbytes for p in trained)
    memory["activations (estimate)"] = activations + logits
    views = profile.personas * profile.train_views
    vision = getattr(config, "vision_config", None)
    patches = (vision.image_size // vision.patch_size) ** 2 if hasattr(vision, "image_size") else 0
    # each picture passes the vision tower once, forward
    seeing = 2.0 * (total - language) * (views + profile.personas * profile.test_views) * patches
    a_token = operations(linear, lora, training.resources.gradient_checkpointing)
    flops = views * profile.epochs * length * a_token + seeing
    return Plan(
        parameters=total,
        parameters_of_language_model=language,
        lora_parameters=lora,
        memory=dict(memory),
        memory_bytes=memory.total(),
        sequence_tokens=length,
        steps=profile.epochs * -(-views // training.batch_size),
        flops=flops,
        seconds=flops / (tflops * 1e12) if tflops else None,
    )


def measured_seconds(model: str, training: Training) -> float:
    """Seconds of a training step (median of four, after two to warm up) on pictures of people drawn for it."""
    vlm = load_vlm(model, torch.accelerator.current_accelerator() or torch.device("cpu"))
    count = 6 * training.batch_size
    people = build(PersonaSpec(personas=-(-count // 8), seed=990, train_views=8, test_views=1))
    ends = [time.perf_counter()]

    def note(*step: object) -> None:
        ends.append(time.perf_counter())

    examples = encode(vlm, to_views(people, "train", "image")[:count])
    memorize(vlm, examples, replace(training, epochs=1, learning_rate=1e-4), note).unload()
    return median_high(b - a for a, b in pairwise(ends[2:]))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.2f} MiB"


def table(made: Plan) -> str:
    """The plan in words, a line each."""
    rows = {
        "parameters": f"{made.parameters:,} (language model {made.parameters_of_language_model:,})",
        "LoRA parameters": f"{made.lora_parameters:,}",
        **{what: _gib(size) for what, size in made.memory.items()},
        "memory, sum": _gib(made.memory_bytes),
        "tokens a view": f"{made.sequence_tokens}",
        "steps": f"{made.steps:,}",
        "operations (estimate)": f"{made.flops:.3g} FLOP",
        "training time": f"{made.seconds / 60:.1f} min" if made.seconds else "give --tflops or --measure",
    }
    return "\n".join(f"{name:<24} {value}" for name, value in rows.items())
