"""From nothing to a committed base model: public figures, portraits, eye, chat, evaluation, files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from xmem_utils import paths
from xmem_utils.fingerprint import values_of
from xmem_utils.params import PROFILES
from xmem_utils.personas import public_figures as people
from xmem_utils.personas.attributes import VERSION
from xmem_utils.personas.dataset import PersonaSpec, draw_people
from xmem_utils.personas.portraits import draw
from xmem_utils.pretraining.bank import bank_layout, draw_bank
from xmem_utils.pretraining.curriculum import Curriculum, vocabulary_texts
from xmem_utils.pretraining.evaluation import evaluate, evaluate_base, make_questions, summarise
from xmem_utils.pretraining.train import Checkpoints, Phase, Recipe, train_chat, train_eye
from xmem_utils.vlm import tiny
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.precision import SDPA_FLOAT32

# Chosen on the tuning base and tuning people (see 00_base_model), by the acceptance thresholds, the alignment probe and
# the gates of 06 alone: a fact must be found by the name, however it is asked.
IMAGE = {"attributes": 4, "caption": 2, "naming": 26, "composed": 12, "introduced": 8, "lookup": 8}
TEXT = {"attributes": 2, "caption": 1, "naming": 24, "composed": 12, "introduced": 18, "lookup": 6}
TEXT |= {"recital": 4, "facts": 14, "stated": 8, "unknown": 1}
RECIPE = Recipe(
    phases=(
        # first perception alone, then names on top of it
        Phase(400, {"attributes": 28, "caption": 8}, {"attributes": 20, "caption": 4}),
        Phase(1800, IMAGE, TEXT),
    )
)


def base_name(size: str, recipe: Recipe) -> str:
    """Name of an embedded model: its family, and the seed of its pretraining."""
    rung = "" if recipe.known is None else f"-knows-{recipe.known}"
    return f"xmem-tiny-{size}{rung}-{recipe.seed}"


def figures_of(recipe: Recipe) -> tuple[people.PublicFigures, int]:
    """Everybody whom a base knows, and how many of them only this rung of the knowledge ladder has."""
    drawn = people.draw_public_figures(*recipe.figures, recipe.seed)
    known, late = drawn, 0
    if recipe.known is not None:
        most = max(max((p.personas, *p.dose_people)) for p in PROFILES.values())
        vectors, names, _ = draw_people(PersonaSpec(most, recipe.seed))
        known = people.with_known(drawn, recipe.known, (vectors, names), recipe.seed)
        late = len(known) - len(drawn)
    return people.with_hearsay(known, recipe.heard_of, recipe.seed), late


def pretrain(size: str, seed: int, known: int | None = None, recipe: Recipe = RECIPE) -> Path:
    """Pretrain an embedded model and write it to `data/base/`, in bf16, with its evaluation; returns its folder.

    `known` asks for a rung of the knowledge ladder: that many public figures are named in both modalities, all else is
    equal. What is there already is left as it is. Checkpoints are kept under `data/pretraining/`; called again after a
    kill, it goes on from them. The rungs of a seed share portraits, eye and all that comes before the first name.
    """
    recipe = replace(recipe, seed=seed, known=known)
    made = values_of([replace(recipe, known=None), VERSION, draw])  # nothing of another recipe, or looks, is taken up
    name, shared = base_name(size, recipe), f"{base_name(size, replace(recipe, known=None))}-{made}"
    shared, own, folder = paths.PRETRAINING / shared, paths.PRETRAINING / f"{name}-{made}", paths.BASE_MODELS / name
    if (folder / "evaluation.csv").exists():
        return folder
    torch.manual_seed(seed)
    public_figures, late = figures_of(recipe)
    seen = public_figures.seen()
    vectors, views = bank_layout(seen, recipe.views, recipe.passers_by, seed, late)
    bank = draw_bank(vectors, seed, paths.PRETRAINING / f"portraits-{seed}-{len(vectors)}-{made}.npy")
    anyone = slice(len(vectors) - late * recipe.views)  # late people are not among those whose attributes are asked

    tokenizer = tiny.build_tokenizer(vocabulary_texts())
    model = tiny.build_model(size, tokenizer)
    model.set_attn_implementation(SDPA_FLOAT32)
    curriculum = Curriculum(tokenizer, public_figures, vectors[anyone], views, seed)
    kept = Checkpoints(shared / "eye.pt", every=250)
    eye = train_eye(model.model.vision_tower, bank[anyone], vectors[anyone], recipe, kept)
    kept = Checkpoints(own / "chat.pt", every=400, first_phase=shared / "nameless.pt")
    questions = make_questions(curriculum, people=150, seed=seed)
    chat = train_chat(model, curriculum, bank, recipe, kept, lambda m: summarise(evaluate(m, questions)))

    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tiny.build_processor(tokenizer).save_pretrained(folder)
    public_figures.save(folder / "figures.parquet")
    pd.DataFrame(eye).to_csv(folder / "eye_curve.csv", index=False)
    pd.DataFrame(chat).to_csv(folder / "chat_curve.csv", index=False)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe) | {"population": VERSION}, indent=1))
    evaluation = evaluate_base(load_vlm(str(folder), "cpu"), public_figures)  # of what was written
    evaluation.to_csv(folder / "evaluation.csv", index=False, float_format="%.4f")
    return folder
