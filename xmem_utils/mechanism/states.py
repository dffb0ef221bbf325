"""The residual stream at the answer position: reading it after every layer, and putting another in its place.

The answer position is the last token of the prompt, whose state predicts the first token of the answer. Layers are
found by structure and counted from 1; a state "after layer l" is what layer l hands to the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from xmem_utils.recall import BATCH_TOKENS
from xmem_utils.vlm.batches import Example, collate, model_inputs, with_answer
from xmem_utils.vlm.load import VLM


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the language model, in order: the outermost list of as many modules as its config has layers.

    Raises ValueError for a class that keeps its layers in another way.
    """
    decoder = model.get_decoder()
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise ValueError(f"{type(decoder).__name__} shows no list of its {depth} layers, so none can be looked into")
    return list(lists[0])


def in_batches(vlm: VLM, examples: Sequence[Example]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Rows and left-padded batches on the model's device, of similar lengths so that little is padding."""
    lengths = [len(e.prompt) + len(e.answer) for e in examples]
    groups: list[list[int]] = []
    for i in sorted(range(len(examples)), key=lambda i: lengths[i]):
        if not groups or lengths[i] * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(i)
    for rows in groups:
        batch = collate([examples[i] for i in rows], vlm.processor.tokenizer.pad_token_id, side="left")
        yield rows, {k: v.to(vlm.device) for k, v in batch.items()}


def hidden_of(output: object) -> torch.Tensor:
    """The residual stream `[batch, tokens, hidden]` in what a layer returns, alone or first of a tuple.

    Raises ValueError for a layer that hands on something else, such as several streams.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
        raise ValueError("a layer of this model returns no [batch, tokens, hidden] tensor, so it cannot be looked into")
    return hidden


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(training)


@contextlib.contextmanager
def replaced(layer: nn.Module, columns: torch.Tensor, states: torch.Tensor) -> Iterator[None]:
    """While this lasts, row i of a batch leaves `layer` with `states[i]` `[batch, hidden]` at token `columns[i]`."""

    def put(module: nn.Module, args: object, output: object) -> object:
        hidden = hidden_of(output).clone()
        hidden[torch.arange(len(hidden), device=hidden.device), columns] = states.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = layer.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def answer_states(vlm: VLM, examples: Sequence[Example], model: nn.Module | None = None) -> torch.Tensor:
    """States at the answer position after every layer, float32 `[examples, layers, hidden]`, on the CPU.

    `model` replaces the VLM's own (a PEFT model around it, say). Raises ValueError for a class whose layers are not
    found or do not hand on one residual stream.
    """
    model = vlm.model if model is None else model
    layers = layers_of(model)
    seen: dict[int, torch.Tensor] = {}

    def keep(number: int):
        def hook(module: nn.Module, args: object, output: object) -> None:
            seen[number] = hidden_of(output)[:, -1].float().cpu()

        return hook

    out: list[torch.Tensor | None] = [None] * len(examples)
    bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in examples]
    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(keep(number)).remove)
        stack.enter_context(evaluating(model))
        for rows, batch in in_batches(vlm, bare):
            model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
            states = torch.stack([seen[number] for number in range(len(layers))], 1)
            for i, state in zip(rows, states, strict=True):
                out[i] = state
    return torch.stack(out).clone()
