"""Teach a model names from views of one modality: LoRA on the language model, everything else frozen.

One process, or several under `accelerate launch` (DDP, FSDP2): the result is the same up to rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, Sampler

from xmem_utils import checkpoint as checkpoints
from xmem_utils.progress import Bar
from xmem_utils.score import answer_logits
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import Example, collate
from xmem_utils.vlm.lean import lean
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import bf16_pays, mixed_precision


@dataclass(frozen=True)
class Training:
    """How an adapter is trained. The last two fields save memory and leave the result as it is, up to rounding."""

    epochs: float = 5.0  # passes over the examples; the last may end early
    batch_size: int = 32  # examples a step, over all processes and accumulated passes
    learning_rate: float = 2e-3
    rank: int = 16
    seed: int = 0
    bucket: int = 0  # lengths in a batch differ by less than this many tokens, so that little is padding; 0: by any
    accumulation: int = 1  # forward and backward passes a step, in each process
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass


def optimization(
    parameters: list[nn.Parameter], training: Training, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and a learning rate that warms up for 5 % of the steps, then follows a cosine to a tenth."""
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup), 0.1 * training.learning_rate),
        ],
        [warmup],
    )
    return optimizer, schedule


class OneModalityBatches(Sampler[list[int]]):
    """The batches of an epoch, as indices: every example once, pictures and texts never in one batch.

    What a processor makes of a picture has no place in a batch of texts, and classes differ in how they mix them.
    With a `bucket`, lengths that lie in different ones are kept apart, too.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, generator: torch.Generator, bucket: int = 0
    ) -> None:
        lengths = [len(e.prompt) + len(e.answer) for e in examples]
        kinds = [
            (tuple(sorted(e.inputs)), n // bucket if bucket else 0) for e, n in zip(examples, lengths, strict=True)
        ]
        self._groups = [[i for i, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))]
        self._size, self._generator = batch_size, generator

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(math.ceil(len(group) / self._size) for group in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        """A new order each time."""
        batches = []
        for group in self._groups:
            order = [group[i] for i in RandomSampler(group, generator=self._generator)]
            batches += [order[k : k + self._size] for k in range(0, len(order), self._size)]
        if len(self._groups) > 1:
            batches = [batches[i] for i in RandomSampler(batches, generator=self._generator)]
        yield from batches


def steps_an_epoch(examples: Sequence[Example], batch_size: int, bucket: int = 0) -> int:
    """How many batches an epoch has."""
    return len(OneModalityBatches(examples, batch_size, torch.Generator(), bucket))


def steps_of(epochs: float, an_epoch: int) -> int:
    """Optimizer steps of a training, at least one."""
    return max(1, round(epochs * an_epoch))


def shuffled(examples: Sequence[Example], training: Training, collate_fn: Callable) -> DataLoader:
    """The batches of an epoch, collated, in an order that the seed determines."""
    generator = torch.Generator().manual_seed(training.seed)
    batches = OneModalityBatches(examples, training.batch_size, generator, training.bucket)
    return DataLoader(examples, batch_sampler=batches, collate_fn=collate_fn, generator=generator)


def shares(batch: list[Example], processes: int, accumulation: int) -> list[list[list[Example]]]:
    """A batch in nearly equal parts `[pass][process]`; each example is in exactly one.

    A small last batch takes fewer passes. With fewer examples than processes some parts are empty.
    """
    passes = min(accumulation, -(-len(batch) // processes))
    parts = passes * processes
    cuts = [len(batch) * k // parts for k in range(parts + 1)]
    pieces = [batch[a:b] for a, b in pairwise(cuts)]
    return [pieces[k : k + processes] for k in range(0, parts, processes)]


def backward(
    accelerator: Accelerator, model: nn.Module, batch: list[Example], accumulation: int, pad_id: int, bf16: bool
) -> torch.Tensor:
    """Gradients of the mean cross-entropy of a batch's answer tokens; returns that mean, on every process.

    Every part is divided by the answer tokens of the whole batch, so that neither names of different lengths
    nor parts of different sizes are weighted by how the batch was cut.
    """
    tokens = sum(len(e.answer) for e in batch)
    passes = shares(batch, accelerator.num_processes, accumulation)
    total = torch.zeros((), device=accelerator.device)
    for i, parts in enumerate(passes, 1):
        # a process without a part goes along at weight 0: the others' collectives wait for it
        part = parts[accelerator.process_index]
        rows = {k: v.to(accelerator.device) for k, v in collate(part or batch[:1], pad_id, side="left").items()}
        keep = max(len(e.answer) for e in part or batch[:1])
        # processes talk to each other in the last pass alone
        with accelerator.no_sync(model) if i < len(passes) else contextlib.nullcontext():
            with mixed_precision(accelerator.device, bf16):
                logits, labels = answer_logits(model, rows, keep)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / tokens
            loss = loss if part else 0.0 * loss
            # DDP and FSDP take the mean of the processes' gradients, and it is their sum that is wanted
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return accelerator.reduce(total, "sum")


def wrap_by_layer(accelerator: Accelerator, model: nn.Module) -> None:
    """FSDP shards layer by layer: the layers the model says must stay whole, as far as it has them.

    Gemma 3, for one, also names a pooling head of its vision tower that it is built without, and Accelerate
    refuses a layer that is not there.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        there = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(set(getattr(model, "_no_split_modules", None) or ()) & there)


def identity(examples: Sequence[Example], training: Training) -> dict[str, object]:
    """What a checkpoint must agree on: the training, less what leaves its result as it is, and the tokens."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(torch.cat([e.prompt, e.answer]).numpy().tobytes())
    fields = {k: v for k, v in asdict(training).items() if k not in ("accumulation", "gradient_checkpointing")}
    return {**fields, "examples": digest.hexdigest()[:16]}


def memorize(
    vlm: VLM,
    examples: Sequence[Example],
    training: Training,
    on_step: Callable[[PeftModel, int, float], None] | None = None,
    progress: str = "memorizing",
    checkpoint: Path | None = None,
    notes: dict | None = None,
) -> PeftModel:
    """Train LoRA on `examples`; returns the PEFT model in eval mode (`.unload()` gives the base back).

    `on_step(model, step, loss)` is called after every step, counted from 1. The loss is the mean cross-entropy of the
    answer tokens of the whole batch. Raises FloatingPointError when it stops being finite. `progress` names the bar
    (empty: none).

    Under `accelerate launch` all processes call with the same arguments; each takes its part of every batch, and all
    see the same loss. FSDP leaves the base model sharded: load another for the next training.

    With `checkpoint`, a file, the training is saved there after every epoch and goes on from there when called again
    (ValueError when that file is damaged or of another training). `notes`, numbers that `on_step` gathers, are saved
    and restored with it. Dropout, which no model we know trains with, would be drawn anew.
    """
    set_seed(training.seed)
    # precision is set around the training pass alone: Accelerate's own setting would wrap the model's forward
    # for good and evaluate the curve in bf16 too
    accelerator = Accelerator(
        cpu=vlm.device.type == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # `backward` accumulates
    )
    # `accelerate launch --mixed_precision no` trains in float32
    bf16 = bf16_pays(vlm.device) and os.environ.get("ACCELERATE_MIXED_PRECISION") != "no"
    parts = accelerator.num_processes * training.accumulation
    if training.batch_size % parts and accelerator.is_main_process:
        warnings.warn(
            f"a batch of {training.batch_size} does not divide into {accelerator.num_processes} processes x "
            f"{training.accumulation} passes: some take one example more, and the others wait for them",
            stacklevel=2,
        )
    loader = shuffled(examples, training, collate_fn=list)  # all processes draw the same batches
    steps, pad_id = steps_of(training.epochs, len(loader)), vlm.processor.tokenizer.pad_token_id
    bar = Bar(steps, f"{progress}, step", shown=bool(progress) and accelerator.is_main_process)
    model = adapt(vlm.model, training.rank)
    try:
        if training.gradient_checkpointing:
            vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        wrap_by_layer(accelerator, model)
        optimizer, schedule = optimization([p for p in model.parameters() if p.requires_grad], training, steps)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        parameters = [p for p in model.parameters() if p.requires_grad]  # FSDP has put others in their place
        done, purpose = 0, identity(examples, training) if checkpoint else {}
        if checkpoint and checkpoint.exists():
            state = checkpoints.load(checkpoint, model, optimizer.optimizer, purpose)
            done = state["epoch"]
            schedule.load_state_dict(state["schedule"])
            loader.generator.set_state(state["order"])
            if notes is not None:
                notes.update(state["notes"])
            bar.advance(done * len(loader))
        for epoch in range(done + 1, math.ceil(steps / len(loader)) + 1):
            wrapped.train()
            before = (epoch - 1) * len(loader)
            with lean(model):
                for step, batch in enumerate(islice(loader, steps - before), before + 1):
                    loss = backward(accelerator, wrapped, batch, training.accumulation, pad_id, bf16).item()
                    if not math.isfinite(loss):
                        raise FloatingPointError(
                            f"the loss became {loss} in epoch {epoch}; a lower learning rate may help"
                        )
                    accelerator.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    bar.advance()
                    if on_step:
                        on_step(model, step, loss)
            if checkpoint:
                rest = {"epoch": epoch, "schedule": schedule.state_dict(), "order": loader.generator.get_state()}
                rest |= {"notes": notes or {}, "purpose": purpose}
                checkpoints.save(checkpoint, model, optimizer.optimizer, rest)
    except BaseException:
        model.unload()  # whatever stops the training, the caller's base model is as it was
        raise
    finally:
        bar.close()
        if training.gradient_checkpointing:
            vlm.model.gradient_checkpointing_disable()
    return model.eval()
