"""Train an adapter on named source views and some material, for a number of tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from xmem_utils.mitigation import losses
from xmem_utils.mitigation.data import Material
from xmem_utils.score import answer_logits
from xmem_utils.train import OneModalityBatches
from xmem_utils.vlm.batches import Example, collate, model_inputs
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

BATCH = 32  # examples a step: all of them source views, or one half of them material


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: `tokens` of prompts and answers that pass through the model, padding left out."""

    tokens: int
    learning_rate: float
    seed: int
    loss: str = "answers"  # by which the material is trained
    weight: float = 1.0  # of that loss, beside the cross-entropy of the names
    depth: float = 0.0  # of the layer whose states are drawn together, as a share of the depth; 0: of all


@dataclass(frozen=True)
class Cost:
    """What a training took: tokens that passed forward and back, those of the last step alone, and tokens that were
    only read (the views that states are drawn to)."""

    tokens: int
    last: int
    read: int
    steps: int
    seconds: float


def length(examples: Sequence[Example]) -> int:
    """Tokens of some examples, answers included."""
    return sum(len(e.prompt) + len(e.answer) for e in examples)


def rate(done: float) -> float:
    """The learning rate, as a share of its peak, when a share `done` of the tokens is spent: as `memorize` has it."""
    if done < 0.05:
        return 0.1 + 0.9 * done / 0.05
    return 0.1 + 0.9 * (1 + math.cos(math.pi * min(1.0, (done - 0.05) / 0.95))) / 2


def train(vlm: VLM, model: PeftModel, source: Sequence[Example], material: Material, recipe: Recipe) -> Cost:
    """Train the adapter of `model` in place until `recipe.tokens` have passed, less than one batch more.

    Each step takes named source views and, when there is material, as many examples of it. What passes forward alone
    is no training token.
    Raises FloatingPointError when the loss stops being finite.
    """
    torch.manual_seed(recipe.seed)
    started, spent, last, read, step = time.perf_counter(), 0, 0, 0, 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    share = BATCH // 2 if material.examples else BATCH
    named = _endless(source, share, recipe.seed)
    mixed = _endless(material.examples, share, recipe.seed + 1)
    model.train()
    while spent < recipe.tokens:
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate(spent / recipe.tokens)
        batch = [source[i] for i in next(named)]
        logits, labels = _answers(vlm, model, batch)
        loss = losses.cross_entropy(logits, labels)
        last = length(batch)
        if material.examples:
            rows = next(mixed)
            loss = loss + recipe.weight * _material_loss(vlm, model, material, rows, recipe)
            last += length([material.examples[i] for i in rows])
            read += length([material.partners[i] for i in rows]) if material.partners else 0
        spent, step = spent + last, step + 1
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss became {loss.item()} in step {step}; a lower learning rate may help")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    model.eval()
    return Cost(spent, last, read, step, time.perf_counter() - started)


def _material_loss(vlm: VLM, model: PeftModel, material: Material, rows: list[int], recipe: Recipe) -> torch.Tensor:
    batch = [material.examples[i] for i in rows]
    if recipe.loss == "states":
        partners = [material.partners[i] for i in rows]
        with torch.no_grad():  # they stay where they are
            goal = _states(vlm, model, partners, recipe.depth)
        return losses.alignment(_states(vlm, model, batch, recipe.depth), goal)
    logits, labels = _answers(vlm, model, batch)
    if recipe.loss == "answers":
        return losses.cross_entropy(logits, labels)
    tokens, logprobs = (
        torch.cat(parts).to(logits.device) for parts in zip(*(material.soft[i] for i in rows), strict=True)
    )
    return losses.distillation(logits[labels != -100], tokens, logprobs)


def _collated(vlm: VLM, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    batch = collate(examples, vlm.processor.tokenizer.pad_token_id, side="left")
    return {k: v.to(vlm.device) for k, v in batch.items()}


def _answers(vlm: VLM, model: PeftModel, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    with mixed_precision(vlm.device, bf16_pays(vlm.device)):
        return answer_logits(model, _collated(vlm, examples), max(len(e.answer) for e in examples))


def _states(vlm: VLM, model: PeftModel, examples: Sequence[Example], depth: float) -> torch.Tensor:
    """Hidden states `[layers, batch, hidden]` before the answer, after the layer at a depth or (0) after each; after
    the last, as the output head reads them."""
    with mixed_precision(vlm.device, bf16_pays(vlm.device)):
        out = model(
            **model_inputs(_collated(vlm, examples)), logits_to_keep=1, use_cache=False, output_hidden_states=True
        )
    layers = out.hidden_states[1:]  # the first are the embeddings
    if depth:
        layers = layers[max(1, round(depth * len(layers))) - 1 :][:1]
    return torch.stack([states[:, -1].float() for states in layers])


def _endless(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch."""
    batches = OneModalityBatches(examples, size, torch.Generator().manual_seed(seed))
    while True:
        yield from batches
