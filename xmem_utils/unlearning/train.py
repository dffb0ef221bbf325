"""Make a model unlearn: LoRA on top of what has memorized, one loss of the table of methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from xmem_utils.train import OneModalityBatches, Training, memorize
from xmem_utils.unlearning.losses import Said, nll
from xmem_utils.unlearning.methods import Method
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import Example, collate, model_inputs
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

BATCH = 16  # views of each kind a step
# The layer that RMU steers, as a share of the depth. The paper steers an early one; in the embedded model the states at
# half of the depth hardly tell people apart yet, and on a tuning seed the retained went with the forgotten.
STATES_AT = 0.8


@dataclass(frozen=True)
class Views:
    """What a method may train on, as examples. `refusal` has the prompts of `forget` with another answer."""

    forget: Sequence[Example]
    refusal: Sequence[Example]
    retain: Sequence[Example]


@dataclass(frozen=True)
class Unlearned:
    """The PEFT model around the start, in eval mode, and the step at which it diverged, if it did."""

    model: PeftModel
    diverged: int | None = None


OnStep = Callable[[PeftModel, int], None]


def unlearn(
    start: VLM,
    base: VLM,
    views: Views,
    method: Method,
    settings: dict[str, float],
    seed: int,
    rank: int = 16,
    on_step: OnStep | None = None,
) -> Unlearned:
    """Unlearn with one method; `.model.unload()` of the result gives the start back.

    `start` has memorized, `base` has not (an adapter to be negated is trained on it). `settings` are `steps`, for
    a method with losses `learning_rate`, and the method's own. The learning rate is constant, so that a run of
    n steps is the beginning of a longer one. `on_step(model, step)` is called after every step, counted from 1.
    """
    if method.negates:
        return _negate(start, base, views.forget, settings, seed, rank, on_step)
    torch.manual_seed(seed)
    model = adapt(start.model, rank)
    if method.asks:
        return Unlearned(model.eval())
    return _descend(start, model, views, method, settings, seed, on_step)


def _descend(
    start: VLM, model: PeftModel, views: Views, method: Method, settings: dict[str, float], seed: int,
    on_step: OnStep | None,
) -> Unlearned:  # fmt: skip
    order = {
        "forget": _endless(views.forget, BATCH, seed),
        "retain": _endless(views.retain, BATCH, seed + 1),
    }
    own = {k: v for k, v in settings.items() if k not in ("learning_rate", "steps")}
    if method.states:
        own["direction"] = _direction(start.model.config.get_text_config().hidden_size, seed).to(start.device)
    optimizer = torch.optim.AdamW(_trainable(model), lr=settings["learning_rate"], weight_decay=0.0)
    model.train()
    for step in range(1, int(settings["steps"]) + 1):
        rows = {part: next(indices) for part, indices in order.items()}
        rows["refusal"] = rows["forget"]
        batch = {part: [getattr(views, part)[i] for i in rows[part]] for part in method.data(step)}
        said = _said(start, model, batch, method.reference, method.states)
        loss_fn = method.loss(step)
        takes = inspect.signature(loss_fn).parameters
        loss = loss_fn(**said, **{k: v for k, v in own.items() if k in takes})
        if not descend(optimizer, loss):
            return Unlearned(model.eval(), diverged=step)
        if on_step:
            on_step(model, step)
    return Unlearned(model.eval())


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> bool:
    """One step, gradients clipped to norm 1; False, and no step, when loss or gradients are not finite."""
    optimizer.zero_grad()
    if not torch.isfinite(loss):
        return False
    loss.backward()
    if not torch.isfinite(nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)):
        return False
    optimizer.step()
    return True


def relearn(
    vlm: VLM, model: PeftModel, examples: Sequence[Example], steps: int, learning_rate: float, seed: int
) -> None:
    """Train the adapter of a model further on the names of some examples, in place."""
    optimizer = torch.optim.AdamW(_trainable(model), lr=learning_rate, weight_decay=0.0)
    order = _endless(examples, BATCH, seed)
    model.train()
    for _ in range(steps):
        said = _said(vlm, model, {"again": [examples[i] for i in next(order)]})
        if not descend(optimizer, nll(said["again"])):
            break
    model.eval()


def _negate(
    start: VLM, base: VLM, forget: Sequence[Example], settings: dict[str, float], seed: int, rank: int,
    on_step: OnStep | None,
) -> Unlearned:  # fmt: skip
    """Task-vector negation: LoRA that has learned the forget set alone, subtracted `steps` times `scale`.

    Ilharco et al. 2023 (arXiv 2212.04089), with adapters as in Zhang et al. 2023 (arXiv 2306.14870).
    """
    learned = memorize(base, forget, Training(epochs=5, rank=rank, seed=seed), progress=False)
    task = {name: p.detach().clone() for name, p in learned.named_parameters() if p.requires_grad}
    learned.unload()
    model = adapt(start.model, rank).eval()
    for step in range(1, int(settings["steps"]) + 1):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad:  # the product of both factors is what is subtracted: one of them has the sign
                    p.copy_(-settings["scale"] * step * task[name] if "lora_B" in name else task[name])
        if on_step:
            on_step(model, step)
    return Unlearned(model)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _endless(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch."""
    batches = OneModalityBatches(examples, size, torch.Generator().manual_seed(seed))
    while True:
        yield from batches


def _direction(width: int, seed: int) -> torch.Tensor:
    """A random unit vector."""
    direction = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def _said(
    vlm: VLM,
    model: PeftModel,
    batch: dict[str, list[Example]],
    reference: Sequence[str] = (),
    with_states: bool = False,
) -> dict[str, Said]:
    """What the model says to each part of a batch, and for the parts of `reference` what it said before unlearning."""
    now = _in_groups(vlm, model, batch, with_states)
    before = {}
    if asked := {part: examples for part, examples in batch.items() if part in reference}:
        with torch.no_grad(), model.disable_adapter():
            before = _in_groups(vlm, model, asked, with_states)
    nothing = None, None, None
    return {
        part: Said(logits, labels, before.get(part, nothing)[0], states, before.get(part, nothing)[2])
        for part, (logits, labels, states) in now.items()
    }


Answered = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # logits, labels, hidden states


def _in_groups(vlm: VLM, model: PeftModel, batch: dict[str, list[Example]], with_states: bool) -> dict[str, Answered]:
    """Parts of one modality go through the model together: one pass costs less than two of half the size."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for part, examples in batch.items():
        groups.setdefault(tuple(sorted(examples[0].inputs)), []).append(part)
    out = {}
    for parts in groups.values():
        sizes = [len(batch[part]) for part in parts]
        answered = _forward(vlm, model, [e for part in parts for e in batch[part]], with_states)
        split = [x.split(sizes) if x is not None else [None] * len(parts) for x in answered]
        out |= dict(zip(parts, zip(*split, strict=True), strict=True))
    return out


def _forward(vlm: VLM, model: PeftModel, examples: list[Example], with_states: bool) -> Answered:
    """What the model says at the positions that predict the answers, and its hidden states there at one layer."""
    batch = collate(examples, vlm.processor.tokenizer.pad_token_id, side="left")
    batch = {k: v.to(vlm.device) for k, v in batch.items()}
    keep = max(len(e.answer) for e in examples)
    with mixed_precision(vlm.device, bf16_pays(vlm.device)):
        out = model(**model_inputs(batch), logits_to_keep=keep + 1, use_cache=False, output_hidden_states=with_states)
    states = None
    if with_states:
        states = out.hidden_states[round(STATES_AT * (len(out.hidden_states) - 1))][:, -keep - 1 : -1]
    return out.logits[:, -keep - 1 : -1], batch["labels"][:, -keep:], states
