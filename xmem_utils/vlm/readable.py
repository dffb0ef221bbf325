"""Whether a model answers at all, and reads a user's names and descriptions as the text that they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from PIL import Image

from xmem_utils.params import shown
from xmem_utils.personas.views import View
from xmem_utils.vlm.batches import answer_tokens, collate, encode, model_inputs
from xmem_utils.vlm.folder import Refusal, one_sentence
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.processors import picture_side


@torch.no_grad()
def check_answers(vlm: VLM) -> None:
    """Raise ValueError unless the model answers about a picture and about a text, in finite numbers that differ."""
    side = picture_side(vlm.processor)
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    views = [View(0, "?", "image", "train", 0, picture), View(0, "?", "text", "train", 0, "?")]
    advice = "take config, processor and weights of one model"
    with one_sentence(f"the model {shown(vlm.name)} cannot be asked about pictures and texts", advice):
        for view in views:
            batch = collate(encode(vlm, [view]), vlm.processor.tokenizer.pad_token_id, side="left")
            logits = vlm.model(**model_inputs({k: v.to(vlm.device) for k, v in batch.items()}), use_cache=False).logits
            if not logits.isfinite().all() or (logits.amax(-1) == logits.amin(-1)).all():
                raise Refusal(
                    f"the model {shown(vlm.name)} gives scores that are no numbers, or all the same, when it is asked "
                    f"about a view in modality {view.modality!r}; {advice}"
                )


def check_readable(vlm: VLM, names: Sequence[str], descriptions: Iterable[str]) -> None:
    """Raise ValueError for a text that holds a control token of the model, or a name that it cannot write.

    What a model itself has written is not asked for this: it may hold anything.
    """
    control = re.compile("|".join(map(re.escape, control_tokens(vlm.processor))) or "(?!)")
    for text in (*names, *descriptions):
        if found := control.search(text):
            raise ValueError(
                f"the text {shown(text)} holds {found[0]!r}, which the model takes for a control token; write it "
                "differently"
            )
    tokenizer, by_tokens = vlm.processor.tokenizer, {}
    for name, tokens in zip(names, answer_tokens(vlm, names), strict=True):
        ids = tokens[:-1].tolist()  # without the end of turn
        twin = by_tokens.setdefault(tuple(ids), name)
        if twin != name:
            raise ValueError(
                f"the tokenizer of {vlm.name!r} makes the same tokens of {shown(twin)} and {shown(name)}; give names "
                "that it can tell apart"
            )
        written = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if tokenizer.unk_token_id in ids or written.split() != name.split():
            raise ValueError(
                f"the tokenizer of {vlm.name!r} cannot write {shown(name)}: it makes {shown(written)} of it; write "
                "it in letters that the model knows"
            )


def control_tokens(processor: object) -> list[str]:
    """Control tokens of tokenizer and processor as text, longest first."""
    tokenizer = processor.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    own = {v for k, v in vars(processor).items() if k.endswith("_token") and isinstance(v, str)}
    every = {*tokenizer.all_special_tokens, *added, *own}
    return sorted((token for token in every if token.strip()), key=len, reverse=True)
