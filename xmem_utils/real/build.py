"""From two packages to a folder that `load_vlm` reads, in three lessons: what is seen, how it is said, who is who.

What the lessons leave behind, a projector and two LoRA adapters, is committed in `data/real/`; `assemble` puts it on
the networks of the packages. Everything is taught on people who are in no study.
"""

from __future__ import annotations

import json
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
from xmem_utils.params import TUNING_SEEDS
from xmem_utils.perception import readout
from xmem_utils.personas.attributes import AXIS_NAMES, VERSION, values_of
from xmem_utils.personas.dataset import PersonaSpec, load_personas
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import FIGURES, GROUPS, PublicFigures, draw_public_figures, figure_views
from xmem_utils.personas.views import View
from xmem_utils.pretraining.evaluation import NAMES
from xmem_utils.pretraining.train import Checkpoints, Recipe
from xmem_utils.real import name_of
from xmem_utils.real.eye import probed
from xmem_utils.real.parts import IMAGE_SIZE, joined
from xmem_utils.real.projector import patches, strangers, train_projector
from xmem_utils.score import exact_match
from xmem_utils.train import Resources, Training, memorize
from xmem_utils.vlm import prompts
from xmem_utils.vlm.adapters import load_adapter
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM, load_vlm

SEED = 41  # of all that the model is taught on
SEES = Recipe(phases=(), eye_steps=600, seed=SEED)
PORTRAITS = 6500
SAYS = Training(epochs=1, learning_rate=1e-3, rank=8, bucket=16, seed=SEED)
PEOPLE = 2000  # strangers who are described and asked about
ASKED = {"image": 2, "text": 1}  # attributes of each that are asked for, by modality
CAPTIONED = {"image": 1.0, "text": 0.4}  # share that is described, too, always in the same order: a small language
# model that was shown any order said the same sentence three times
KNOWS = replace(SAYS, epochs=6)
PROBED = 100  # public figures named in one modality alone, of each: the alignment probe
VIEWS = 4  # of each public figure, in each modality
EVALUATED = 150  # tuning people whose attributes are asked
REHEARSED = 300  # strangers asked about and described meanwhile, lest perception be forgotten

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
    """Whom the second model knows: the public figures of an embedded base, of each group whose name is taught."""
    return draw_public_figures(*FIGURES, SEED)


def shown(known: PublicFigures, split: str | None, count: int) -> dict[str, list[View]]:
    """Views of public figures, by group."""
    few = {group: known.where(group)[: None if group == "both" else PROBED] for group in GROUPS}
    return {group: figure_views(known, chosen, [SEED, 9], split, IMAGE_SIZE, count) for group, chosen in few.items()}


def namings() -> Lesson:
    """Public figures and their names, each in the modalities that the group is named in; and strangers."""
    by_group = shown(figures(), None, VIEWS)
    views = [view for group, own in by_group.items() for view in own if group in ("both", f"{view.modality} only")]
    rng = np.random.default_rng([SEED, 10])
    questions = [str(rng.choice(prompts.NAME_QUESTIONS)) for _ in views]
    rehearsed = sayings(REHEARSED, SEED + 1)
    return views + rehearsed[0], questions + rehearsed[1], [view.name for view in views] + rehearsed[2]


def assemble(known: bool = False) -> Path:
    """Put the committed lessons on the packages' networks; returns the folder, as it is if it is there."""
    folder = paths.BASE_MODELS / name_of(known)
    if (folder / "evaluation.csv").exists():
        return folder
    _write(folder, ("says", "knows") if known else ("says",))
    (folder / "recipe.json").write_text(json.dumps({"population": VERSION, "seed": SEED}))
    if known:
        figures().save(folder / "figures.parquet")
    (folder / "evaluation.csv").write_bytes((paths.REAL / f"{folder.name}.csv").read_bytes())
    return folder


def _write(folder: Path, lessons: Sequence[str]) -> VLM:
    """The packages' networks with the projector, if there is one yet, and some lessons; in bf16, loaded from there."""
    torch.manual_seed(SEED)
    model, processor = joined()
    if (seeing := paths.REAL / "projector.safetensors").exists():
        model.model.multi_modal_projector.load_state_dict(load_file(seeing))
    for lesson in lessons:
        model = load_adapter(model, paths.REAL / lesson).merge_and_unload()
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_vlm(str(folder), "cpu")


# -- for maintainers: the lessons ------------------------------------------------------------------


def teach() -> None:
    """Make what `data/real/` holds and is not there yet; goes on from checkpoints under `data/pretraining/`."""
    paths.REAL.mkdir(exist_ok=True)
    if not (paths.REAL / "eye.csv").exists():
        probed().to_csv(paths.REAL / "eye.csv", index=False, float_format="%.4f")
    if not (paths.REAL / "projector.safetensors").exists():
        _see(_write(paths.PRETRAINING / "real-unseeing", ()))
    for known, lesson, settings, before in ((False, "says", SAYS, ()), (True, "knows", KNOWS, ("says",))):
        if not (paths.REAL / lesson / "adapter_model.safetensors").exists():
            vlm = _write(paths.PRETRAINING / f"real-before-{lesson}", before)
            _learn(lesson, namings() if known else sayings(PEOPLE, SEED), settings, vlm)
        if not (result := paths.REAL / f"{name_of(known)}.csv").exists():
            vlm = _write(paths.PRETRAINING / f"real-after-{lesson}", (*before, lesson))
            evaluated(vlm, known).to_csv(result, index=False, float_format="%.4f")


def _see(vlm: VLM) -> None:
    """Teach the projector what is seen."""
    projector = vlm.model.requires_grad_(False).model.multi_modal_projector.requires_grad_(True)
    vectors = strangers(PORTRAITS, SEED)
    states = patches(vlm, vectors, SEED, paths.PRETRAINING / "real-patches")
    curve = train_projector(vlm, states, vectors, SEES, Checkpoints(paths.PRETRAINING / "real-projector.pt", every=100))
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
    model.save_pretrained(paths.REAL / name)


def evaluated(vlm: VLM, known: bool) -> pd.DataFrame:
    """What it can do, on new views, as `pretraining.evaluation` has it: ability, query, detail, n, accuracy.

    Attributes are chosen among the values of their axis, about tuning people.
    """
    spec = PersonaSpec(EVALUATED, TUNING_SEEDS[0], train_views=1, test_views=1, size=IMAGE_SIZE, base=SEED)
    people, _ = load_personas(spec)
    read = readout(vlm, people).groupby(["query", "axis"], sort=False)["correct"].agg(["size", "mean"]).reset_index()
    read.columns = ["query", "detail", "n", "accuracy"]
    rows = [read.assign(ability="attribute")]
    for group, views in shown(figures(), "test", 1).items() if known else ():
        for modality in ("image", "text"):
            own = [view for view in views if view.modality == modality and group != f"{modality} only"]
            if own:
                exact = exact_match(vlm, encode(vlm, own)).exact
                about = {"ability": NAMES[group != "both"], "query": modality, "detail": ""}
                rows.append(pd.DataFrame([about | {"n": len(own), "accuracy": exact.mean()}]))
    return pd.concat(rows)[["ability", "query", "detail", "n", "accuracy"]]
