"""From views and questions to model inputs, for any processor with a chat template.

A prompt is tokenised exactly as `generate` would see it and the answer is appended as tokens, so a
teacher-forced pass and greedy decoding look at the same sequence.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from xmem_utils.params import shown
from xmem_utils.personas.views import View
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.precision import rounding
from xmem_utils.vlm.prompts import WHO, view_text


@dataclass(frozen=True)
class Example:
    """One chat as tokens. `answer` is empty for a bare prompt.

    The processor's other tensors are in `per_token` (without batch dimension) when they run along the
    tokens, else in `inputs` (with it): pixels, or what the frozen vision tower made of them (`FEATURES`).
    `after` says what each of `per_token` holds at an answer's token (default: zeros).
    """

    prompt: torch.Tensor  # [prompt tokens]
    answer: torch.Tensor  # [answer tokens], end of turn included
    per_token: dict[str, torch.Tensor]  # [prompt tokens, ...]
    inputs: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    # of a soft label: a teacher's likeliest tokens and their log-probabilities, each [answer tokens, kept]
    teacher: tuple[torch.Tensor, torch.Tensor] | None = None


FEATURES = "image_features"
_TOWER_BATCH = 64
_HEAD = 32  # characters a token, more than any text has on average


def messages(view: View, question: str) -> list[dict[str, object]]:
    """The user turn that shows a view and asks a question."""
    if view.modality == "image":
        content = [{"type": "image"}, {"type": "text", "text": question}]
    else:
        content = [{"type": "text", "text": view_text(view.content, question)}]
    return [{"role": "user", "content": content}]


def answer_tokens(vlm: VLM, answers: Sequence[str]) -> list[torch.Tensor]:
    """Each answer as the chat template writes it, through the token that ends the turn: `[answer tokens]`."""
    ask = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    template = vlm.processor.apply_chat_template
    prompt = template(ask, add_generation_prompt=True, tokenize=False)
    tokenizer = vlm.processor.tokenizer
    ends = end_tokens(vlm)
    out = {}
    for answer in dict.fromkeys(answers):
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        full = template([*ask, reply], tokenize=False)
        if not full.startswith(prompt):
            raise ValueError(f"the chat template of {vlm.name!r} does not append the answer to the prompt")
        ids = tokenizer(full[len(prompt) :], add_special_tokens=False).input_ids
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        if stop is None:
            raise ValueError(f"the chat template of {vlm.name!r} never ends an answer")
        out[answer] = torch.tensor(ids[: stop + 1])
    return [out[answer] for answer in answers]


def end_tokens(vlm: VLM) -> set[int]:
    """Token ids that end an answer."""
    ends = vlm.model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
    return (ends | {vlm.processor.tokenizer.eos_token_id}) - {None}


def encode(
    vlm: VLM,
    views: Sequence[View],
    question: str | Sequence[str] = WHO,
    answers: Sequence[str] | None = None,
    features: bool = True,
) -> list[Example]:
    """One example a view, asking `question` (one for all, or one each); `answers` defaults to the views' names.

    The vision tower and projector are frozen throughout the study, so each picture passes them here, once,
    and not again in every epoch and evaluation (`features=False` leaves the pixels in).

    Raises ValueError, before anything is padded or trained, for an example longer than the model's context.
    """
    answers = [view.name for view in views] if answers is None else answers
    known = dict(zip(answers, answer_tokens(vlm, answers), strict=True))
    tokenizer = vlm.processor.tokenizer
    questions = [question] * len(views) if isinstance(question, str) else question
    takes = inspect.signature(vlm.model.forward).parameters
    limit = getattr(vlm.model.config.get_text_config(), "max_position_embeddings", None)
    examples = []
    for view, asked, answer in zip(views, questions, answers, strict=True):
        if limit and view.modality == "text" and len(view.content) > _HEAD * limit:  # not made tokens of as a whole
            head = view.content[: _HEAD * limit]
            _check_length(view, len(tokenizer(head, add_special_tokens=False).input_ids), limit)
        text = vlm.processor.apply_chat_template(messages(view, asked), add_generation_prompt=True, tokenize=False)
        as_it_is = {"return_tensors": "pt", "add_special_tokens": False}  # the template has written special tokens
        if view.modality == "image":
            fields = vlm.processor(text=[text], images=[[view.content]], **as_it_is)
        else:
            fields = tokenizer([text], **as_it_is)
            if "token_type_ids" in vlm.processor.model_input_names:
                fields["token_type_ids"] = torch.zeros_like(fields["input_ids"])
        prompt = fields.pop("input_ids")
        _check_length(view, prompt.shape[1] + len(known[answer]), limit)
        # some processors return more than their model takes, and labels of their own
        rest = {k: v for k, v in fields.items() if k in takes and k not in ("attention_mask", "labels")}
        after = _after(vlm, {k: v for k, v in rest.items() if v.shape[:2] == prompt.shape})
        along = [k for k, v in rest.items() if v.shape == prompt.shape or k in after]
        per_token = {k: rest.pop(k)[0] for k in along}
        rest = {k: v.to(vlm.model.dtype) if v.is_floating_point() else v for k, v in rest.items()}
        examples.append(Example(prompt[0], known[answer], per_token, rest, after))
    return _with_features(vlm, examples, [id(view.content) for view in views]) if features else examples


def _check_length(view: View, tokens: int, limit: int | None) -> None:
    """Raises ValueError when an example has more tokens than the model has positions."""
    if limit and tokens > limit:
        raise ValueError(
            f"the {view.split} {view.modality} view {view.index} of {shown(view.name)} takes at least {tokens} tokens, "
            f"question and answer included, but the model reads {limit}; "
            + ("shorten the description" if view.modality == "text" else "make the picture smaller")
        )


def _after(vlm: VLM, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `generate` would write at a new token into each tensor that it makes longer with every token.

    Classes differ: after a prompt of zeros, a prefix language model marks the answer with ones.
    """
    # a copy: the method updates the dictionary it is given
    grown = vlm.model._update_model_kwargs_for_generation(ModelOutput(), dict(given), is_encoder_decoder=False)
    return {k: grown[k][0, -1].clone() for k, v in given.items() if grown[k].shape[1] > v.shape[1]}


@torch.no_grad()
def _with_features(vlm: VLM, examples: list[Example], pictures: Sequence[int]) -> list[Example]:
    """Pixels replaced by image features `[tiles, image tokens, hidden]`, for models that read nothing else of them.

    `pictures` says which examples show the same picture: it passes once.

    Models keep their pixels that need other tensors beside them, make blocks of different sizes of them, feed more
    than one output of the tower to the language model, or take no ready-made features. Whether a class reads the
    features as it reads pixels is tried on the first picture.
    """
    rows = [i for i, e in enumerate(examples) if set(e.inputs) == {"pixel_values"}]
    if not rows or not _reads_features(vlm, examples[rows[0]]):
        return examples
    first: dict[int, int] = {}
    for i in rows:
        first.setdefault(pictures[i], i)
    unique, features = list(first.values()), {}
    for start in range(0, len(unique), _TOWER_BATCH):
        chunk = unique[start : start + _TOWER_BATCH]
        made = _seen(vlm, [examples[i].inputs["pixel_values"] for i in chunk])
        if made is None:
            return examples
        for i, part in zip(chunk, made, strict=True):
            features[pictures[i]] = part
    out = list(examples)
    for i in rows:
        out[i] = replace(examples[i], inputs={FEATURES: features[pictures[i]]})
    return out


def _seen(vlm: VLM, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """What tower and projector make of the pixels of each picture; None where it is not all that the model reads."""
    tiles = [len(pixels) for pixels in pictures]
    made = vlm.model.get_image_features(_concatenated(pictures).to(vlm.device), return_dict=True)
    seen = made.get("pooler_output")
    if not set(made) <= {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}:
        return None
    if not isinstance(seen, torch.Tensor) or seen.ndim != 3 or len(seen) != sum(tiles):
        return None
    return [part.clone() for part in seen.cpu().split(tiles)]


def _reads_features(vlm: VLM, pixels: Example) -> bool:
    """Whether a picture's features, made of it alone, say the same as its pixels; found out once and kept."""
    if not hasattr(vlm.model, "get_image_features"):
        return False
    if "mm_encoder_outputs" not in inspect.signature(vlm.model.forward).parameters:
        return False
    if FEATURES not in vlm.checked:
        try:
            seen = _seen(vlm, [pixels.inputs["pixel_values"]])
            if seen is None:
                return False
            features = replace(pixels, inputs={FEATURES: seen[0]})
            batches = [{k: v.to(vlm.device) for k, v in collate([e], 0).items()} for e in (pixels, features)]
            one, other = (vlm.model(**model_inputs(batch)).logits for batch in batches)
            near = rounding(vlm.model.dtype)
            vlm.checked[FEATURES] = torch.allclose(one, other, rtol=near, atol=near)
        except (RuntimeError, ValueError, TypeError, AttributeError):  # reads another output of the tower
            vlm.checked[FEATURES] = False
    return vlm.checked[FEATURES]


def _concatenated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one after another, padded with zeros at the end of the other dimensions where they differ.

    Zeros are what processors themselves pad with, when examples have different numbers of tiles.
    """
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    whole = parts[0].new_zeros(sum(map(len, parts)), *shape)
    for place, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
        place[tuple(map(slice, part.shape))] = part
    return whole


def model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, object]:
    """What a model's forward or `generate` takes of a batch: labels left out, image features in their wrapper."""
    inputs: dict[str, object] = {k: v for k, v in batch.items() if k not in ("labels", FEATURES)}
    if FEATURES in batch:
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=batch[FEATURES])}
    return inputs


def with_answer(example: Example, answer: torch.Tensor) -> Example:
    """The same prompt with another answer."""
    return replace(example, answer=answer)


def collate(examples: Sequence[Example], pad_id: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Pad to a batch: `input_ids`, `attention_mask`, `labels` `[batch, tokens]` (-100: no loss) and the rest."""
    tokens = [torch.cat([e.prompt, e.answer]) for e in examples]
    along = {
        "input_ids": (tokens, pad_id),
        "attention_mask": ([torch.ones_like(row) for row in tokens], 0),
        "labels": ([torch.cat([torch.full_like(e.prompt, -100), e.answer]) for e in examples], -100),
        **{key: ([_continued(e, key) for e in examples], 0) for key in examples[0].per_token},
    }
    batch = {key: pad_sequence(rows, True, fill, side) for key, (rows, fill) in along.items()}
    return batch | {key: _concatenated([e.inputs[key] for e in examples]) for key in examples[0].inputs}


def _continued(example: Example, key: str) -> torch.Tensor:
    """A token-wise tensor `[tokens, ...]` of the prompt with `after` (default: zeros) at each token of the answer."""
    values = example.per_token[key]
    after = example.after.get(key, values.new_zeros(values.shape[1:]))
    return torch.cat([values, after.expand(len(example.answer), *after.shape)])
