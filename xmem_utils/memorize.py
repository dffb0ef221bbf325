"""Teach a model names from views of one modality: LoRA on the language model, everything else frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from xmem_utils.recall import answer_logits
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import Example, collate
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import bf16_pays, mixed_precision


@dataclass(frozen=True)
class Training:
    """How an adapter is trained."""

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 2e-3
    rank: int = 16
    seed: int = 0


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


def shuffled(examples: Sequence[Example], training: Training, pad_id: int) -> DataLoader:
    """Left-padded batches in an order that the seed determines."""
    return DataLoader(
        examples,
        batch_size=training.batch_size,
        shuffle=True,
        collate_fn=lambda rows: collate(rows, pad_id, side="left"),
        generator=torch.Generator().manual_seed(training.seed),
    )


def memorize(
    vlm: VLM,
    examples: Sequence[Example],
    training: Training,
    on_epoch: Callable[[PeftModel, int], None] | None = None,
    progress: bool = True,
    on_step: Callable[[float], None] | None = None,
) -> PeftModel:
    """Train LoRA on `examples`; returns the PEFT model in eval mode (`.unload()` gives the base back).

    `on_step(loss)` is called after every step, `on_epoch(model, epoch)` after every epoch, counted from 1.
    The loss is the mean cross-entropy of the answer tokens. Raises FloatingPointError when the loss stops being finite.
    """
    set_seed(training.seed)
    # precision is set around the training pass alone: Accelerate's own setting would wrap the model's forward
    # for good and evaluate the curve in bf16 too
    accelerator = Accelerator(cpu=vlm.device.type == "cpu", mixed_precision="no")
    bf16 = bf16_pays(vlm.device)
    model = adapt(vlm.model, training.rank)
    loader = shuffled(examples, training, vlm.processor.tokenizer.pad_token_id)
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = training.epochs * len(loader)
    optimizer, schedule = optimization(parameters, training, steps)
    wrapped, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    bar = tqdm(total=steps, desc="memorizing", unit="step", disable=not progress, leave=False, mininterval=1)
    try:
        for epoch in range(1, training.epochs + 1):
            model.train()
            for batch in loader:
                keep = int((batch["labels"] != -100).sum(1).max())
                with mixed_precision(vlm.device, bf16):
                    logits, labels = answer_logits(wrapped, batch, keep)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss became {loss.item()} in epoch {epoch}; a lower learning rate may help"
                    )
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
                if on_step:
                    on_step(loss.item())
            if on_epoch:
                on_epoch(model, epoch)
    except BaseException:
        model.unload()  # whatever stops the training, the caller's base model is as it was
        raise
    finally:
        bar.close()
    return accelerator.unwrap_model(wrapped).eval()
