"""The ladders: what is equal on their rungs, and the tables drawn from them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from xmem_utils import paths, stats
from xmem_utils.memorization import capability
from xmem_utils.params import MODALITIES
from xmem_utils.perception import readout
from xmem_utils.personas.attributes import AXIS_NAMES, VERSION, distances
from xmem_utils.personas.dataset import PersonaSpec, draw_people
from xmem_utils.personas.public_figures import FIGURES, MIN_DISTANCE, UNNAMED, draw_public_figures, known_in, with_known
from xmem_utils.pretraining import build, evaluation
from xmem_utils.pretraining.bank import bank_layout
from xmem_utils.pretraining.curriculum import Curriculum, vocabulary_texts
from xmem_utils.pretraining.train import Checkpoints, Phase, train_chat
from xmem_utils.replicates import seeds_of
from xmem_utils.vlm import tiny
from xmem_utils.vlm.load import load_vlm


@pytest.fixture(scope="module")
def figures():
    return draw_public_figures(*FIGURES, 11)


@pytest.fixture(scope="module")
def studied():
    return draw_people(PersonaSpec(personas=100, seed=11))[:2]


@pytest.mark.parametrize("known", [0, 100, 300, 1000])
def test_a_rung_names_that_many_in_both_and_the_probe_is_the_same(figures, studied, known):
    rung = with_known(figures, known, studied, seed=1)
    assert len(rung.where("both")) == known
    for group in ("text only", "image only"):
        assert [rung.names[i] for i in rung.where(group)] == [figures.names[i] for i in figures.where(group)]
    assert rung.names[: len(figures)] == figures.names, "nobody is drawn anew"
    assert len(rung.where(UNNAMED)) == max(0, 300 - known)


def test_figures_drawn_for_a_rung_are_nobody_known_or_studied(figures, studied):
    rung = with_known(figures, 1000, studied, seed=1)
    vectors, names = studied
    late = slice(len(figures), None)
    others = np.concatenate([figures.vectors, vectors])
    assert distances(rung.vectors[late], others).min() >= MIN_DISTANCE
    assert not set(rung.names[late]) & (set(names) | set(figures.names))
    assert len(set(rung.names)) == len(rung)


def test_every_rung_has_the_same_attribute_material(figures, studied):
    vectors, views = bank_layout(figures, 3, 50, seed=1)
    rung = with_known(figures, 400, studied, seed=1)
    more, where = bank_layout(rung, 3, 50, seed=1, late=100)
    np.testing.assert_array_equal(more[: len(vectors)], vectors)
    np.testing.assert_array_equal(where[: len(figures)], views)
    for figure in (0, len(figures) - 1, len(figures), len(rung) - 1):
        assert (more[where[figure]] == rung.vectors[figure]).all()


def test_an_unnamed_figure_is_never_named_from_a_view(figures, studied):
    rung = with_known(figures, 0, studied, seed=1)
    vectors, views = bank_layout(rung, 2, 10, seed=1)
    tokenizer = tiny.build_tokenizer(vocabulary_texts())
    curriculum = Curriculum(tokenizer, rung, vectors, views, seed=1)
    unnamed = {rung.names[i] for i in rung.where(UNNAMED)}
    for image in (True, False):
        for kind in ("naming", "composed"):
            labels = curriculum.batch(0, image, {kind: 200}).labels
            text = " ".join(tokenizer.decode(row[row != -100], skip_special_tokens=True) for row in labels)
            assert not any(name in text for name in unnamed)


def test_a_rung_takes_up_the_shared_phase_and_trains_only_what_follows(tmp_path, figures):
    small = replace(build.RECIPE, warmup=1, phases=(
        Phase(2, {"attributes": 2}, {"attributes": 2}), Phase(1, {"naming": 2}, {"naming": 2})))  # fmt: skip
    vectors, views = bank_layout(figures, 1, 20, seed=1)
    bank = np.random.default_rng(0).integers(0, 256, (len(vectors), 3, 64, 64), np.uint8)
    tokenizer = tiny.build_tokenizer(vocabulary_texts())
    curriculum = Curriculum(tokenizer, figures, vectors, views, seed=1)

    def train(folder):
        torch.manual_seed(0)
        model = tiny.build_model("xs", tokenizer)
        kept = Checkpoints(tmp_path / folder / "chat.pt", every=1, first_phase=tmp_path / "nameless.pt")
        curve = train_chat(model, curriculum, bank, small, kept, lambda _: {"score": 1.0})
        return model, curve

    whole, first = train("one")
    shared, second = train("two")
    assert torch.load(tmp_path / "nameless.pt", weights_only=True)["step"] == 2
    assert [row["step"] for row in first] == [1, 2, 3]
    assert [row["step"] for row in second] == [3], "what the other was asked before is its own"
    for a, b in zip(whole.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_slope_is_the_one_the_points_were_made_with():
    rows = [
        {"model": "a", "source": "text", "replicate": seed, "epoch": epoch, "query": asked,
         "recall": 0.31 * epoch * (1.0 if asked == "text" else 0.5 + 0.1 * seed)}
        for seed in (0, 1, 2) for epoch in (1, 2, 3) for asked in ("image", "text")
    ]  # fmt: skip
    (row,) = capability.slopes(pd.DataFrame(rows)).to_dict("records")
    assert row["estimate"] == pytest.approx(0.6) and stats.values(row["each"]).tolist() == [0.5, 0.6, 0.7]
    both = pd.concat([pd.DataFrame([row | {"source": source}]) for source in ("image", "text")])
    assert "from 0.60 to 0.60 (pictures) and from 0.60 to 0.60 (descr" in capability.slope_sentence(both, ["a"])


def people(model, gap, source_recall=1.0, n=40):
    rng = np.random.default_rng(0)
    rows = []
    for source, target in (("image", "text"), ("text", "image")):
        for persona in range(n):
            jitter = 0.1 * rng.standard_normal()
            rows.append({"model": model, "source": source, "replicate": 0, "persona": persona, "query": source,
                         "value": source_recall})  # fmt: skip
            rows.append({"model": model, "source": source, "replicate": 0, "persona": persona, "query": target,
                         "value": source_recall - gap + jitter})  # fmt: skip
    table = pd.DataFrame(rows)
    return pd.concat([table.assign(measure=measure) for measure in ("said", "closed-set")])


def test_changes_of_the_gap_are_paired_and_signed():
    table = capability.changes(
        pd.concat([people("xs", 0.6), people("s", 0.4), people("m", 0.4)]), ["xs", "s", "m"], 500
    )
    image = table[(table["source"] == "image") & (table["measure"] == "said")].set_index(["from", "to"])
    assert image.loc[("xs", "s"), "decrease of gap"] == pytest.approx(0.2)
    assert image.loc[("xs", "s"), "low"] > 0
    assert image.loc[("xs", "s"), "p"] < 0.01
    assert image.loc[("s", "m"), "decrease of gap"] == pytest.approx(0, abs=1e-9)
    assert ("xs", "m") in image.index
    assert "shrinks" in capability.sentence(table.iloc[0])


def test_a_model_that_did_not_memorize_enters_no_comparison():
    table = capability.changes(pd.concat([people("xs", 0.1, source_recall=0.5), people("s", 0.4)]), ["xs", "s"], 500)
    assert table["decrease of gap"].isna().all()
    assert "in common that memorized" in capability.sentence(table.iloc[0])


def test_one_replicate_that_did_not_memorize_takes_no_other_with_it():
    parts = [people("xs", 0.6), people("s", 0.4)]
    parts += [people("xs", 0.5).assign(replicate=1), people("s", 0.3).assign(replicate=1)]
    lost = people("s", 0.4, source_recall=0.5).assign(replicate=2)
    both, three = (
        capability.changes(pd.concat(own), ["xs", "s"], 500)
        for own in (parts, [*parts, lost, people("xs", 0.6).assign(replicate=2)])
    )
    pd.testing.assert_frame_equal(both, three)


BASES = sorted(paths.BASE_MODELS.glob("xmem-tiny-*"))


@pytest.mark.parametrize("folder", BASES, ids=lambda folder: folder.name)
def test_every_base_is_of_the_recipe_and_of_its_own_figures(folder):
    recipe = json.loads((folder / "recipe.json").read_text())
    wanted = replace(build.RECIPE, seed=recipe["seed"], known=recipe["known"])
    assert recipe == json.loads(json.dumps(asdict(wanted) | {"population": VERSION}))
    assert folder.name == build.base_name(folder.name.split("-")[2], wanted)
    drawn, _ = build.figures_of(wanted)
    pd.testing.assert_frame_equal(known_in(str(folder)).table, drawn.table, check_dtype=False)
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 10e6


@pytest.mark.parametrize("folder", BASES, ids=lambda folder: folder.name)
def test_the_committed_evaluation_is_that_of_the_committed_weights(folder):
    committed = pd.read_csv(folder / "evaluation.csv").fillna("")
    fresh = evaluation.evaluate_base(load_vlm(folder.name), known_in(str(folder)), people=60)
    keys = ["ability", "query", "detail"]
    both = committed.merge(fresh, on=keys, suffixes=("", " now"))
    assert len(both) == len(committed)
    assert (both["accuracy"] - both["accuracy now"]).abs().mean() < 0.05


def test_a_rung_s_probe_stands_beside_its_estimates():
    row = {"model": "xmem-tiny-s", "measure": "said", "source": "image", "quantity": "gap", "estimate": 0.2}
    table = capability.knowledge(pd.DataFrame([row]).reindex(columns=[*row, *stats.INTERVAL[1:]]), 5)
    own = table[table["model"] == "xmem-tiny-s"].set_index(["source", "quantity"])
    assert (own["known"] == 300).all() and own.loc[("image", "gap"), "estimate"] == 0.2
    each = stats.values(own.loc[("text", "alignment probe"), "each"])
    assert len(each) == len(seeds_of("xmem-tiny-s")) and 0 < each.mean() < 1


def test_reading_attributes_finds_what_the_evaluation_finds(vlm, five):
    seen = readout(vlm, five)
    assert set(seen["axis"]) and len(seen) == 5 * 2 * seen["axis"].nunique()
    assert seen["correct"].mean() > 0.9


def test_reading_attributes_of_shuffled_people_is_near_chance(vlm, five):
    """The measure can fail: with everybody's attributes rotated by one person it does."""
    rotated = five["test"].to_pandas()
    axes, views = list(AXIS_NAMES), rotated.groupby("persona").size().iloc[0]
    rotated[axes] = np.roll(rotated[axes].to_numpy(), views, axis=0)
    wrong = Dataset.from_pandas(rotated, features=five["test"].features, preserve_index=False)
    assert readout(vlm, DatasetDict(test=wrong))["correct"].mean() < 0.6


def test_every_base_stands_beside_its_alignment_probe():
    probe = {
        seed: pd.read_csv(paths.BASE_MODELS / f"xmem-tiny-s-{seed}" / "evaluation.csv")
        .query("ability == 'alignment probe'").set_index("query")["accuracy"]
        for seed in seeds_of("xmem-tiny-s")
    }  # fmt: skip
    rows = [
        {"measure": "said", "model": "xmem-tiny-s", "source": source, "replicate": seed, "persona": 0, "query": asked,
         "value": 1.0 if asked == source else own[asked] / 2}
        for seed, own in probe.items() for source in MODALITIES for asked in MODALITIES
    ]  # fmt: skip
    table = capability.against_probe(pd.DataFrame(rows))
    assert len(table) == 2 * len(probe)
    np.testing.assert_allclose(table["target recall"], table["probe"] / 2)
    np.testing.assert_allclose(table["Spearman"], 1)
    assert capability.against_probe(pd.DataFrame(rows).assign(model="somebody/s-vlm")).empty
