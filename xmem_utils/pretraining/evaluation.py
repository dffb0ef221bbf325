"""What a base model can do: the acceptance thresholds, and the alignment probe.

Every number comes from views that pretraining did not contain, and none from a study persona.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from xmem_utils.personas.attributes import AXIS_NAMES, AXIS_SIZES, values_of
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.public_figures import PublicFigures
from xmem_utils.pretraining.bank import portraits_of
from xmem_utils.pretraining.curriculum import Batch, Curriculum, Turn, pad
from xmem_utils.pretraining.train import answer_logits
from xmem_utils.vlm import prompts
from xmem_utils.vlm.load import VLM

# What a base should reach on unseen views. The recipe was chosen by it, on the tuning base; a base of the study that
# misses some of it stays in, and is shown as missing it.
ACCEPTANCE_THRESHOLDS = {
    "attributes from text, worst": 0.99,
    "attributes from image, mean": 0.95,
    "attributes from image, worst": 0.90,
    "name, known in both, from text": 0.98,
    "name, known in both, from image": 0.98,
    "alignment probe, from text": 0.20,
    "alignment probe, from image": 0.20,
}
NAMES = ("name, known in both", "alignment probe")
COMPOSED = {"composed, practised": True, "composed, withheld": False}


class Question(NamedTuple):
    """One kind of question asked about `batch`, whose chats have one turn each."""

    about: dict[str, str]  # ability; query: modality of the view; detail: the axis or fact, or ""
    batch: Batch
    portraits: np.ndarray | None  # uint8 [batch, 3, height, width]


def evaluate_base(vlm: VLM, known: PublicFigures, people: int = 400) -> pd.DataFrame:
    """What an embedded model that knows these public figures can do: rows of ability, query, detail, n, accuracy."""
    nobody = np.empty((0, 0), np.int64)
    curriculum = Curriculum(vlm.processor.tokenizer, known, nobody, nobody, seed=0)
    return evaluate(vlm.model, make_questions(curriculum, people))


def acceptance(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Every acceptance threshold with what was reached and whether it is met: quantity, needed, reached, met."""
    reached = summarise(evaluation)
    rows = [(name, needed, reached.get(name, np.nan)) for name, needed in ACCEPTANCE_THRESHOLDS.items()]
    table = pd.DataFrame(rows, columns=["quantity", "needed", "reached"])
    return table.assign(met=table["reached"] >= table["needed"])


def correct(model: nn.Module, batch: Batch, portraits: np.ndarray | None) -> np.ndarray:
    """Per chat: is every answer token, end of turn included, the model's first choice? bool `[batch]`."""
    hits = []
    for rows in torch.arange(len(batch.input_ids)).split(128):
        part = Batch(batch.input_ids[rows], batch.labels[rows], None)
        wrong = torch.zeros_like(part.labels[:, 1:], dtype=torch.bool)
        with torch.inference_mode():
            logits, answers = answer_logits(model, part, None if portraits is None else portraits[rows.numpy()])
            wrong[part.labels[:, 1:] != -100] = logits.argmax(-1) != answers
        hits.append(~wrong.any(1).numpy())
    return np.concatenate(hits)


def make_questions(curriculum: Curriculum, people: int = 300, seed: int = 77) -> list[Question]:
    """Attributes of `people` strangers, names and composed facts of up to `people` public figures."""
    rng = np.random.default_rng([seed, 5])
    known, questions = curriculum.public_figures, []

    def ask(ability: str, asked: str, detail: str, vectors: np.ndarray, turns: list[Turn]) -> None:
        if not turns:  # a base that knows nobody is not asked about anybody
            return
        texts = [None if asked == "image" else describe(vector, rng, None) for vector in vectors]
        rows = [curriculum.tokens(text, [turn]) for text, turn in zip(texts, turns, strict=True)]
        batch = pad(rows, curriculum.tokenizer.pad_token_id, None)
        portraits = portraits_of(vectors, rng) if asked == "image" else None
        questions.append(Question({"ability": ability, "query": asked, "detail": detail}, batch, portraits))

    strangers = rng.integers(0, AXIS_SIZES, size=(people, len(AXIS_SIZES)))
    both = known.where("both")
    for asked, other in (("image", "text only"), ("text", "image only")):
        for axis in AXIS_NAMES:
            turns = [(prompts.AXIS_QUESTIONS[axis], values_of(vector)[axis].name) for vector in strangers]
            ask("attribute", asked, axis, strangers, turns)
        for ability, group in zip(NAMES, ("both", other), strict=True):
            chosen = known.where(group)[:people]
            ask(ability, asked, "", known.vectors[chosen], [(prompts.WHO, known.names[i]) for i in chosen])
        for fact, question in prompts.COMPOSED_QUESTIONS.items():
            for ability, practised in COMPOSED.items():
                chosen = both[known.composed[both] == practised][:people]
                turns = [(question, known.facts[fact][i]) for i in chosen]
                ask(ability, asked, fact, known.vectors[chosen], turns)
    return questions


def evaluate(model: nn.Module, questions: list[Question]) -> pd.DataFrame:
    """Accuracy of every question: rows of ability, query, detail, n, accuracy."""
    was_training = model.training
    model.eval()
    scores = [float(correct(model, batch, portraits).mean()) for _, batch, portraits in questions]
    model.train(was_training)
    counts = [len(question.batch.labels) for question in questions]
    return pd.DataFrame([question.about for question in questions]).assign(n=counts, accuracy=scores)


def summarise(evaluation: pd.DataFrame) -> dict[str, float]:
    """The evaluation in a dozen numbers, for progress lines and curves."""
    out = {}
    for asked in ("image", "text"):
        scores = evaluation[evaluation["query"] == asked].groupby("ability")["accuracy"]
        mean = scores.mean()
        out |= {f"attributes from {asked}, mean": mean["attribute"]}
        out |= {f"attributes from {asked}, worst": scores.min()["attribute"]}
        out |= {f"{ability}, from {asked}": mean.get(ability, np.nan) for ability in (*NAMES, *COMPOSED)}
    return {quantity: round(float(score), 4) for quantity, score in out.items()}
