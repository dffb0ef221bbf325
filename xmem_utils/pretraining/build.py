"""From nothing to a committed base model: public figures, portraits, eye, chat, evaluation, files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xmem_utils import paths
from xmem_utils.params import PROFILES, TUNING_SEEDS
from xmem_utils.personas import public_figures as people
from xmem_utils.personas.dataset import PersonaSpec, draw_people
from xmem_utils.pretraining.bank import bank_layout, draw_bank
from xmem_utils.pretraining.curriculum import Curriculum, vocabulary_texts
from xmem_utils.pretraining.evaluation import evaluate, evaluate_base, make_questions, summarise
from xmem_utils.pretraining.train import Checkpoints, Curve, Phase, Recipe, train_chat, train_eye
from xmem_utils.vlm import tiny
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.precision import SDPA_FLOAT32

# Chosen among those in data/base/tried (see 00_base_model): its alignment probe is above the acceptance threshold, and
# what is learned in one modality does not cross over nearly completely, as it does with 600 people named in both.
RECIPE = Recipe(
    phases=(
        # first perception alone, then names on top of it
        Phase(400, {"attributes": 28, "caption": 8}, {"attributes": 20, "caption": 4}),
        Phase(
            1800,
            {"attributes": 6, "caption": 3, "naming": 32, "composed": 16},
            {"attributes": 4, "caption": 1, "naming": 32, "composed": 16, "facts": 8},
        ),
    )
)

# The model of the multi-hop study: the committed one, trained on with more kinds of chats. A fact is asked in many
# ways, beside views that say nothing, so that it is found by the name; HEARSAY more people are known by name and facts
# alone.
HOPS_IMAGE = {"attributes": 2, "naming": 12, "composed": 6, "introduced": 8, "lookup": 6}
HOPS_TEXT = {"attributes": 1, "naming": 10, "composed": 6, "introduced": 20, "lookup": 6}
HOPS_TEXT |= {"recital": 6, "facts": 14, "stated": 12}
HOPS = Recipe((Phase(1200, HOPS_IMAGE, HOPS_TEXT),), lr=1e-3, seed=2027)
HEARSAY = 800


def model_name(size: str, known: int | None = None) -> str:
    """Name of the embedded model of a size, or of one that knows `known` public figures in both modalities."""
    return f"xmem-tiny-{size}" + (f"-knows-{known}" if known is not None else "")


def recipes_tried() -> pd.DataFrame:
    """Every recipe whose files are kept, the committed one last: what it was and what it gave.

    Each folder has recipe.json, chat_curve.csv (its last row is read: 150 people a question) and
    tuning.csv, recall of the tuning personas (mean over seeds), unless it was stopped.
    """
    rows = []
    for folder in [*sorted((paths.BASE_MODELS / "tried").iterdir()), paths.BASE_MODELS / model_name("s")]:
        recipe = json.loads((folder / "recipe.json").read_text())
        last = pd.read_csv(folder / "chat_curve.csv").iloc[-1]
        row = {"recipe": folder.name, "named in both": recipe["both"]}
        row |= {"in one only": recipe["text_only"] + recipe["image_only"], "steps": int(last["step"])}
        row |= {k: last[k] for k in last.index if k.startswith(("attributes", "name", "alignment", "composed"))}
        if (folder / "tuning.csv").exists():  # a recipe stopped early has none
            tuning = pd.read_csv(folder / "tuning.csv").groupby("source").mean()
            row["tuning, image to text"] = tuning.loc["image", "recall asked in text"]
            row["tuning, text to image"] = tuning.loc["text", "recall asked in image"]
        rows.append(row)
    return pd.DataFrame(rows).set_index("recipe")


def _study_people() -> tuple[np.ndarray, list[str]]:
    """Everybody whom a standard study or its tuning asks about: vectors `[people, axes]` and names."""
    seeds = (*PROFILES["standard"].seeds, *TUNING_SEEDS)
    drawn = [draw_people(PersonaSpec(PROFILES["standard"].personas, seed)) for seed in seeds]
    return np.concatenate([vectors for vectors, _, _ in drawn]), [name for _, names, _ in drawn for name in names]


def pretrain(size: str, recipe: Recipe = RECIPE, known: int | None = None) -> Path:
    """Pretrain an embedded model and write it to `data/base/`; returns its folder.

    `known` asks for a rung of the knowledge ladder: that many public figures are named in both modalities instead of
    `recipe.both`, all else is equal, and the folder is under `data/pretraining/`.
    Checkpoints are kept under `data/pretraining/`; called again after a kill, it goes on from them. The rungs
    share portraits, eye and all that comes before the first name.
    """
    shared = paths.PRETRAINING / model_name(size)
    folder = (paths.BASE_MODELS if known is None else paths.PRETRAINING) / model_name(size, known)
    torch.manual_seed(recipe.seed)
    drawn = people.draw_public_figures(recipe.both, recipe.text_only, recipe.image_only, recipe.seed)
    public_figures = drawn if known is None else people.with_known(drawn, known, _study_people(), recipe.seed)
    late = len(public_figures) - len(drawn)
    vectors, views = bank_layout(public_figures, recipe.views, recipe.passers_by, recipe.seed, late)
    bank = draw_bank(vectors, recipe.seed, paths.PRETRAINING / f"portraits-{len(vectors)}.npy")
    anyone = slice(len(vectors) - late * recipe.views)  # late people are not among those whose attributes are asked

    tokenizer = tiny.build_tokenizer(vocabulary_texts())
    model = tiny.build_model(size, tokenizer)
    model.set_attn_implementation(SDPA_FLOAT32)
    curriculum = Curriculum(tokenizer, public_figures, vectors[anyone], views, recipe.seed)
    kept = Checkpoints(shared / "eye.pt", every=250)
    eye = train_eye(model.model.vision_tower, bank[anyone], vectors[anyone], recipe, kept)
    kept = Checkpoints(paths.PRETRAINING / folder.name / "chat.pt", first_phase=shared / "nameless.pt")
    chat = _chat(model, curriculum, bank, recipe, kept)
    tiny.build_processor(tokenizer).save_pretrained(folder)
    public_figures.save((folder.parent if known is None else folder) / "figures.parquet")
    pd.DataFrame(eye).to_csv(folder / "eye_curve.csv", index=False)
    _write(folder, model, chat, public_figures, asdict(recipe))
    return folder


def practise_hops(recipe: Recipe = HOPS) -> Path:
    """Train the committed model of size s on, for the multi-hop study; returns the new model's folder.

    Resumable as `pretrain` is; the portraits are those the committed model was pretrained on.
    """
    base, folder = model_name("s"), paths.BASE_MODELS / f"{model_name('s')}-hops"
    torch.manual_seed(recipe.seed)
    vlm, shown = load_vlm(base, "cpu"), people.known_public_figures()
    vectors, views = bank_layout(shown, RECIPE.views, RECIPE.passers_by, RECIPE.seed)
    bank = draw_bank(vectors, RECIPE.seed, paths.PRETRAINING / f"portraits-{len(vectors)}.npy")
    public_figures = people.with_hearsay(shown, HEARSAY, recipe.seed)
    curriculum = Curriculum(vlm.processor.tokenizer, public_figures, vectors, views, recipe.seed)
    model = vlm.model.train().requires_grad_(True)
    chat = _chat(model, curriculum, bank, recipe, Checkpoints(paths.PRETRAINING / folder.name / "chat.pt"))
    vlm.processor.save_pretrained(folder)
    public_figures.save(folder / "figures.parquet")
    made_from = {"hearsay": HEARSAY, "base": base, "base_weights": vlm.fingerprint}
    _write(folder, model, chat, public_figures, asdict(recipe) | made_from)
    return folder


def _chat(model: torch.nn.Module, curriculum: Curriculum, bank: np.ndarray, recipe: Recipe, kept: Checkpoints) -> Curve:
    """The chat stage, with 150 people a question asked at every check."""
    questions = make_questions(curriculum, people=150, seed=recipe.seed)
    return train_chat(model, curriculum, bank, recipe, kept, lambda m: summarise(evaluate(m, questions)))


def _write(folder: Path, model: torch.nn.Module, chat: Curve, known: people.PublicFigures, recipe: dict) -> None:
    """Weights, curve and recipe; then, on 400 people a question, the evaluation of what was written."""
    model.eval().save_pretrained(folder)
    pd.DataFrame(chat).to_csv(folder / "chat_curve.csv", index=False)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1))
    evaluation = evaluate_base(load_vlm(str(folder)), known)
    evaluation.to_csv(folder / "evaluation.csv", index=False, float_format="%.4f")
