"""Train LoRA on the language model, everything else frozen: one loop for every experiment, a loss is its argument.

One process, or several under `accelerate launch` (DDP, FSDP2): the result is the same up to rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import RandomSampler

from xmem_utils import checkpoint as checkpoints
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import Example, collate
from xmem_utils.vlm.forward import Answered, forward
from xmem_utils.vlm.lean import lean
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

# -- what a loss is made of ------------------------------------------------------------------------


@dataclass
class Outputs:
    """What a model says about some examples: a loss is a function of these.

    `tokens` and `rows` count the answer tokens and examples that means are taken over: those of the whole batch, when
    it passes in parts, whose losses then add up to that of the whole.
    """

    logits: Tensor  # [batch, tokens, vocabulary], at the positions that predict the answer
    labels: Tensor  # [batch, tokens], -100 where there is no answer
    reference: Tensor | None = None  # logits of the model without the adapter that is trained
    states: Tensor | None = None  # hidden states [layers, batch, positions, width], at the same positions
    reference_states: Tensor | None = None
    examples: Sequence[Example] = ()
    tokens: float = 0
    rows: float = 0

    def __post_init__(self) -> None:
        """Counts default to those of the examples at hand."""
        self.tokens = self.tokens or int((self.labels != -100).sum())
        self.rows = self.rows or len(self.labels)


def nll(outputs: Outputs) -> Tensor:
    """Mean negative log-likelihood of the answer tokens, nats."""
    logits, labels = outputs.logits.flatten(0, 1).float(), outputs.labels.flatten()
    return F.cross_entropy(logits, labels, reduction="sum") / outputs.tokens


def names_nll(names: Outputs) -> Tensor:
    """The loss of memorizing: `nll` of the names."""
    return nll(names)


Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective:
    """What a training minimises: `losses` take turns, step by step; a loss takes parts of the batch by its arguments'
    names (as `Outputs`), and settings by the names of others."""

    losses: tuple[Loss, ...] = ()
    reference: tuple[str, ...] = ()  # parts for which a loss needs what the model says without the adapter
    read: tuple[str, ...] = ()  # parts that pass without gradients
    depth: float | None = None  # hidden states of the layer at this share of the depth; 0: of all; None: none
    settings: Mapping[str, object] = field(default_factory=dict)

    def loss(self, step: int) -> Loss:
        """The loss of a step, counted from 1."""
        return self.losses[(step - 1) % len(self.losses)]

    def takes(self, step: int) -> Mapping[str, inspect.Parameter]:
        """Arguments of a step's loss."""
        return inspect.signature(self.loss(step)).parameters

    def value(self, step: int, said: Mapping[str, Outputs]) -> Tensor:
        """The loss of a step for what the model said."""
        own = {k: v for k, v in self.settings.items() if k in self.takes(step)}
        return self.loss(step)(**said, **own)


MEMORIZING = Objective((names_nll,))


# -- batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One optimizer step: examples by part, and the learning rate."""

    batch: Mapping[str, Sequence[Example]]
    learning_rate: float


@dataclass(frozen=True)
class Resources:
    """What saves memory, or lets an interrupted training go on; the result stays what it is, up to rounding."""

    accumulation: int = 1  # forward and backward passes a step, in each process
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass
    checkpoint: Path | None = None  # a file; the training is saved there, and goes on from there
    save_every: int = 0  # steps; 0: never


@dataclass(frozen=True)
class Training:
    """How names are memorized."""

    epochs: float = 5.0  # passes over the examples; the last may end early
    batch_size: int = 32  # examples a step, over all processes and accumulated passes
    learning_rate: float = 2e-3  # its peak
    rank: int = 16
    seed: int = 0
    bucket: int = 0  # lengths in a batch differ by less than this many tokens, so that little is padding; 0: by any
    resources: Resources = Resources()


def alike(examples: Sequence[Example], bucket: int = 0) -> list[list[int]]:
    """Examples, as indices, in groups of those that may be in one batch: pictures and texts never are.

    What a processor makes of a picture has no place in a batch of texts, and classes differ in how they mix them.
    With a `bucket`, lengths that lie in different ones are kept apart, too.
    """
    groups: dict[tuple, list[int]] = {}
    for i, e in enumerate(examples):
        kind = tuple(sorted(e.inputs)), (len(e.prompt) + len(e.answer)) // bucket if bucket else 0
        groups.setdefault(kind, []).append(i)
    return [groups[kind] for kind in sorted(groups)]


def endless(examples: Sequence[Example], size: int, seed: int, bucket: int = 0) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch: every example once an epoch, in a new order each time."""
    groups, generator = alike(examples, bucket), torch.Generator().manual_seed(seed)
    while True:
        batches = []
        for group in groups:
            order = [group[i] for i in RandomSampler(group, generator=generator)]
            batches += [order[k : k + size] for k in range(0, len(order), size)]
        if len(groups) > 1:
            batches = [batches[i] for i in RandomSampler(batches, generator=generator)]
        yield from batches


def steps_of(epochs: float, an_epoch: int) -> int:
    """Optimizer steps of a training, at least one."""
    return max(1, round(epochs * an_epoch))


def rate(done: float) -> float:
    """The learning rate, as a share of its peak, when a share `done` of the training is behind.

    It warms up from a tenth for 5 %, then follows a cosine back to a tenth.
    """
    if done < 0.05:
        return 0.1 + 0.9 * done / 0.05
    return 0.1 + 0.9 * (1 + math.cos(math.pi * min(1.0, (done - 0.05) / 0.95))) / 2


def memorizing_steps(examples: Sequence[Example], training: Training) -> list[Step]:
    """Epoch after epoch of the examples as part "names", in an order that the seed determines."""
    size, bucket = training.batch_size, training.bucket
    count = steps_of(training.epochs, sum(math.ceil(len(group) / size) for group in alike(examples, bucket)))
    order = endless(examples, size, training.seed, bucket)
    rates = [training.learning_rate * rate(k / count) for k in range(count)]
    return [Step({"names": [examples[i] for i in next(order)]}, own) for own in rates]


# -- the loop --------------------------------------------------------------------------------------


class Diverged(FloatingPointError):
    """Loss or gradients stopped being finite, at `step`."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} in step {step}; a lower learning rate may help")
        self.step = step


OnStep = Callable[[PeftModel, int, int, float], None]  # model, step (from 1), number of steps, loss


def fresh(vlm: VLM, rank: int, seed: int) -> PeftModel:
    """The model with new LoRA on it, drawn from a seed; `.unload()` gives the base back."""
    torch.manual_seed(seed)
    return adapt(vlm.model, rank)


def memorize(vlm: VLM, examples: Sequence[Example], training: Training, on_step: OnStep | None = None) -> PeftModel:
    """Train new LoRA on `examples`; returns the PEFT model in eval mode. See `train`."""
    steps, model = memorizing_steps(examples, training), fresh(vlm, training.rank, training.seed)
    return train(vlm, model, steps, MEMORIZING, on_step, training.resources)


def train(
    vlm: VLM, model: PeftModel, steps: Sequence[Step], objective: Objective, on_step: OnStep | None = None,
    resources: Resources = Resources(),
) -> PeftModel:  # fmt: skip
    """Train the adapter of `model` in place; returns the model in eval mode.

    AdamW without weight decay, gradients clipped to norm 1, bf16 where it pays. `on_step` is called after every step;
    numbers that it gathers in a dictionary `on_step.notes` are saved and restored with a checkpoint. Raises `Diverged`
    when loss or gradients stop being finite, ValueError when a checkpoint is damaged or of another training; whatever
    is raised, the caller's base model is as it was.

    Under `accelerate launch` all processes call with the same arguments; each takes its part of every batch, and all
    see the same loss. FSDP leaves the base model sharded: load another for the next training. Dropout, which no model
    we know trains with, would be drawn anew after an interruption.
    """
    # precision is set around the training pass alone: Accelerate's own setting would wrap the model's forward for good
    # and evaluate along the training in bf16 too
    accelerator = Accelerator(
        cpu=vlm.device.type == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # `_backward` accumulates
    )
    _say_uneven(accelerator, steps, resources.accumulation)
    try:
        if resources.gradient_checkpointing:
            vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        _wrap_by_layer(accelerator, model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        # `accelerate launch --mixed_precision no` trains in float32
        bf16 = bf16_pays(accelerator.device) and os.environ.get("ACCELERATE_MIXED_PRECISION") != "no"
        passes = _Passes(accelerator, vlm, model, wrapped, objective, bf16)
        done = _resumed(model, optimizer.optimizer, steps, on_step, resources)
        parameters = [p for p in model.parameters() if p.requires_grad]  # FSDP has put others in their place
        wrapped.train()
        with lean(model, torch.bfloat16 if bf16 else torch.float32):
            for number, step in enumerate(steps[done:], done + 1):
                optimizer.param_groups[0]["lr"] = step.learning_rate
                optimizer.zero_grad()
                loss = passes.backward(step, number, resources.accumulation)
                if not math.isfinite(loss) or not math.isfinite(_whole(accelerator.clip_grad_norm_(parameters, 1.0))):
                    raise Diverged(number, loss)
                optimizer.step()
                if on_step:
                    on_step(model, number, len(steps), loss)
                if resources.checkpoint and (number % resources.save_every == 0 or number == len(steps)):
                    rest = {"step": number, "notes": getattr(on_step, "notes", {}), "purpose": _identity(steps)}
                    checkpoints.save(resources.checkpoint, model, optimizer.optimizer, rest)
    except BaseException:
        model.unload()  # whatever stops the training, the caller's base model is as it was
        raise
    finally:
        if resources.gradient_checkpointing:
            vlm.model.gradient_checkpointing_disable()
    return model.eval()


@dataclass(frozen=True)
class Piece:
    """The examples of one part of a batch that one process passes at once; counts of the whole part."""

    examples: Sequence[Example]
    tokens: float
    rows: float


def pieces(batch: Mapping[str, Sequence[Example]], processes: int, accumulation: int) -> list[list[dict[str, Piece]]]:
    """A batch in nearly equal pieces `[pass][process]`, by part; each example is in one of them.

    A small last batch takes fewer passes. A part with fewer examples than there are pieces goes into each as a whole,
    and counts as that many times as large, so that its loss over all pieces is the same.
    """
    passes = min(accumulation, -(-max(map(len, batch.values())) // processes))
    count = passes * processes
    out: list[list[dict[str, Piece]]] = [[{} for _ in range(processes)] for _ in range(passes)]
    for name, part in batch.items():
        whole = len(part) < count
        tokens, rows = sum(len(e.answer) for e in part), len(part)
        for k in range(count):
            own = part if whole else part[rows * k // count : rows * (k + 1) // count]
            times = count if whole else 1
            out[k // processes][k % processes][name] = Piece(own, tokens * times, rows * times)
    return out


@dataclass(frozen=True)
class _Passes:
    """Forward and backward passes of one training."""

    accelerator: Accelerator
    vlm: VLM
    model: PeftModel
    wrapped: nn.Module  # the same, as DDP or FSDP have it
    objective: Objective
    bf16: bool

    def backward(self, step: Step, number: int, accumulation: int) -> float:
        """Gradients of a step's loss for the whole batch; returns the loss, on every process."""
        accelerator = self.accelerator
        passes = pieces(step.batch, accelerator.num_processes, accumulation)
        total = torch.zeros((), device=accelerator.device)
        for i, parts in enumerate(passes, 1):
            # processes talk to each other in the last pass alone
            with accelerator.no_sync(self.wrapped) if i < len(passes) else contextlib.nullcontext():
                loss = self.objective.value(number, self._outputs(parts[accelerator.process_index]))
                # DDP and FSDP take the mean of the processes' gradients, and it is their sum that is wanted
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        return accelerator.reduce(total, "sum").item()

    def _outputs(self, parts: Mapping[str, Piece]) -> dict[str, Outputs]:
        """What the model says to each part, and what it says without the adapter where the loss needs it."""
        trained = {name: piece for name, piece in parts.items() if name not in self.objective.read}
        now = self._forward(trained)
        with torch.no_grad():
            now |= self._forward({name: piece for name, piece in parts.items() if name in self.objective.read})
            if compared := {name: piece for name, piece in parts.items() if name in self.objective.reference}:
                with self.model.disable_adapter():
                    for name, before in self._forward(compared).items():
                        now[name].reference, now[name].reference_states = before.logits, before.states
        return now

    def _forward(self, parts: Mapping[str, Piece]) -> dict[str, Outputs]:
        """Parts of one modality go through the model together: one pass costs less than two of half the size."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, piece in parts.items():
            groups.setdefault(tuple(sorted(piece.examples[0].inputs)), []).append(name)
        out = {}
        for names in groups.values():
            sizes = [len(parts[name].examples) for name in names]
            said = self._answers([e for name in names for e in parts[name].examples])
            logits, labels = said.logits.split(sizes), said.labels.split(sizes)
            states = said.states.split(sizes, 1) if said.states is not None else [None] * len(names)
            for k, name in enumerate(names):
                out[name] = Outputs(logits[k], labels[k], states=states[k], **vars(parts[name]))
        return out

    def _answers(self, examples: Sequence[Example]) -> Answered:
        device = self.accelerator.device
        batch = collate(examples, self.vlm.processor.tokenizer.pad_token_id, side="left")
        with mixed_precision(device, self.bf16):
            batch = {k: v.to(device) for k, v in batch.items()}
            return forward(self.wrapped, batch, max(len(e.answer) for e in examples), self.objective.depth)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _say_uneven(accelerator: Accelerator, steps: Sequence[Step], accumulation: int) -> None:
    """Warn when batches do not divide into equal pieces."""
    size, processes = len(next(iter(steps[0].batch.values()))), accelerator.num_processes
    if size % (processes * accumulation) and accelerator.is_main_process:
        warnings.warn(
            f"a batch of {size} does not divide into {processes} processes x {accumulation} passes: some take one "
            "example more, and the others wait for them",
            stacklevel=3,
        )


def _wrap_by_layer(accelerator: Accelerator, model: nn.Module) -> None:
    """FSDP shards layer by layer: the layers the model says must stay whole, as far as it has them.

    Gemma 3, for one, also names a pooling head of its vision tower that it is built without, and Accelerate
    refuses a layer that is not there.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        there = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(set(getattr(model, "_no_split_modules", None) or ()) & there)


def _identity(steps: Sequence[Step]) -> dict[str, object]:
    """What a checkpoint must agree on."""
    digest = hashlib.sha256()
    for step in steps:
        for name, part in step.batch.items():
            tokens = [torch.cat([e.prompt, e.answer]).numpy().tobytes() for e in part]
            digest.update(b"".join([name.encode(), str(step.learning_rate).encode(), *tokens]))
    size = len(next(iter(steps[0].batch.values())))
    return {"batch_size": size, "steps": len(steps), "examples": digest.hexdigest()[:16]}


def _resumed(
    model: PeftModel, optimizer: torch.optim.Optimizer, steps: Sequence[Step], on_step: OnStep | None,
    resources: Resources,
) -> int:  # fmt: skip
    """The steps that a checkpoint has behind it, weights and moments put in place."""
    if not (resources.checkpoint and resources.checkpoint.exists()):
        return 0
    state = checkpoints.load(resources.checkpoint, model, optimizer, _identity(steps))
    getattr(on_step, "notes", {}).update(state["notes"])
    return state["step"]
