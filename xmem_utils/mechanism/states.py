"""The residual stream at the answer position: reading it after every layer, and putting another in its place.

The answer position is the last token of the prompt, whose state predicts the first token of the answer; the tokens of
the answer predict the rest. Layers are found by structure and counted from 1; a state "after layer l" is what layer l
hands to the next. Everything here looks into `vlm.model`; for a model with an adapter, give the VLM with that one
(`dataclasses.replace(vlm, model=adapted)`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from xmem_utils.score import evaluating, in_batches
from xmem_utils.vlm.batches import Example, model_inputs, with_answer
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


def hidden_of(output: object) -> torch.Tensor:
    """The residual stream `[batch, tokens, hidden]` in what a layer returns, alone or first of a tuple.

    Raises ValueError for a layer that hands on something else, such as several streams.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
        raise ValueError("a layer of this model returns no [batch, tokens, hidden] tensor, so it cannot be looked into")
    return hidden


@contextlib.contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[list[object]]:
    """What each of the layers returns in the one pass that is made while this lasts.

    Raises ValueError when the pass went by some of them.
    """
    outputs: list[object] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(lambda module, args, output: outputs.append(output)))
        yield outputs
    if missing := len(layers) - len(outputs):
        raise ValueError(
            f"this model passes over {missing} of its layers where there is no picture, so it cannot be looked into "
            "layer by layer"
        )


@contextlib.contextmanager
def repeated(layers: Sequence[nn.Module], outputs: Sequence[object]) -> Iterator[None]:
    """While this lasts, the layers are not computed: they return what they are `recorded` to have returned."""
    for layer, output in zip(layers, outputs, strict=True):
        layer.forward = lambda *args, output=output, **kwargs: output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of its class is back


def replaced(layer: nn.Module, columns: torch.Tensor, states: torch.Tensor) -> RemovableHandle:
    """A context in which row i of a batch leaves `layer` with `states[i, j]` at token `columns[i, j]`.

    `states` is `[batch, places, hidden]` and `columns` `[batch, places]`, -1 for a place that is left as it is.
    """
    rows, places = (columns >= 0).nonzero(as_tuple=True)

    def put(module: nn.Module, args: object, output: object) -> object:
        hidden = hidden_of(output).clone()
        hidden[rows, columns[rows, places]] = states[rows, places].to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return layer.register_forward_hook(put)


def name_columns(batch: dict[str, torch.Tensor], places: int) -> torch.Tensor:
    """Where the first `places` tokens of each answer are predicted in a left-padded batch: `[batch, places]`.

    The first is the answer position; -1 where an answer is shorter.
    """
    labels, place = batch["labels"], torch.arange(places, device=batch["labels"].device)[None]
    lengths = (labels != -100).sum(1, keepdim=True)
    columns = labels.shape[1] - lengths - 1 + place
    return columns.masked_fill((place > 0) & (place >= lengths), -1)


def answer_states(vlm: VLM, examples: Sequence[Example]) -> torch.Tensor:
    """States at the answer position after every layer, float32 `[examples, layers, hidden]`, on the CPU.

    Raises ValueError for a class whose layers are not found or do not hand on one residual stream.
    """
    return name_states(vlm, [with_answer(e, e.answer[:0]) for e in examples])[:, :, 0]


def name_states(vlm: VLM, examples: Sequence[Example]) -> torch.Tensor:
    """States that predict each token of the examples' answers, after every layer: `[examples, layers, places, hidden]`.

    The first place is the answer position; at the others stand the answer's tokens but its last (teacher forcing).
    float32, on the CPU; of answers shorter than the longest, the places beyond their end mean nothing.
    """
    layers, places = layers_of(vlm.model), max([1, *(len(e.answer) for e in examples)])
    order: list[int] = []
    parts: list[torch.Tensor] = []
    with evaluating(vlm.model):
        for rows, batch in in_batches(vlm, examples):
            with recorded(layers) as outputs:
                vlm.model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
            row = torch.arange(len(rows), device=vlm.device)[:, None]
            columns = name_columns(batch, places).clamp(min=0)
            parts.append(torch.stack([hidden_of(output)[row, columns].float().cpu() for output in outputs], 1))
            order += rows
    return torch.cat(parts)[torch.tensor(order).argsort()]
