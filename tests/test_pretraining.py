"""Pretraining of the embedded model: an interrupted run ends where an uninterrupted one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xmem_utils.base.bank import bank_layout
from xmem_utils.base.build import RECIPE
from xmem_utils.base.curriculum import Curriculum, vocabulary_texts
from xmem_utils.base.figures import make_figures
from xmem_utils.base.pretrain import Phase, train_chat, train_eye
from xmem_utils.vlm import tiny
from xmem_utils.vlm.precision import SDPA_FLOAT32

SMALL = replace(
    RECIPE, both=4, text_only=2, image_only=2, views=2, passers_by=40, eye_steps=4, eye_batch=8, warmup=2,
    phases=(Phase(2, {"attributes": 2, "caption": 1}, {"attributes": 2}),
            Phase(2, {"naming": 2, "composed": 1}, {"naming": 2, "composed": 1, "facts": 1})),
)  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def world():
    figures = make_figures(SMALL.both, SMALL.text_only, SMALL.image_only, SMALL.seed)
    vectors, views = bank_layout(figures, SMALL.views, SMALL.passers_by, SMALL.seed)
    bank = np.random.default_rng(0).integers(0, 256, (len(vectors), 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), np.uint8)
    return Curriculum(tiny.build_tokenizer(vocabulary_texts()), figures, vectors, views, SMALL.seed), bank


def fresh(world):
    torch.manual_seed(0)
    model = tiny.build_model("s", world[0].tokenizer)
    model.set_attn_implementation(SDPA_FLOAT32)
    return model


def stages(world, model, folder, examine):
    curriculum, bank = world
    eye = train_eye(
        model.model.vision_tower, bank, curriculum.bank_vectors, SMALL, folder / "eye.pt", check_every=2, holdout=8
    )
    chat = train_chat(model, curriculum, bank, SMALL, folder / "chat.pt", examine, check_every=1)
    return eye, chat


def test_a_killed_pretraining_goes_on_to_the_same_weights(world, tmp_path):
    whole = fresh(world)
    expected = stages(world, whole, tmp_path / "whole", lambda model: {"score": 1.0})

    checks = []

    def die_at_the_third_check(model):
        checks.append(model)
        if len(checks) == 3:
            raise Killed
        return {"score": 1.0}

    with pytest.raises(Killed):
        stages(world, fresh(world), tmp_path / "killed", die_at_the_third_check)
    torch.manual_seed(123)  # nothing after the start may depend on the global generator
    resumed = fresh(world)
    curves = stages(world, resumed, tmp_path / "killed", die_at_the_third_check)

    assert len(checks) == 3 + 2, "two of four steps were on disk, so two are left"
    assert [row["step"] for row in curves[1]] == [1, 2, 3, 4]
    assert curves[0] == expected[0]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_the_loss_is_on_answers_alone_and_figures_stay_in_their_modality(world):
    curriculum, _ = world
    group = dict(zip(curriculum.figures.names, curriculum.figures.group, strict=True))
    for image in (True, False):
        batch = curriculum.batch(0, image, {"naming": 64})
        for labels in batch.labels:
            name = curriculum.tokenizer.decode(labels[labels != -100], skip_special_tokens=True).strip()
            assert group[name] != ("text only" if image else "image only"), "the alignment probe would leak"


def test_a_composed_question_withheld_is_never_asked(world):
    curriculum, _ = world
    figures, tokenizer = curriculum.figures, curriculum.tokenizer
    rng = np.random.default_rng(0)
    for image in (True, False):
        for _ in range(50):
            _, labels, _ = curriculum.composed(image, rng)
            answer = tokenizer.decode([t for t in labels if t != -100], skip_special_tokens=True)
            withheld = [n for n, asked in zip(figures.names, figures.composed, strict=True) if not asked]
            assert not any(name in answer for name in withheld)
