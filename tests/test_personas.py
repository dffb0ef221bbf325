"""The people: apart from each other, reproducible, and nothing leaks from train to test."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from xmem_utils import paths
from xmem_utils.params import PROFILES, TUNING_BASE, TUNING_SEEDS
from xmem_utils.personas import checks, dataset
from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES, distances, sample_vectors
from xmem_utils.personas.dataset import persona_spec
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.names import FACTS, sample_facts, sample_names
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import FIGURES, draw_public_figures
from xmem_utils.replicates import FIRST

ELEVEN = dataset.PersonaSpec(personas=100, seed=11)


@pytest.mark.parametrize(
    ("spec", "base"),
    [
        (ELEVEN, 11),
        (dataset.others(ELEVEN, 5000), 11),
        (persona_spec(PROFILES["standard"], TUNING_SEEDS[0], base=TUNING_BASE), TUNING_BASE),
    ],
    ids=["of a replicate", "others", "for tuning"],
)
def test_people_differ_in_three_axes_from_each_other_and_two_from_whom_their_base_knows(spec, base):
    public = draw_public_figures(*FIGURES, base)
    vectors, names, _ = dataset.draw_people(spec)
    between = distances(vectors)[~np.eye(100, dtype=bool)]
    assert between.min() >= 3
    assert distances(vectors, public.vectors).min() >= 2
    assert len(set(names)) == 100
    assert not set(names) & set(public.names)


def test_more_people_of_a_seed_begin_with_fewer_and_others_resemble_none_of_them():
    few, many = (dataset.draw_people(dataset.PersonaSpec(personas=n, seed=11)) for n in (20, 100))
    np.testing.assert_array_equal(few[0], many[0][:20])
    assert few[1] == many[1][:20]
    apart = dataset.others(ELEVEN, 5000)
    vectors, names, _ = dataset.draw_people(apart)
    assert distances(vectors, many[0]).min() >= 3 and not set(names) & set(many[1])
    assert len({ELEVEN.slug, apart.slug, dataset.PersonaSpec(100, 11, base=12).slug}) == 3


def test_a_space_that_is_too_crowded_says_so():
    with pytest.raises(ValueError, match="no room for 100000 people"):
        sample_vectors(100_000, np.random.default_rng(0), min_distance=6)


def test_every_name_has_six_letters_and_three_tokens(vlm):
    tokenizer = vlm.processor.tokenizer
    for name in sample_names(500, np.random.default_rng(3)):
        assert len(name) == 6
        assert len(tokenizer(name, add_special_tokens=False).input_ids) == 3
        assert len(tokenizer(f" {name}", add_special_tokens=False).input_ids) == 3


def test_facts_are_balanced():
    facts = sample_facts(100, np.random.default_rng(0))
    for fact, values in FACTS.items():
        counts = [facts[fact].count(value) for value in values]
        assert max(counts) - min(counts) <= 1


def test_portraits_and_descriptions_repeat_with_the_seed_and_differ_without():
    vector = tuple(0 for _ in AXIS_SIZES)
    first, again, other = (draw(vector, np.random.default_rng(s)).tobytes() for s in (1, 1, 2))
    assert first == again != other
    texts = [describe(vector, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_every_attribute_changes_the_portrait_and_the_description():
    base = [0] * len(AXIS_SIZES)
    for axis, size in enumerate(AXIS_SIZES):
        for value in range(1, size):
            changed = base.copy()
            changed[axis] = value
            # the same nuisance draw, so any difference comes from the attribute
            a, b = (np.asarray(draw(v, np.random.default_rng(5)), int) for v in (base, changed))
            assert np.abs(a - b).mean() > 0.1, (axis, value)
            assert describe(base, np.random.default_rng(5)) != describe(changed, np.random.default_rng(5))


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_regeneration_is_byte_identical_to_the_committed_manifest(name):
    spec = persona_spec(PROFILES[name], FIRST)
    committed = json.loads(paths.MANIFEST.read_text())[spec.slug]["fingerprint"]
    assert dataset.content_fingerprint(dataset.build(spec)) == committed


def test_a_view_does_not_depend_on_how_many_follow(five):
    more = dataset.build(dataset.PersonaSpec(personas=5, seed=991, train_views=6, test_views=2))
    for persona in range(5):
        rows = [r for r in five["train"] if r["persona"] == persona]
        longer = [r for r in more["train"] if r["persona"] == persona][: len(rows)]
        for a, b in zip(rows, longer, strict=True):
            assert a["image"].tobytes() == b["image"].tobytes()
            assert a["description"] == b["description"]


def test_stored_personas_are_read_back_and_a_damaged_file_is_drawn_again(tmp_path):
    spec = dataset.PersonaSpec(personas=3, seed=992, train_views=2, test_views=1)
    _, fingerprint = dataset.load_personas(spec, tmp_path)
    file = tmp_path / spec.slug / "train.parquet"
    file.write_bytes(file.read_bytes()[:100])
    again, second = dataset.load_personas(spec, tmp_path)
    assert fingerprint == second == dataset.content_fingerprint(again)
    assert "Pablo Stanley" in (tmp_path / spec.slug / "README.md").read_text()


def test_people_of_another_generator_are_drawn_again(tmp_path, monkeypatch):
    spec = dataset.PersonaSpec(personas=2, seed=993, train_views=1, test_views=1)
    info = tmp_path / spec.slug / "info.json"
    dataset.load_personas(spec, tmp_path)
    first = info.stat().st_mtime_ns
    dataset.load_personas(spec, tmp_path)
    assert info.stat().st_mtime_ns == first, "what is current is only read"
    monkeypatch.setattr(dataset, "made_with", lambda: "newer")
    dataset.load_personas(spec, tmp_path)
    assert json.loads(info.read_text())["made_with"] == "newer"
    info.write_text("{")
    dataset.load_personas(spec, tmp_path)
    assert json.loads(info.read_text())["made_with"] == "newer"


def test_nothing_leaks(five):
    assert checks.leakage(five)["ok"].all()


def test_the_leak_check_finds_planted_leaks(five):
    name = five["test"][0]["name"]
    spoiled = five.copy()
    spoiled["test"] = five["test"].map(lambda row: {"description": f"{row['description']} It is {name}."})
    spoiled["train"] = five["test"]
    found = checks.leakage(spoiled).set_index("check")["ok"]
    assert not found.iloc[0], "a name in a description went unnoticed"
    assert not found.iloc[2], "a sentence shared by train and test went unnoticed"
    assert not found.iloc[3], "a portrait shared by train and test went unnoticed"


# Axes whose parts of a portrait touch: what one looks like may depend on the others.
TOUCHING = {
    "hair style": ("hair colour", "skin"), "hair colour": ("hair style", "skin"), "skin": ("hair colour",),
    "garment": ("garment colour", "facial hair"), "garment colour": ("garment",),
    "eyewear": ("hair style", "hair colour", "skin"), "facial hair": ("hair colour", "skin", "garment"),
}  # fmt: skip


def portrait(values):
    vector = [values.get(axis, 0) for axis in AXIS_NAMES]
    return np.asarray(draw(vector, np.random.default_rng(7), None), np.int16)


@pytest.mark.parametrize("axis", AXIS_NAMES)
def test_any_two_values_differ_visibly_whatever_touches_them(axis):
    """By more than 24 of 255 grey levels in at least 35 of 64 x 64 pixels: no modality may know more to the pixel."""
    sizes = dict(zip(AXIS_NAMES, AXIS_SIZES, strict=True))
    for around in itertools.product(*(range(sizes[other]) for other in TOUCHING[axis])):
        rest = dict(zip(TOUCHING[axis], around, strict=True))
        drawn = np.stack([portrait({axis: value, **rest}) for value in range(sizes[axis])])
        for one, two in itertools.combinations(range(sizes[axis]), 2):
            apart = (abs(drawn[one] - drawn[two]).max(-1) > 24).sum()
            assert apart >= 35, f"{AXES[axis][one].name} and {AXES[axis][two].name} with {rest}"


def test_a_stored_dataset_of_another_spec_or_fingerprint_is_drawn_anew(tmp_path, monkeypatch):
    spec, drawn = dataset.PersonaSpec(personas=3, seed=992, train_views=1, test_views=1), []
    monkeypatch.setattr(dataset, "build", lambda spec, build=dataset.build: drawn.append(spec) or build(spec))
    for wanted in (spec, spec, replace(spec, min_distance=4)):
        dataset.load_personas(wanted, tmp_path)
    assert [spec.min_distance for spec in drawn] == [3, 4]
