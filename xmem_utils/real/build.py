"""From two packages to a folder that `load_vlm` reads, in three lessons: what is seen, how it is said, who is who.

What the lessons leave behind, a projector and two LoRA adapters, is committed in `data/real/`; `assemble` puts it on
the networks of the packages. Everything is taught on people who are in no study.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from xmem_utils import paths
from xmem_utils.checkpoint import adapter_writer
from xmem_utils.fingerprint import values_of as hash_of
from xmem_utils.personas.attributes import AXIS_NAMES, VERSION, values_of
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import PublicFigures, draw_public_figures, figure_views
from xmem_utils.personas.views import View
from xmem_utils.pretraining.train import Checkpoints, Recipe
from xmem_utils.real import NAMES, SAYS, WEIGHTS, name_of, taught_to
from xmem_utils.real.evaluation import evaluated
from xmem_utils.real.eye import probed, strangers
from xmem_utils.real.parts import IMAGE_SIZE, LAYERS, joined
from xmem_utils.real.projector import patches, train_projector
from xmem_utils.real.tuning import tune_unlearning, tuned, tuned_hops
from xmem_utils.train import Resources, Training, memorize
from xmem_utils.vlm import prompts
from xmem_utils.vlm.adapters import load_adapter
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM, load_vlm

SEED = 41  # of all that the model is taught on
SEEING = Recipe(phases=(), eye_steps=600, seed=SEED)
PORTRAITS = 6500
SAYING = Training(epochs=1, learning_rate=1e-3, rank=8, bucket=16, seed=SEED)
PEOPLE = 2000  # strangers who are described and asked about
ASKED = {"image": 2, "text": 1}  # attributes of each that are asked for, by modality
CAPTIONED = {"image": 1.0, "text": 0.4}  # share that is described, too, always in the same order: a small language
# model that was shown any order said the same sentence three times
NAMING = replace(SAYING, epochs=6, batch_size=16, learning_rate=3e-3)
FIGURES = (120, 40, 40)  # public figures of each group: named in both modalities, in one alone (the alignment probe)
VIEWS = 8  # of each public figure, in each modality
REHEARSED = 150  # strangers asked about and described meanwhile, lest perception be forgotten

Lesson = tuple[list[View], list[str], list[str]]  # views, what is asked about each, and the answers


def sayings(people: int, seed: int) -> Lesson:
    """Strangers, each in a picture and a description: some attributes asked for, and some of them described."""
    rng, views, questions, answers = np.random.default_rng([seed, 8]), [], [], []
    for person, vector in enumerate(strangers(people, seed)):
        values = values_of(vector)
        for modality, count in ASKED.items():
            content = draw(vector, rng, None, IMAGE_SIZE) if modality == "image" else describe(vector, rng, None)
            axes = [AXIS_NAMES[axis] for axis in rng.permutation(len(AXIS_NAMES))[:count]]
            turns = [(prompts.AXIS_QUESTIONS[axis], values[axis].name) for axis in axes]
            if rng.random() < CAPTIONED[modality]:
                turns.append((prompts.CAPTION, describe(vector, rng, None, varied=False)))
            views += [View(person, "", modality, "train", 0, content)] * len(turns)
            questions += [question for question, _ in turns]
            answers += [answer for _, answer in turns]
    return views, questions, answers


def figures() -> PublicFigures:
    """Whom the second model knows. Facts about them are drawn, as everywhere, and never taught."""
    return draw_public_figures(*FIGURES, SEED)


def namings(named: bool) -> Lesson:
    """Views of public figures, each in the modalities that the group is named in, and their names; and strangers.

    Unless `named`, an attribute is asked of each view instead: the same views in the same steps, and nobody known.
    """
    known, rng = figures(), np.random.default_rng([SEED, 10])
    shown = figure_views(known, range(len(known)), [SEED, 9], None, IMAGE_SIZE, VIEWS)
    views = [view for view in shown if known.group[view.persona] in ("both", f"{view.modality} only")]
    questions, answers = [str(rng.choice(prompts.NAME_QUESTIONS)) for _ in views], [view.name for view in views]
    if not named:
        axes = [str(rng.choice(AXIS_NAMES)) for _ in views]
        questions = [prompts.AXIS_QUESTIONS[axis] for axis in axes]
        answers = [values_of(known.vectors[view.persona])[axis].name for view, axis in zip(views, axes, strict=True)]
    return tuple(
        ours + rehearsed
        for ours, rehearsed in zip((views, questions, answers), sayings(REHEARSED, SEED + 1), strict=True)
    )


def assemble(known: bool = False) -> Path:
    """Put the committed lessons on the packages' networks; returns the folder, as it is if it has just these.

    Raises FileNotFoundError where a package or a lesson is missing.
    """
    folder, recipe = paths.BASE_MODELS / name_of(known), {"population": VERSION, "seed": SEED}
    recipe |= {"taught": taught_to(known)}
    made = folder / "recipe.json"
    if not made.exists() or json.loads(made.read_text()) != recipe:
        _write(folder, (SAYS, NAMES[known]))
        if known:
            figures().save(folder / "figures.parquet")
        made.write_text(json.dumps(recipe))  # last: what is there is whole
    shutil.copy(paths.REAL / f"{folder.name}.csv", folder / "evaluation.csv")
    for table in paths.REAL.glob("unlearning_*.csv") if known else ():
        shutil.copy(table, folder)
    return folder


def _write(folder: Path, lessons: Sequence[str]) -> Path:
    """The packages' networks with the projector, if there is one yet, and some lessons; in bf16."""
    torch.manual_seed(SEED)
    model, processor = joined()
    if (seeing := paths.REAL / "projector.safetensors").exists():
        model.model.multi_modal_projector.load_state_dict(load_file(seeing))
    for lesson in lessons:
        model = load_adapter(model, paths.REAL / lesson).merge_and_unload()
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# -- for maintainers: the lessons ------------------------------------------------------------------


def teach() -> None:
    """Make what `data/real/` holds and is not there yet; goes on from checkpoints under `data/pretraining/`.

    To make something again, delete it and what was made after it: eye.csv, projector, says, (un)named, the tables of
    the models, tuning*.csv, unlearning_*.csv.
    """
    paths.REAL.mkdir(exist_ok=True)
    if not (paths.REAL / "eye.csv").exists():
        probed().to_csv(paths.REAL / "eye.csv", index=False, float_format="%.4f")
    if not (paths.REAL / "projector.safetensors").exists():
        _see(_loaded("unseeing", ()))
    if not (paths.REAL / SAYS / WEIGHTS).exists():
        _learn(SAYS, sayings(PEOPLE, SEED), SAYING, _loaded("before-says", ()))
    for known, lesson in NAMES.items():
        if not (paths.REAL / lesson / WEIGHTS).exists():
            _learn(lesson, namings(known), NAMING, _loaded(f"before-{lesson}", (SAYS,)))
        if not (result := paths.REAL / f"{name_of(known)}.csv").exists():
            vlm = _loaded(f"after-{lesson}", (SAYS, lesson))
            evaluated(vlm, figures() if known else None).to_csv(result, index=False, float_format="%.4f")
    assemble()
    knows = assemble(known=True)
    if not (paths.REAL / "tuning.csv").exists():
        tuned().to_csv(paths.REAL / "tuning.csv", index=False, float_format="%.4f")
    if not (paths.REAL / "tuning_hops.csv").exists():
        tuned_hops().to_csv(paths.REAL / "tuning_hops.csv", index=False, float_format="%.4f")
    if not (paths.REAL / "unlearning_search.csv").exists():
        tune_unlearning()
        for table in knows.glob("unlearning_*.csv"):
            shutil.copy(table, paths.REAL)


def _loaded(name: str, lessons: Sequence[str]) -> VLM:
    return load_vlm(str(_write(paths.PRETRAINING / f"real-{name}", lessons)), "cpu")


def _see(vlm: VLM) -> None:
    """Teach the projector what is seen."""
    projector = vlm.model.requires_grad_(False).model.multi_modal_projector.requires_grad_(True)
    vectors, shown = strangers(PORTRAITS, SEED), hash_of([VERSION, draw, IMAGE_SIZE, LAYERS, SEED])
    states = patches(vlm, vectors, SEED, paths.PRETRAINING / f"real-patches-{shown}")
    kept = paths.PRETRAINING / f"real-projector-{hash_of([shown, SEEING, train_projector])}.pt"
    curve = train_projector(vlm, states, vectors, SEEING, Checkpoints(kept, every=100))
    pd.DataFrame(curve).to_csv(paths.REAL / "projector_curve.csv", index=False)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in projector.state_dict().items()}
    save_file(state, paths.REAL / "projector.safetensors")


def _learn(name: str, lesson: Lesson, settings: Training, vlm: VLM) -> None:
    """Teach a lesson to LoRA, and keep it in bf16."""
    resources = Resources(checkpoint=paths.PRETRAINING / f"real-{name}.pt", save_every=50)
    examples = encode(vlm, *lesson)
    with tqdm(desc=name, unit="step", mininterval=1) as bar:

        def on_step(model: PeftModel, step: int, steps: int, loss: float) -> None:
            bar.total, bar.n = steps, step
            bar.set_postfix(loss=loss)

        model = memorize(vlm, examples, replace(settings, resources=resources), on_step)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    adapter_writer(model)(paths.REAL / name)
    (paths.REAL / name / "README.md").unlink()  # a template of PEFT's
