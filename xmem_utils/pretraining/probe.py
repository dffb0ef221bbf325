"""What a base model can do: the bars it must pass, and the alignment probe it was chosen by.

Every number comes from views that pretraining did not contain, and none from a study persona.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.pretraining.curriculum import Batch, Curriculum, pad
from xmem_utils.pretraining.pretrain import pixels
from xmem_utils.vlm import prompts
from xmem_utils.vlm.tiny import IMAGE_SIZE


@dataclass(frozen=True)
class Question:
    """One kind of question asked about `batch`, whose chats have one turn each."""

    ability: str
    asked: str  # modality of the view
    detail: str  # the axis, or ""
    batch: Batch
    portraits: np.ndarray | None  # uint8 [batch, 3, height, width]


def correct(model: nn.Module, batch: Batch, portraits: np.ndarray | None, chunk: int = 128) -> np.ndarray:
    """Per chat: is every answer token, end of turn included, the model's first choice? bool `[batch]`."""
    hits = []
    for rows in torch.arange(len(batch.input_ids)).split(chunk):
        ids, labels = batch.input_ids[rows], batch.labels[rows]
        extra = {"pixel_values": pixels(portraits, rows)} if portraits is not None else {}
        with torch.inference_mode():
            states = model.model(
                input_ids=ids,
                token_type_ids=(ids == model.config.image_token_id).long(),
                use_cache=False,
                **extra,
            ).last_hidden_state[:, :-1]
            answered = labels[:, 1:] != -100
            miss = model.lm_head(states[answered]).argmax(-1) != labels[:, 1:][answered]
        wrong = torch.zeros_like(answered)
        wrong[answered] = miss
        hits.append(~wrong.any(1).numpy())
    return np.concatenate(hits)


def make_questions(curriculum: Curriculum, people: int = 300, seed: int = 77) -> list[Question]:
    """The exam: attributes of `people` strangers, names and composed facts of up to `people` figures."""
    rng = np.random.default_rng([seed, 5])
    figures, tokenizer = curriculum.figures, curriculum.tokenizer

    def question(ability, asked, detail, vectors, turns):
        if not turns:  # a base that knows nobody is not asked about anybody
            return None
        image = asked == "image"
        rows = [
            curriculum.chat(None if image else describe(v, rng, None), [turn])
            for v, turn in zip(vectors, turns, strict=True)
        ]
        portraits = (
            np.stack([np.asarray(draw(v, rng, None, IMAGE_SIZE)).transpose(2, 0, 1) for v in vectors])
            if image
            else None
        )
        return Question(ability, asked, detail, pad(rows, tokenizer.pad_token_id, None), portraits)

    questions = []
    strangers = rng.integers(0, AXIS_SIZES, size=(people, len(AXIS_SIZES)))
    groups = {group: figures.where(group)[:people] for group in ("both", "text only", "image only")}
    for asked in ("image", "text"):
        for a, axis in enumerate(AXIS_NAMES):
            turns = [(prompts.AXIS_QUESTIONS[axis], AXES[axis][int(v[a])].name) for v in strangers]
            questions.append(question("attribute", asked, axis, strangers, turns))
        other = "text only" if asked == "image" else "image only"
        for ability, group in (("name, known in both", "both"), ("alignment probe", other)):
            chosen = groups[group]
            turns = [(prompts.WHO, figures.names[i]) for i in chosen]
            questions.append(question(ability, asked, "", figures.vectors[chosen], turns))
        for fact in prompts.COMPOSED_QUESTIONS:
            for label, flag in (("composed, practised", True), ("composed, withheld", False)):
                chosen = figures.where("both")
                chosen = chosen[figures.composed[chosen] == flag][:people]
                turns = [(prompts.COMPOSED_QUESTIONS[fact], figures.facts[fact][i]) for i in chosen]
                questions.append(question(label, asked, fact, figures.vectors[chosen], turns))
    return [q for q in questions if q]


def examine(model: nn.Module, questions: list[Question]) -> list[dict[str, object]]:
    """Accuracy of every question: rows of ability, asked, detail, n, accuracy."""
    was_training = model.training
    model.eval()
    rows = [
        {"ability": q.ability, "asked": q.asked, "detail": q.detail, "n": len(q.batch.input_ids),
         "accuracy": float(correct(model, q.batch, q.portraits).mean())}
        for q in questions
    ]  # fmt: skip
    model.train(was_training)
    return rows


def summarise(rows: list[dict[str, object]]) -> dict[str, float]:
    """The exam in a dozen numbers, for progress lines and curves."""
    out = {}
    for asked in ("image", "text"):
        here = [r for r in rows if r["asked"] == asked]
        axes = [r["accuracy"] for r in here if r["ability"] == "attribute"]
        out[f"attributes from {asked}, mean"] = float(np.mean(axes))
        out[f"attributes from {asked}, worst"] = float(np.min(axes))
        for ability in ("name, known in both", "alignment probe", "composed, practised", "composed, withheld"):
            scores = [r["accuracy"] for r in here if r["ability"] == ability]
            out[f"{ability}, from {asked}"] = float(np.mean(scores)) if scores else float("nan")
    return {k: round(v, 4) for k, v in out.items()}
