"""Multi-hop: what the prompts tell, what the tables add up to, and a study end to end."""

import numpy as np
import pandas as pd
import pytest

from xmem_utils import paths, store
from xmem_utils.multihop import arms, tables
from xmem_utils.multihop.exam import MultihopExam, encoded
from xmem_utils.multihop.people import PRACTISED, STUDY, TOGETHER, cast_of, figures_cast
from xmem_utils.multihop.study import MultihopStudy
from xmem_utils.params import MODALITIES, Profile, other
from xmem_utils.personas.dataset import known_figures
from xmem_utils.personas.names import FACTS
from xmem_utils.recall import exact_match, greedy_answers
from xmem_utils.vlm import prompts

PROFILE = Profile(personas=6, seeds=(0,), train_views=2, test_views=2, epochs=2, dose_views=(2,), resamples=200)


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", folder / "runs")
        patch.setattr(paths, "MULTIHOP", folder / "runs" / paths.MULTIHOP.name)
        patch.setattr(paths, "PERSONAS", folder / "personas")
        yield folder


@pytest.fixture(scope="module")
def cast(store_folder):
    return cast_of(PROFILE, 0, 64)


@pytest.fixture(scope="module")
def study(vlm, store_folder):
    return MultihopStudy(vlm, PROFILE, rank=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def runs(study):
    return study.run_all(study.conditions())


# -- what is asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", arms.ALONE)
@pytest.mark.parametrize("group", [STUDY, TOGETHER, PRACTISED])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_prompt_tells_what_its_arm_claims_and_nothing_else(cast, vlm, arm, group, modality):
    tells_name, tells_fact = arms.TELLS[arm]
    asked = arms.exam_questions(cast, arm, group, modality)
    assert {a.fact for a in asked} == ({""} if arm == arms.HOP_1 else set(FACTS))
    for a, example in zip(asked, encoded(vlm, asked), strict=True):
        person = a.view.persona
        shown = a.question if a.view.modality == "image" else prompts.view_text(a.view.content, a.question)
        prompt = vlm.processor.tokenizer.decode(example.prompt)
        assert shown.split("\n\n")[-1] in prompt  # what is checked is what the model reads
        assert (cast.names[person] in shown) == tells_name
        told = {fact for fact in FACTS if cast.facts[fact][person] in shown}
        assert told == ({a.fact} if tells_fact else set())
        assert bool(a.view.content) == (arm != arms.HOP_2)


def test_four_lines_tell_of_four_people_with_four_values(cast):
    places = []
    for a in arms.exam_questions(cast, arms.FOUR, STUDY, "text"):
        values = [v for v in FACTS[a.fact] if f" {v}." in a.question]
        assert len(values) == arms.LINES and a.answer in values
        names = [name for name in cast.names if name in a.question]
        assert len(names) == arms.LINES and cast.names[a.view.persona] in names
        places.append(sorted(values, key=a.question.index).index(a.answer))
    assert len(set(places)) == arms.LINES, "the place of the line gives nobody away"


@pytest.mark.parametrize("source", MODALITIES)
def test_nobody_of_the_study_is_taught_what_composing_would_give(cast, vlm, source):
    study = {cast.names[i] for i in cast.groups[STUDY]}
    asked = list(arms.taught(cast, source))
    hops = {arms.HOP_1: set(), arms.HOP_2: set()}
    for a in asked:
        viewed = bool(a.view.content)
        assert not viewed or (a.view.modality == source and a.view.split == "train")
        if cast.group_of()[a.view.persona] == STUDY:
            assert a.arm in hops and viewed == (a.arm == arms.HOP_1)
            hops[a.arm].add(a.view.persona)
            if viewed:  # hop 1: the name, and no fact
                assert a.answer == cast.names[a.view.persona] and a.question == prompts.WHO
        else:  # other people's questions and answers are silent about the study's
            assert not any(name in a.question or name in a.answer for name in study)
    assert all(people == set(cast.groups[STUDY]) for people in hops.values())
    # the same of the token ids: a study name stands beside a view in hop 1 alone
    names = {i: [vlm.processor.tokenizer(prefix + cast.names[i], add_special_tokens=False).input_ids
                 for prefix in ("", " ")] for i in cast.groups[STUDY]}  # fmt: skip

    def holds(tokens, name):
        return any(tokens[k : k + len(name)] == name for k in range(len(tokens)))

    for a, example in zip(asked, encoded(vlm, asked), strict=True):
        if a.view.content and a.arm != arms.HOP_1:
            tokens = [*example.prompt.tolist(), *example.answer.tolist()]
            assert not any(holds(tokens, name) for both in names.values() for name in both)


def test_hop_2_is_asked_in_words_that_were_not_taught(cast):
    taught = {a.question for a in arms.taught(cast, "text") if a.arm == arms.HOP_2}
    asked = {a.question for group in cast.groups for a in arms.exam_questions(cast, arms.HOP_2, group, "image")}
    assert asked and not asked & taught


def test_facts_are_balanced_within_a_group_and_drawn_anew_by_seed(cast, store_folder):
    again, another = cast_of(PROFILE, 0, 64), cast_of(PROFILE, 1, 64)
    assert again.facts == cast.facts and again.names == cast.names
    assert another.facts != cast.facts and not set(another.names) & set(cast.names)
    for group, people in cast.groups.items():
        for fact in FACTS:
            values = [cast.facts[fact][i] for i in people]
            assert len(set(values)) == len(values), f"{group}: fewer people than values, each used once at most"


def test_too_few_people_are_refused_with_a_sentence(cast):
    with pytest.raises(ValueError, match=r"only 3 people differ in city from \w+, 9 are needed"):
        arms.others(cast, cast.groups[TOGETHER][0], "city", 9)


def test_public_figures_are_asked_about_new_views_of_both_modalities():
    found = figures_cast(known_figures(), 64)
    figures = known_figures()
    for group, practised in (("figures, withheld", False), ("figures, practised", True)):
        people = list(found.groups[group])
        assert (figures.group[people] == "both").all() and (figures.composed[people] == practised).all()
        assert {v.persona for v in found.views("test", "image", group)} == set(people)


# -- what is answered ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exam(vlm, cast):
    return MultihopExam(vlm, cast, {STUDY: arms.ALONE})


def test_what_is_written_step_by_step_is_what_teacher_forcing_scores(vlm, exam):
    key = (STUDY, arms.STEPWISE, "text")
    records = exam._written(None, *key[::2], exam.questions[key], exam.examples[key])
    np.testing.assert_array_equal(records["exact"] == 1, exact_match(vlm, exam.examples[key]).exact)
    written = greedy_answers(vlm, exam.examples[key])
    assert any(", " in text for text in written), "the base model knows the form"


def test_the_true_view_wins_the_reverse_question_when_its_name_is_likelier(exam, cast):
    key = (STUDY, arms.HOP_1, "image")
    asked = exam.questions[key]
    column = {person: i for i, person in enumerate(cast.groups[STUDY])}
    knows = np.array([[float(a.view.persona == p) for p in column] for a in asked])
    for scores, expected in ((knows, 1.0), (-knows, 0.0), (0 * knows, 0.0)):  # a tie is no answer
        assert (exam._reverse(STUDY, "image", asked, scores, column)["exact"] == expected).all()


# -- tables --------------------------------------------------------------------------------------------


def records(source, first, second, composed, arm=arms.DIRECT, seeds=(0, 1), people=10):
    """Records made by hand: shares (asked in source, in target) of hop 1 and of one arm, and of hop 2."""
    rows = []
    for seed in seeds:
        for person in range(people):
            labels = {"group": STUDY, "persona": person, "source": source, "seed": seed, "choice": np.nan}
            rows.append({**labels, "arm": arms.HOP_2, "asked": "none", "view": 0, "fact": "city",
                         "exact": float(person < second * people)})  # fmt: skip
            for asked, one, both in zip((source, other(source)), first, composed, strict=True):
                for name, fact, share in ((arms.HOP_1, "", one), (arm, "city", both)):
                    rows.append({**labels, "arm": name, "asked": asked, "view": 0, "fact": fact,
                                 "exact": float(person < share * people)})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_fates_of_a_question_add_up(study, runs):
    made = tables.collect(runs)
    for found in (made, records("image", (1.0, 0.6), 0.9, (0.8, 0.3))):
        table = tables.decomposition(found, 200)
        shares = table[table["quantity"].isin(tables.FATES)].groupby(["source", "arm", "asked"])["estimate"].sum()
        np.testing.assert_allclose(shares, 1.0)
        means = found[found["group"] == STUDY].groupby(["source", "arm", "asked"])["exact"].mean()
        wide = table.pivot_table(index=["source", "arm", "asked"], columns="quantity", values="estimate", dropna=False)
        right = wide["composed"] + wide["composed all the same"]
        np.testing.assert_allclose(right, means.reindex(right.index), atol=1e-9)


def test_a_decomposition_made_by_hand():
    table = tables.decomposition(records("image", (1.0, 0.6), 0.9, (0.8, 0.3)), 500)
    found = table.set_index(["asked", "quantity"])["estimate"]
    expected = {"hop 1 missed": 0.4, "hop 2 missed": 0.0, "both right, not composed": 0.3, "composed": 0.3,
                "composed all the same": 0.0, "composed given both": 0.5, "expected if independent": 0.54,
                "composition gap": 0.3}  # fmt: skip
    for quantity, value in expected.items():
        assert found["text", quantity] == pytest.approx(value), quantity
    assert found["image", "hop 2 missed"] == pytest.approx(0.1)
    assert found["image", "composed given both"] == pytest.approx(8 / 9)


def test_a_run_that_did_not_learn_both_hops_reports_no_composed_number():
    good, bad = records("image", (1.0, 0.6), 0.9, (0.8, 0.3)), records("text", (1.0, 0.6), 0.8, (0.8, 0.3))
    both = pd.concat([good, bad], ignore_index=True)
    gates = tables.gates(both).set_index("source")["learned"]
    assert gates["image"].all() and not gates["text"].any()
    kept = tables.learned(both)
    assert set(kept[kept["source"] == "text"]["arm"]) == {arms.HOP_1, arms.HOP_2}
    assert set(tables.claim(kept, 200)["source"]) == {"image"}


@pytest.mark.parametrize(
    ("composed", "verdict"),
    [((0.8, 0.2), tables.HOLDS), ((0.8, 0.8), tables.NOT_SHOWN), ((0.3, 0.9), tables.REVERSED),
     ((0.0, 0.0), tables.NO_HEADROOM)],
)  # fmt: skip
def test_a_verdict_for_each_case(composed, verdict):
    table = tables.claim(records("text", (1.0, 0.9), 1.0, composed), 500)
    row = table.set_index("arm").loc[arms.DIRECT]
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(composed[0] - composed[1])
    assert row["expected"] == pytest.approx(0.1)
    assert verdict in tables.sentence(table.iloc[0])


# -- end to end ----------------------------------------------------------------------------------------


def test_a_study_trains_asks_every_arm_and_is_stored(study, runs):
    assert [run.condition.source for run in runs] == list(MODALITIES)
    for run in runs:
        asked = {*arms.ALONE, arms.CHAIN, arms.REVERSE_NAME, arms.REVERSE_FACT}
        study_rows = run.records[run.records["group"] == STUDY]
        assert set(study_rows["arm"]) == asked
        assert set(run.records["group"]) == {STUDY, TOGETHER, PRACTISED}
        counts = study_rows.groupby("arm").size()
        assert counts[arms.HOP_1] == 6 * 2 * 2 and counts[arms.HOP_2] == 6 * 2 and counts[arms.CHAIN] == 6 * 2 * 2 * 2
        assert counts[arms.FOUR] == 6 * 2 * 2
        assert set(run.curve["arm"]) == {arms.HOP_1, arms.HOP_2, arms.DIRECT, arms.STEPWISE}
    table = store.listing(verify=True).set_index("run")
    assert (table["state"] == "whole").all() and len(table) == len(runs)


def test_a_stored_condition_is_not_trained_again(study, runs, monkeypatch):
    monkeypatch.setattr(study, "_compute", None)
    assert study.run(runs[0].condition).records.equals(runs[0].records)


def test_a_longer_training_is_a_condition_of_its_own(study):
    usual, longer = study.conditions()[0], study.conditions(longer=3)[-1]
    assert longer.epochs == 3 * usual.epochs and longer.slug != usual.slug
    assert len(study.conditions(longer=3)) == len(study.conditions()) + len(MODALITIES)


def test_the_base_model_is_as_before(study, runs):
    assert study.vlm.fingerprint and not any("lora" in name for name, _ in study.vlm.model.named_parameters())
