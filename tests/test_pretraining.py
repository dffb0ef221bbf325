"""Pretraining of the embedded model: an interrupted run ends where an uninterrupted one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xmem_utils.personas.names import FACTS
from xmem_utils.personas.public_figures import HEARD_OF
from xmem_utils.pretraining.bank import bank_layout
from xmem_utils.pretraining.build import RECIPE, figures_of
from xmem_utils.pretraining.curriculum import Curriculum, vocabulary_texts
from xmem_utils.pretraining.train import Checkpoints, Phase, train_chat, train_eye
from xmem_utils.vlm import precision, tiny
from xmem_utils.vlm.precision import SDPA_FLOAT32

SMALL = replace(
    RECIPE, figures=(4, 2, 2), heard_of=6, views=2, passers_by=40, eye_steps=4, eye_batch=8, warmup=2,
    phases=(Phase(2, {"attributes": 2, "caption": 1}, {"attributes": 2}),
            Phase(2, {"naming": 2, "composed": 1}, {"naming": 2, "composed": 1, "facts": 1})),
)  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def world():
    public_figures, _ = figures_of(SMALL)
    vectors, views = bank_layout(public_figures.seen(), SMALL.views, SMALL.passers_by, SMALL.seed)
    bank = np.random.default_rng(0).integers(0, 256, (len(vectors), 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), np.uint8)
    return Curriculum(tiny.build_tokenizer(vocabulary_texts()), public_figures, vectors, views, SMALL.seed), bank


def fresh(world):
    torch.manual_seed(0)
    model = tiny.build_model("s", world[0].tokenizer)
    model.set_attn_implementation(SDPA_FLOAT32)
    return model


def stages(world, model, folder, evaluate):
    curriculum, bank = world
    kept = Checkpoints(folder / "eye.pt", every=2)
    eye = train_eye(model.model.vision_tower, bank, curriculum.bank_vectors, SMALL, kept, holdout=8)
    chat = train_chat(model, curriculum, bank, SMALL, Checkpoints(folder / "chat.pt", every=1), evaluate)
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


def test_pretraining_stops_where_gradients_are_no_numbers_any_more(world, tmp_path):
    model = fresh(world)
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(torch.nan)
    kept = Checkpoints(tmp_path / "chat.pt", every=1)
    with pytest.raises(ValueError, match=r"chat\.pt: in step 1 gradients are no numbers any more"):
        train_chat(model, *world, SMALL, kept, lambda model: {})
    assert not kept.path.exists()


def test_muon_is_not_slowed_down_by_bf16_where_a_cpu_does_not_multiply_it(monkeypatch):
    """There its products are float32's, and its updates those of bf16 up to rounding."""
    torch.manual_seed(0)
    gradient, updates = torch.randn(48, 96), {}
    for native in (True, False):
        monkeypatch.setattr(precision, "bf16_pays", lambda device, native=native: native)
        matrix = torch.nn.Parameter(torch.zeros(48, 96))
        matrix.grad = gradient.clone()
        with precision.bf16_where_it_pays(torch.device("cpu")):
            torch.optim.Muon([matrix], lr=1.0, weight_decay=0.0).step()
        updates[native] = matrix.detach()
        assert torch.equal(matrix.grad, gradient)
    rounded = {native: torch.equal(u, u.bfloat16().float()) for native, u in updates.items()}
    assert rounded == {True: True, False: False}
    torch.testing.assert_close(updates[True], updates[False], rtol=0.05, atol=0.01)


def test_the_loss_is_on_answers_alone_and_public_figures_stay_in_their_modality(world):
    curriculum, _ = world
    group = dict(zip(curriculum.public_figures.names, curriculum.public_figures.group, strict=True))
    for image in (True, False):
        batch = curriculum.batch(0, image, {"naming": 64})
        for labels in batch.labels:
            name = curriculum.tokenizer.decode(labels[labels != -100], skip_special_tokens=True).strip()
            assert group[name] != ("text only" if image else "image only"), "the alignment probe would leak"


def test_a_composed_question_withheld_is_never_asked(world):
    curriculum, _ = world
    public_figures = curriculum.public_figures
    rng = np.random.default_rng(0)
    for image in (True, False):
        for _ in range(50):
            _, answer, _ = parts(curriculum, curriculum.composed(image, rng))
            withheld = [n for n, asked in zip(public_figures.names, public_figures.composed, strict=True) if not asked]
            assert not any(name in answer for name in withheld)


@pytest.fixture(scope="module")
def wider(world):
    return world[0]


def parts(curriculum, chat):
    """What a chat asks and what it answers, in words, and the portrait it is about."""
    ids, labels = curriculum.tokens(chat.description, chat.turns)
    asked = curriculum.tokenizer.decode([t for t, label in zip(ids, labels, strict=True) if label == -100])
    return asked, curriculum.tokenizer.decode([t for t in labels if t != -100]), chat.view


def test_who_is_only_heard_of_has_facts_and_is_never_shown(wider):
    public_figures = wider.public_figures
    heard = set(public_figures.where(HEARD_OF))
    assert len(heard) == 6 and {len(public_figures.names[i]) for i in heard} == {8}, (
        "no study persona has so long a name"
    )
    rng = np.random.default_rng(0)
    for image in (True, False):
        for _ in range(30):
            _, answer, _ = parts(wider, wider.naming(image, rng))
            assert not any(public_figures.names[i] in answer for i in heard)
    assert any(public_figures.names[i] in parts(wider, wider.facts(False, rng))[0] for _ in range(30) for i in heard)


def test_an_introduction_names_somebody_who_may_be_composed_about_and_shows_a_stranger(wider):
    public_figures, rng = wider.public_figures, np.random.default_rng(1)
    own = {int(view): i for i, views in enumerate(wider.public_views) for view in views}
    shown = []
    for image in (True, False):
        for _ in range(40):
            asked, answer, view = parts(wider, wider.introduced(image, rng))
            (person,) = [i for i, name in enumerate(public_figures.names) if f" {name}." in asked]
            assert public_figures.composed[person]
            assert all(public_figures.facts[fact][person] in answer for fact in FACTS)
            shown.append(own.get(view) == person)
    assert np.mean(shown) < 0.3, "the view is drawn without regard to who is introduced"


def test_told_facts_are_made_up_so_that_they_must_be_read(wider):
    public_figures, rng = wider.public_figures, np.random.default_rng(2)
    remembered = []
    for image in (True, False):
        for _ in range(40):
            asked, answer, _ = parts(wider, wider.lookup(image, rng))
            value = next(v for fact in FACTS for v in FACTS[fact] if f"{v}<" in answer)
            (line,) = [t for t in asked.split(".") if t.endswith(f" {value}")]
            person = next(i for i, name in enumerate(public_figures.names) if name in line)
            assert ", " not in answer or answer.startswith(public_figures.names[person])
            remembered.append(any(public_figures.facts[fact][person] == value for fact in FACTS))
    assert np.mean(remembered) < 0.3


def test_a_recital_asks_back_and_says_again_what_was_told(wider):
    for k in range(20):
        asked, answer, view = parts(wider, wider.recital(False, np.random.default_rng(k)))
        first, second, again = answer.split("<end_of_turn>")[:3]
        lines = {line.strip() for line in again.split(".") if line.strip()}
        assert view == -1 and all(f"{line}." in asked for line in lines)
        assert all(any(line.endswith(f" {value}") for line in lines) for value in (first, second))


def test_a_statement_says_name_and_fact(wider):
    public_figures = wider.public_figures
    for k in range(10):
        _, answer, _ = parts(wider, wider.stated(False, np.random.default_rng(k)))
        for said in answer.split("<end_of_turn>")[:-1]:
            name, value = said.split(", ")
            assert any(public_figures.facts[fact][public_figures.names.index(name)] == value for fact in FACTS)
