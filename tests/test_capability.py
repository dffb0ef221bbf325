"""The ladders: what is equal on their rungs, and the tables drawn from them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from xmem_utils import paths
from xmem_utils.memorization import capability
from xmem_utils.params import KNOWN
from xmem_utils.perception import readout
from xmem_utils.personas.attributes import AXIS_NAMES, distances
from xmem_utils.personas.public_figures import MIN_DISTANCE, UNNAMED, PublicFigures, with_known
from xmem_utils.pretraining import build, evaluation
from xmem_utils.pretraining.bank import bank_layout
from xmem_utils.pretraining.curriculum import Curriculum, vocabulary_texts
from xmem_utils.pretraining.train import Checkpoints, Phase, train_chat
from xmem_utils.vlm import tiny
from xmem_utils.vlm.load import load_vlm


@pytest.fixture(scope="module")
def figures():
    return PublicFigures.load(paths.BASE_MODELS / "figures.parquet")


@pytest.fixture(scope="module")
def studied():
    return build._study_people()


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
    assert [row["step"] for row in second] == [row["step"] for row in first] == [1, 2, 3]
    for a, b in zip(whole.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_slope_is_the_one_the_points_were_made_with():
    rows = [
        {"model": "a", "source": "text", "seed": seed, "epoch": epoch, "query": asked,
         "recall": 0.2 * epoch * (1.0 if asked == "text" else 0.5 + 0.1 * seed)}
        for seed in (0, 1, 2) for epoch in (1, 2, 3) for asked in ("image", "text")
    ]  # fmt: skip
    (row,) = capability.slopes(pd.DataFrame(rows)).to_dict("records")
    assert (row["slope"], row["lowest"], row["highest"]) == pytest.approx((0.6, 0.5, 0.7))


def people(model, gap, source_recall=1.0, n=40):
    rng = np.random.default_rng(0)
    rows = []
    for source, target in (("image", "text"), ("text", "image")):
        for persona in range(n):
            jitter = 0.1 * rng.standard_normal()
            rows.append({"model": model, "source": source, "seed": 0, "persona": persona, "query": source,
                         "exact": source_recall})  # fmt: skip
            rows.append({"model": model, "source": source, "seed": 0, "persona": persona, "query": target,
                         "exact": source_recall - gap + jitter})  # fmt: skip
    return pd.DataFrame(rows)


def test_changes_of_the_gap_are_paired_and_signed():
    table = capability.changes(
        pd.concat([people("xs", 0.6), people("s", 0.4), people("m", 0.4)]), ["xs", "s", "m"], 500
    )
    image = table[table["source"] == "image"].set_index(["from", "to"])
    assert image.loc[("xs", "s"), "change of gap"] == pytest.approx(-0.2)
    assert image.loc[("xs", "s"), "high"] < 0
    assert image.loc[("xs", "s"), "p"] < 0.01
    assert image.loc[("s", "m"), "change of gap"] == pytest.approx(0, abs=1e-9)
    assert ("xs", "m") in image.index
    assert "shrinks" in capability.sentence(table.iloc[0])


def test_a_model_that_did_not_memorize_enters_no_comparison():
    table = capability.changes(pd.concat([people("xs", 0.1, source_recall=0.5), people("s", 0.4)]), ["xs", "s"], 500)
    assert table["change of gap"].isna().all()
    assert "did not memorize" in capability.sentence(table.iloc[0])


@pytest.mark.parametrize("folder", sorted(paths.BASE_MODELS.glob("xmem-tiny-*")), ids=lambda f: f.name)
def test_the_committed_evaluation_is_that_of_the_committed_weights(folder):
    committed = pd.read_csv(folder / "evaluation.csv").fillna("")
    fresh = evaluation.evaluate_base(load_vlm(folder.name), people=60)
    keys = ["ability", "query", "detail"]
    both = committed.merge(fresh, on=keys, suffixes=("", " now"))
    assert len(both) == len(committed)
    assert (both["accuracy"] - both["accuracy now"]).abs().mean() < 0.05


def test_every_rung_has_its_tables():
    table = capability.knowledge(resamples=200)
    done = sorted(table["known"].unique())
    assert set(done) == set(KNOWN)
    recall = table[table["quantity"].isin(["source recall", "target recall"])]
    assert (recall["low"] <= recall["estimate"]).all() and (recall["estimate"] <= recall["high"]).all()


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
