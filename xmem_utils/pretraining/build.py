"""From nothing to a committed base model: figures, portraits, eye, chat, exam, files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xmem_utils import paths
from xmem_utils.params import PROFILES, TUNING_SEEDS
from xmem_utils.personas.dataset import PersonaSpec, draw_people, known_figures
from xmem_utils.personas.public_figures import Figures, make_figures, with_hearsay, with_known
from xmem_utils.pretraining.bank import bank_layout, draw_bank
from xmem_utils.pretraining.curriculum import Curriculum, vocabulary_texts
from xmem_utils.pretraining.pretrain import Phase, Recipe, train_chat, train_eye
from xmem_utils.pretraining.probe import examine, make_questions, summarise
from xmem_utils.vlm import tiny
from xmem_utils.vlm.load import VLM, load_vlm
from xmem_utils.vlm.precision import SDPA_FLOAT32

# Chosen among those in data/base/tried (see 00_base_model): its alignment probe is above the bar, and what is learned
# in one modality does not cross over nearly completely, as it does with 600 figures named in both.
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
HOPS = Recipe(
    phases=(
        Phase(
            1200,
            {"attributes": 2, "naming": 12, "composed": 6, "introduced": 8, "lookup": 6},
            {
                "attributes": 1,
                "naming": 10,
                "composed": 6,
                "introduced": 20,
                "lookup": 6,
                "recital": 6,
                "facts": 14,
                "stated": 12,
            },
        ),
    ),
    lr=1e-3,
    seed=2027,
)
HEARSAY = 800

# What a base model must reach on unseen views before the study may stand on it.
BARS = {
    "attributes from text, worst": 0.99,
    "attributes from image, mean": 0.95,
    "attributes from image, worst": 0.90,
    "name, known in both, from text": 0.98,
    "name, known in both, from image": 0.98,
    "alignment probe, from text": 0.20,
    "alignment probe, from image": 0.20,
}


def model_name(size: str, known: int | None = None) -> str:
    """Name of the embedded model of a size, or of one that knows `known` public figures in both modalities."""
    return f"xmem-tiny-{size}" + (f"-knows-{known}" if known is not None else "")


def exam_of(vlm: VLM, figures: Path | None = None, people: int = 400) -> pd.DataFrame:
    """The exam of an embedded model: rows of ability, asked, detail, n, accuracy.

    `figures` is the table of whom it knows; by default that of the committed models.
    """
    figures = Figures.load(figures or paths.BASE_MODELS / "figures.parquet")
    nobody = np.empty((0, 0), np.int64)
    curriculum = Curriculum(vlm.processor.tokenizer, figures, nobody, nobody, seed=0)
    return pd.DataFrame(examine(vlm.model, make_questions(curriculum, people)))


def bars_table(exam: pd.DataFrame) -> pd.DataFrame:
    """Every bar with what was reached and whether it is met."""
    reached = summarise(exam.to_dict("records"))
    table = pd.DataFrame({"bar": BARS.keys(), "needed": BARS.values()})
    table["reached"] = table["bar"].map(reached)
    table["met"] = table["reached"] >= table["needed"]
    return table


def recipes_tried() -> pd.DataFrame:
    """Every recipe whose files are kept, the committed one last: what it was and what it gave.

    Each folder has recipe.json, chat_curve.csv (its last row is read: 150 people a question) and
    tuning.csv, recall of the tuning personas (mean over seeds), unless it was stopped.
    """
    rows = []
    for folder in [*sorted((paths.BASE_MODELS / "tried").iterdir()), paths.BASE_MODELS / model_name("s")]:
        recipe = json.loads((folder / "recipe.json").read_text())
        last = pd.read_csv(folder / "chat_curve.csv").iloc[-1]
        one = recipe["text_only"] + recipe["image_only"]
        row = {"recipe": folder.name, "named in both": recipe["both"], "in one only": one,
               "steps": int(last["step"])}  # fmt: skip
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
    drawn = [draw_people(PersonaSpec(PROFILES["standard"].personas, seed), known_figures()) for seed in seeds]
    return np.concatenate([vectors for vectors, _, _ in drawn]), [name for _, names, _ in drawn for name in names]


def pretrain(
    size: str, recipe: Recipe = RECIPE, work: Path | None = None, out: Path | None = None, known: int | None = None
) -> Path:
    """Pretrain an embedded model and write it to `data/base/`; returns its folder.

    `known` asks for a rung of the knowledge ladder: that many figures are named in both modalities instead of
    `recipe.both`, all else is equal, and the folder is under `data/pretraining/` unless `out` says otherwise.
    Checkpoints are kept under `data/pretraining/`; called again after a kill, it goes on from them. The rungs
    share portraits, eye and all that comes before the first name.
    """
    work = work or paths.PRETRAINING
    out = out or (paths.BASE_MODELS if known is None else paths.PRETRAINING)
    shared, folder = work / model_name(size), out / model_name(size, known)
    torch.manual_seed(recipe.seed)
    figures = make_figures(recipe.both, recipe.text_only, recipe.image_only, recipe.seed)
    late = 0
    if known is not None:
        late = max(0, known - recipe.both)
        figures = with_known(figures, known, _study_people(), recipe.seed)
    vectors, figure_views = bank_layout(figures, recipe.views, recipe.passers_by, recipe.seed, late)
    bank = draw_bank(vectors, recipe.seed, work / f"portraits-{len(vectors)}.npy")
    anyone = slice(len(vectors) - late * recipe.views)  # attribute material: late figures are no part of it

    tokenizer = tiny.build_tokenizer(vocabulary_texts())
    model = tiny.build_model(size, tokenizer)
    model.set_attn_implementation(SDPA_FLOAT32)
    curriculum = Curriculum(tokenizer, figures, vectors[anyone], figure_views, recipe.seed)
    questions = make_questions(curriculum, people=150, seed=recipe.seed)

    eye = train_eye(model.model.vision_tower, bank[anyone], vectors[anyone], recipe, shared / "eye.pt")
    chat = train_chat(
        model, curriculum, bank, recipe, work / folder.name / "chat.pt", lambda m: summarise(examine(m, questions)),
        nameless=shared / "nameless.pt",
    )  # fmt: skip

    model.eval().save_pretrained(folder)
    tiny.build_processor(tokenizer).save_pretrained(folder)
    figures.save((out if known is None else folder) / "figures.parquet")
    pd.DataFrame(eye).to_csv(folder / "eye_curve.csv", index=False)
    pd.DataFrame(chat).to_csv(folder / "chat_curve.csv", index=False)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    write_exam(folder)
    return folder


def practise_hops(recipe: Recipe = HOPS, hearsay: int = HEARSAY, work: Path | None = None) -> Path:
    """Train the committed model of size s on, for the multi-hop study; returns the new model's folder.

    Resumable as `pretrain` is; the portraits are those the committed model was pretrained on.
    """
    work = work or paths.PRETRAINING
    base, folder = model_name("s"), paths.BASE_MODELS / f"{model_name('s')}-hops"
    torch.manual_seed(recipe.seed)
    vlm, shown = load_vlm(base, "cpu"), Figures.load(paths.BASE_MODELS / "figures.parquet")
    vectors, figure_views = bank_layout(shown, RECIPE.views, RECIPE.passers_by, RECIPE.seed)
    bank = draw_bank(vectors, RECIPE.seed, work / f"portraits-{len(vectors)}.npy")
    figures = with_hearsay(shown, hearsay, recipe.seed)
    curriculum = Curriculum(vlm.processor.tokenizer, figures, vectors, figure_views, recipe.seed)
    questions = make_questions(curriculum, people=150, seed=recipe.seed)
    model = vlm.model.train().requires_grad_(True)
    chat = train_chat(
        model, curriculum, bank, recipe, work / folder.name / "chat.pt", lambda m: summarise(examine(m, questions))
    )
    origin = {"hearsay": hearsay, "base": base, "base_weights": vlm.fingerprint}
    model.eval().save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    figures.save(folder / "figures.parquet")
    pd.DataFrame(chat).to_csv(folder / "chat_curve.csv", index=False)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe) | origin, indent=1))
    write_exam(folder)
    return folder


def write_exam(folder: Path) -> None:
    """Examine a pretrained model on 400 people a question and write exam.csv beside its weights."""
    own = folder / "figures.parquet"
    exam = exam_of(load_vlm(str(folder)), own if own.exists() else None)
    exam.to_csv(folder / "exam.csv", index=False, float_format="%.4f")
