"""Six hand-drawn people with four training views each, as README describes them, through the study."""

import random

import pandas as pd
import pytest
from PIL import Image, ImageDraw

from xmem_utils import params, paths
from xmem_utils.memorization.evaluation import recall_by_modality
from xmem_utils.memorization.experiment import GATE, LONGEST, Memorization
from xmem_utils.params import Profile

LOOKS = {  # skin, hair, long hair, glasses, shirt
    "Ada Lin": ("#f2d3b1", "black", False, True, "red"),
    "Bo Kern": ("#8d5524", "dimgray", False, False, "blue"),
    "Cleo Marsh": ("#ffdbac", "gold", True, False, "green"),
    "Dov Pell": ("#e0ac69", "sienna", False, True, "white"),
    "Ella Voss": ("#5c3a21", "black", True, False, "pink"),
    "Finn Oake": ("#ffe0c0", "silver", False, False, "black"),
}
FRAMES = {
    "train": ("Someone with {} hair, in {}.", "In {1}: a person whose hair is {0}.", "You notice {} hair, and {}.",
              "A picture of {1}; the hair is {0}."),
    "test": ("Here stands somebody in {1} who has {0} hair.", "Look at the hair, {}, and at {}."),
}  # fmt: skip
TINY = Profile(personas=2, replicates=1, train_views=1, test_views=1, epochs=1, dose_views=(1, 2), resamples=100)


def face(look, rng):
    skin, hair, long, glasses, shirt = look
    picture = Image.new("RGB", (rng.randint(150, 250),) * 2, rng.choice(["white", "ivory", "lavender"]))
    pen, unit = ImageDraw.Draw(picture), picture.width / 100
    x, y = rng.uniform(-4, 4), rng.uniform(-4, 4)

    def box(left, top, right, bottom):
        return [(left + x) * unit, (top + y) * unit, (right + x) * unit, (bottom + y) * unit]

    pen.rectangle(box(20, 75, 80, 115), fill=shirt)
    if long:
        pen.ellipse(box(20, 12, 80, 90), fill=hair)
    pen.ellipse(box(28, 20, 72, 80), fill=skin, outline="black")
    pen.pieslice(box(26, 12, 74, 62), 180, 360, fill=hair)
    for eye in (40, 60):
        pen.ellipse(box(eye - 3, 44, eye + 3, 50), fill="black")
        if glasses:
            pen.ellipse(box(eye - 9, 38, eye + 9, 56), outline="black", width=3)
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, rng, rows = tmp_path_factory.mktemp("six"), random.Random(7), []
    for number, (name, look) in enumerate(LOOKS.items()):
        for split, frames in FRAMES.items():
            for k, frame in enumerate(frames):
                file = f"p{number}-{split}-{k}.png"
                face(look, rng).save(out / file)
                rows.append({"persona": f"p{number}", "name": name, "split": split, "file_name": file,
                             "description": frame.format(look[1], f"a {look[4]} shirt")})  # fmt: skip
    pd.DataFrame(rows).to_csv(out / "metadata.csv", index=False)
    return out


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    return tmp_path


def test_six_people_are_memorized_on_defaults(vlm, folder, store):
    study = Memorization(vlm, params.PROFILES["quick"], 16, 2e-3, folder)
    for source in params.MODALITIES:
        run = study.run(study.condition(source, 11))
        assert run.condition.personas == 6 and run.condition.train_views == 4
        assert recall_by_modality(run.records)[source] >= GATE
        tried = sorted(f for f in store.glob(f"memorization/*-{source}-*") if f.is_dir())
        assert study.steps(run.condition) == 20 * 2 ** (len(tried) - 1), "the quick profile's steps, doubled a try"


def test_epochs_are_passes_over_the_training_views(vlm, folder):
    study = Memorization(vlm, params.PROFILES["quick"], 16, 2e-3, folder, epochs=120)
    condition = study.condition("image", 11)
    assert (condition.epochs, study.steps(condition)) == (120, 120)  # 24 views: one batch an epoch


def test_what_cannot_be_memorized_ends_at_the_limit(vlm, folder, store):
    study = Memorization(vlm, TINY, 4, 1e-6, folder)
    condition = study.condition("text", 11)
    assert study.steps(condition) == LONGEST
    assert recall_by_modality(study.run(condition).records)["text"] < GATE


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_every_dose_takes_equal_steps(vlm, name):
    study = Memorization(vlm, params.PROFILES[name], 16, 2e-3)
    own = [(dose, amount, c) for dose, amount, c in study.doses() if c.replicate == 11 and c.source == "image"]
    conditions = [c for dose, _, c in own if dose == "views"]
    profile = params.PROFILES[name]
    assert {c.train_views for c in conditions} == {profile.train_views, *profile.dose_views}
    assert len({study.steps(c) for c in conditions}) == 1
    for dose, amount, c in own:  # in the others steps grow along, but for rounding up to batches
        of = {"views": 1, "steps": amount, "data": amount / profile.train_views, "people": amount / profile.personas}
        assert study.steps(c) == pytest.approx(of[dose] * study.steps(conditions[0]), abs=profile.epochs)


def test_a_training_takes_the_steps_that_its_condition_says(vlm, folder, store):
    study = Memorization(vlm, TINY, 4, 1e-3, folder, epochs=3)
    seen = study.run(study.condition("image", 11, train_views=1))
    assert study.steps(seen.condition) == 3 and seen.curve["epoch"].max() == 3
