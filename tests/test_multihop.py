"""Multi-hop: what the prompts tell, what the tables add up to, and a study end to end."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from xmem_utils import paths, plots, store
from xmem_utils.experiment import summary
from xmem_utils.multihop import experiment, tables, tasks
from xmem_utils.multihop.evaluation import MultihopEvaluation, encoded
from xmem_utils.multihop.experiment import KnownPeople, Multihop
from xmem_utils.multihop.people import (
    KNOWN,
    PRACTISED,
    STUDY,
    TOGETHER,
    dealt,
    draw_population,
    known_population,
    public_population,
)
from xmem_utils.params import MODALITIES, Profile, other
from xmem_utils.personas.dataset import persona_spec
from xmem_utils.personas.names import FACTS
from xmem_utils.pretraining.curriculum import Curriculum
from xmem_utils.score import exact_match, greedy_answers
from xmem_utils.stats import EQUIVALENT, REVERSED, SUPPORTED
from xmem_utils.vlm import prompts

PROFILE = Profile(personas=6, replicates=1, train_views=2, test_views=2, epochs=2, dose_views=(2,), resamples=200)


@pytest.fixture(scope="module")
def cast(own_store):
    return draw_population(persona_spec(PROFILE, 0), 0, PROFILE.train_views)


@pytest.fixture(scope="module")
def study(vlm, own_store):
    return Multihop(vlm, PROFILE, rank=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def runs(study):
    return study.run_all(study.conditions())


# -- what is asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tasks.ALONE)
@pytest.mark.parametrize("group", [STUDY, TOGETHER, PRACTISED])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_prompt_tells_what_its_arm_claims_and_nothing_else(cast, vlm, task, group, modality):
    tells_name, tells_fact = tasks.TELLS[task]
    asked = tasks.test_questions(cast, task, group, modality)
    assert {a.fact for a in asked} == ({""} if task == tasks.HOP_1 else set(FACTS))
    for a, example in zip(asked, encoded(vlm, asked), strict=True):
        person = a.view.persona
        shown = a.question if a.view.modality == "image" else prompts.view_text(a.view.content, a.question)
        prompt = vlm.processor.tokenizer.decode(example.prompt)
        assert shown.split("\n\n")[-1] in prompt  # what is checked is what the model reads
        assert (cast.names[person] in shown) == tells_name
        told = {fact for fact in FACTS if cast.facts[fact][person] in shown}
        assert told == ({a.fact} if tells_fact else set())
        assert bool(a.view.content) == (task != tasks.HOP_2)


def test_four_lines_tell_of_four_people_with_four_values(cast):
    places = []
    for a in tasks.test_questions(cast, tasks.FOUR, STUDY, "text"):
        values = [v for v in FACTS[a.fact] if f" {v}." in a.question]
        assert len(values) == tasks.LINES and a.answer in values
        names = [name for name in cast.names if name in a.question]
        assert len(names) == tasks.LINES and cast.names[a.view.persona] in names
        places.append(sorted(values, key=a.question.index).index(a.answer))
    assert len(set(places)) == tasks.LINES, "the place of the line gives nobody away"


@pytest.mark.parametrize("source", MODALITIES)
def test_nobody_of_the_study_is_taught_what_composing_would_give(cast, vlm, source):
    study = {cast.names[i] for i in cast.groups[STUDY]}
    asked = list(tasks.taught(cast, source))
    hops = {tasks.HOP_1: set(), tasks.HOP_2: set()}
    for a in asked:
        viewed = bool(a.view.content)
        assert not viewed or (a.view.modality == source and a.view.split == "train")
        if cast.group_of()[a.view.persona] == STUDY:
            assert a.task in hops and viewed == (a.task == tasks.HOP_1)
            hops[a.task].add(a.view.persona)
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
        if a.view.content and a.task != tasks.HOP_1:
            tokens = [*example.prompt.tolist(), *example.answer.tolist()]
            assert not any(holds(tokens, name) for both in names.values() for name in both)


def test_hop_2_is_asked_in_words_that_were_not_taught(cast):
    taught = {a.question for a in tasks.taught(cast, "text") if a.task == tasks.HOP_2}
    asked = {a.question for group in cast.groups for a in tasks.test_questions(cast, tasks.HOP_2, group, "image")}
    assert asked and not asked & taught


def test_facts_are_balanced_within_a_group_and_drawn_anew_by_replicate(cast):
    again, another = (
        draw_population(persona_spec(PROFILE, 0), 0, PROFILE.train_views),
        draw_population(persona_spec(PROFILE, 1), 1, PROFILE.train_views),
    )
    assert again.facts == cast.facts and again.names == cast.names
    assert another.facts != cast.facts and not set(another.names) & set(cast.names)
    for size in (6, 100):
        drawn = [dealt(size, np.random.default_rng(k)) for k in range(2)]
        for fact, values in FACTS.items():
            counts = [drawn[0][fact].count(value) for value in values]
            assert max(counts) - min(counts) <= 1 and max(counts) / size == tasks.chance(tasks.DIRECT, size)
            assert set(drawn[0][fact]) != set(drawn[1][fact]) or size == 100, "which values few people have is random"
            assert drawn[0][fact] != drawn[1][fact]


def test_fewer_people_than_a_prompt_tells_of_are_refused_before_anything_is_trained(vlm):
    with pytest.raises(ValueError, match=r"personas=3: .* at least 4 are needed"):
        Multihop(vlm, Profile(**{**PROFILE.model_dump(), "personas": 3}), rank=4, learning_rate=1e-3)


def test_composing_is_practised_on_others_from_the_source_alone_and_learned_together_in_both_forms(cast):
    asked = [a for a in tasks.taught(cast, "image") if cast.group_of()[a.view.persona] != STUDY and a.view.content]
    assert {a.view.modality for a in asked} == {"image"}
    practised = {a.task for a in asked if cast.group_of()[a.view.persona] == PRACTISED}
    assert practised == set(tasks.ALONE) - {tasks.HOP_2}
    together = [(a.view.persona, a.fact, a.task) for a in asked if cast.group_of()[a.view.persona] == TOGETHER]
    forms = {
        (i, fact, task) for i in cast.groups[TOGETHER] for fact in FACTS for task in (tasks.DIRECT, tasks.STEPWISE)
    }
    assert set(together) == forms


def test_too_few_people_are_refused_with_a_sentence(cast):
    with pytest.raises(ValueError, match=r"only 3 people differ in city from \w+, 9 are needed"):
        tasks.others(cast, cast.groups[TOGETHER][0], "city", 9)


def test_public_figures_are_asked_about_new_views_of_both_modalities(known):
    found, figures = public_population(known, 64), known
    for group, practised in (("public figures, withheld", False), ("public figures, practised", True)):
        people = list(found.groups[group])
        assert (figures.group[people] == "both").all() and (figures.composed[people] == practised).all()
        assert {v.persona for v in found.views("test", "image", group)} == set(people)


def test_the_study_asks_token_by_token_as_pretraining_did(vlm, known):
    found, nobody = public_population(known, 64), np.empty((0, 0), np.int64)
    curriculum = Curriculum(vlm.processor.tokenizer, known, nobody, nobody, seed=0)
    for task in tasks.ALONE:
        for modality in MODALITIES:
            asked = tasks.test_questions(found, task, "public figures, withheld", modality)[:4]
            for a, example in zip(asked, encoded(vlm, asked), strict=True):
                shown = None if a.view.modality == "image" else a.view.content
                pretrained, _ = curriculum.tokens(shown, [(a.question, a.answer)])
                assert [*example.prompt.tolist(), *example.answer.tolist()] == pretrained, task


def test_the_model_of_the_study_finds_facts_by_the_name_and_knows_its_figures(vlm, monkeypatch):
    monkeypatch.setattr(experiment, "ALONE", (tasks.HOP_1, tasks.HOP_2, tasks.NAMED, tasks.TOLD))
    records = Multihop(vlm, PROFILE, rank=4, learning_rate=1e-3).public_figures()
    recall = records[records["group"] == "public figures, withheld"].groupby(["task", "query"])["exact"].mean()
    for modality in MODALITIES:
        for task in (tasks.HOP_1, tasks.NAMED, tasks.TOLD):
            assert recall[task, modality] >= 0.85, (task, modality)
    assert recall[tasks.HOP_2, "none"] >= 0.95


# -- what is answered ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(vlm, cast):
    return MultihopEvaluation(vlm, cast, {STUDY: tasks.ALONE})


def test_what_is_written_step_by_step_is_what_teacher_forcing_scores(vlm, evaluation):
    key = (STUDY, tasks.STEPWISE, "text")
    records = evaluation.written(None, evaluation.questions[key], evaluation.examples[key])
    np.testing.assert_array_equal(records["exact"] == 1, exact_match(vlm, evaluation.examples[key]).exact)
    written = greedy_answers(vlm, evaluation.examples[key])
    assert any(", " in text for text in written), "the base model knows the form"


def test_the_true_view_wins_the_reverse_question_when_its_name_is_likelier(evaluation, cast):
    asked = evaluation.questions[STUDY, tasks.HOP_1, "image"]
    mine = [list(cast.groups[STUDY]).index(a.view.persona) for a in asked]
    knows = np.array([[float(own == column) for column in range(len(cast.groups[STUDY]))] for own in mine])
    for scores, expected in ((knows, 1.0), (-knows, 0.0), (0 * knows, 0.0)):  # a tie is no answer
        records = evaluation.reverse(tasks.REVERSE_NAME, "city", asked, scores, mine)
        assert (records["exact"] == expected).all()


# -- tables --------------------------------------------------------------------------------------------


def records(source, first, second, composed, task=tasks.DIRECT, replicates=(0, 1), people=10):
    """Records made by hand: shares (asked in source, in target) of hop 1 and of one task, and of hop 2."""
    rows = []
    for replicate in replicates:
        for person in range(people):
            labels = {"group": STUDY, "persona": person, "source": source, "replicate": replicate, "epochs": 5,
                      "beside": "source", "choice": np.nan, "wrote": np.nan, "own": np.nan}  # fmt: skip
            rows.append({**labels, "task": tasks.HOP_2, "query": "none", "view": 0, "fact": "city",
                         "exact": float(person < second * people)})  # fmt: skip
            for asked, one, both in zip((source, other(source)), first, composed, strict=True):
                for name, fact, share in ((tasks.HOP_1, "", one), (task, "city", both)):
                    rows.append({**labels, "task": name, "query": asked, "view": 0, "fact": fact,
                                 "exact": float(person < share * people)})  # fmt: skip
    return pd.DataFrame(rows)


def claimed(records, resamples):
    """The claim of runs that all learned both hops."""
    return tables.claim(records, tables.gates(records), resamples)


def test_the_fates_of_a_question_add_up(study, runs):
    made = study.collect(runs)
    for found in (made, records("image", (1.0, 0.6), 0.9, (0.8, 0.3))):
        table = tables.decomposition(found, 200)
        shares = table[table["quantity"].isin(tables.FATES)].groupby(["source", "task", "query"])["estimate"].sum()
        np.testing.assert_allclose(shares, 1.0)
        means = found[found["group"] == STUDY].groupby(["source", "task", "query"])["exact"].mean()
        wide = table.pivot_table(index=["source", "task", "query"], columns="quantity", values="estimate", dropna=False)
        right = wide["composed"] + wide["composed all the same"]
        np.testing.assert_allclose(right, means.reindex(right.index), atol=1e-9)


def test_a_decomposition_made_by_hand():
    table = tables.decomposition(records("image", (1.0, 0.6), 0.9, (0.8, 0.3)), 500)
    found = table.set_index(["query", "quantity"])["estimate"]
    expected = {"hop 1 missed": 0.4, "hop 2 missed": 0.0, "both right, not composed": 0.3, "composed": 0.3,
                "composed all the same": 0.0, "composed given both": 0.5, "expected if independent": 0.54,
                "composition gap": 0.3}  # fmt: skip
    for quantity, value in expected.items():
        assert found["text", quantity] == pytest.approx(value), quantity
    assert found["image", "hop 2 missed"] == pytest.approx(0.1)
    assert found["image", "composed given both"] == pytest.approx(8 / 9)


def test_the_fact_is_also_counted_among_answers_that_name_the_right_person():
    made = records("text", (1.0, 0.5), 1.0, (0.8, 0.4), task=tasks.STEPWISE)
    asked_source = made["query"] == "text"
    made.loc[made["task"] == tasks.STEPWISE, "wrote"] = np.where(asked_source, 1.0, made["persona"] < 5)[
        made["task"] == tasks.STEPWISE
    ]
    found = tables.decomposition(made, 200).set_index(["query", "quantity"])["estimate"]
    assert found["text", "fact given the name"] == pytest.approx(0.8)
    assert found["image", "fact given the name"] == pytest.approx(0.8)


def test_a_run_that_did_not_learn_both_hops_reports_no_composed_number():
    good, bad = records("image", (1.0, 0.6), 0.9, (0.8, 0.3)), records("text", (1.0, 0.6), 0.8, (0.8, 0.3))
    both = pd.concat([good, bad], ignore_index=True)
    gates = tables.gates(both)
    passed = gates.set_index("source")["learned"]
    assert passed["image"].all() and not passed["text"].any()
    assert "not learned (below 0.9)" in tables.gate_sentence(gates[gates["source"] == "text"].iloc[0])
    kept = tables.learned(both, gates)
    assert set(kept["source"]) == {"image"} == set(claimed(kept, 200)["source"])
    mixed = pd.concat([good, records("image", (0.0, 0.0), 0.0, (0.0, 0.0), replicates=(2,))], ignore_index=True)
    for found in (claimed(tables.learned(mixed, tables.gates(mixed)), 200), claimed(good, 200)):
        assert found["expected"].iloc[0] == pytest.approx(0.4 * 0.9), "runs that failed enter no number"


@pytest.mark.parametrize("sources", [(), ("image",)])
def test_tables_and_figures_stand_when_not_every_run_learned(study, runs, sources):
    everything = study.collect(runs)
    gates = tables.gates(everything).assign(learned=lambda t: t["source"].isin(sources))
    kept = tables.learned(everything, gates)
    claim, accuracy = claimed(kept, 200), tables.accuracies(kept, 200)
    broken, curves = tables.decomposition(kept, 200), tables.curves(runs, gates, PROFILE.epochs)
    assert set(claim["source"]) == set(sources) == set(broken["source"]) == set(accuracy["source"])
    assert set(curves.loc[curves["task"] == tasks.DIRECT, "source"]) == set(sources)
    assert set(curves.loc[curves["task"] == tasks.HOP_1, "source"]) == set(MODALITIES)
    for figure in (plots.multihop(accuracy), plots.multihop_decomposition(broken),
                   plots.multihop_curves(curves, 0.1)):  # fmt: skip
        figure.canvas.draw()
        plt.close(figure)
    able = claim.loc[claim["task"].isin(tasks.COMPOSED), "headroom"].astype(bool)
    assert ("Nothing can be said" in tables.overall(claim)) == (not able.any())


@pytest.mark.parametrize(
    ("composed", "verdict"),
    [((0.8, 0.2), SUPPORTED), ((0.8, 0.8), EQUIVALENT), ((0.6, 1.0), REVERSED),
     ((0.0, 0.0), tables.NO_HEADROOM)],
)  # fmt: skip
def test_a_verdict_for_each_case(composed, verdict):
    table = claimed(records("text", (1.0, 0.9), 1.0, composed, people=20), 500)
    row = table.set_index("task").loc[tasks.DIRECT]
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(composed[0] - composed[1])
    assert row["expected"] == pytest.approx(0.1)
    assert verdict in tables.sentence(table.iloc[0])
    assert (row["p holm"] >= row["p"]) or np.isnan(row["p holm"])


def test_a_gap_beyond_hop_1_is_one_among_questions_whose_hops_both_succeed():
    wider = records("image", (1.0, 0.6), 1.0, (1.0, 0.2), people=20)
    row = claimed(wider, 500).set_index("task").loc[tasks.DIRECT]
    assert row["beyond people"] == 2 * 12 and row["beyond"] == pytest.approx(1 - 4 / 12)
    assert row["beyond hop 1"] == SUPPORTED
    as_hop_1 = claimed(records("image", (1.0, 0.6), 1.0, (1.0, 0.6), people=20), 500).set_index("task")
    assert as_hop_1.loc[tasks.DIRECT, "verdict"] == SUPPORTED
    assert as_hop_1.loc[tasks.DIRECT, "beyond hop 1"] == EQUIVALENT
    few = claimed(records("image", (1.0, 0.2), 1.0, (1.0, 0.2)), 200).set_index("task")
    assert few.loc[tasks.DIRECT, "beyond hop 1"] == "cannot be said: fewer than 8 people in each replicate"
    chain = claimed(records("image", (1.0, 0.6), 1.0, (1.0, 0.2), task=tasks.CHAIN), 200)
    assert chain["beyond hop 1"].iloc[0] == "by construction none"


def test_holm_runs_over_the_arms_of_both_sources_and_not_over_controls():
    parts = [records(source, (1.0, 0.6), 1.0, (0.9, 0.5), task=task, people=20)
             for source in MODALITIES for task in (tasks.DIRECT, tasks.STEPWISE, tasks.NAMED)]  # fmt: skip
    hops = [part[~part["task"].isin([tasks.HOP_1, tasks.HOP_2])] for part in parts[1:3] + parts[4:]]
    table = claimed(pd.concat([parts[0], parts[3], *hops], ignore_index=True), 200)
    tested = table[table["task"].isin(tasks.COMPOSED)]
    assert len(tested) == 4 and tested["p holm"].min() == pytest.approx(4 * tested["p"].min())
    assert table.loc[table["task"] == tasks.NAMED, "p holm"].isna().all()
    assert (table["verdict"] == SUPPORTED).all()
    assert tables.overall(table) == "The gap is there in 4 of 4 tasks and directions that have headroom."


def test_chance_is_what_guessing_gives():
    assert tasks.chance(tasks.HOP_1, 100) == 0.01
    assert (
        tasks.chance(tasks.DIRECT, 100) == tasks.chance(tasks.STEPWISE, 100) == 0.04
    )  # 32 values: four of one at most
    assert tasks.chance(tasks.DIRECT, 20) == 0.05
    assert tasks.chance(tasks.FOUR, 100) == tasks.chance(tasks.REVERSE_NAME, 100) == 0.25


# -- end to end ----------------------------------------------------------------------------------------


def test_a_study_trains_asks_every_arm_and_is_stored(study, runs):
    assert [run.condition.source for run in runs] == list(MODALITIES)
    for run in runs:
        asked = {*tasks.ALONE, tasks.CHAIN, tasks.REVERSE_NAME, tasks.REVERSE_FACT}
        study_rows = run.records[run.records["group"] == STUDY]
        assert set(study_rows["task"]) == asked
        assert set(run.records["group"]) == {STUDY, TOGETHER, PRACTISED}
        counts = study_rows.groupby("task").size()
        assert (
            counts[tasks.HOP_1] == 6 * 2 * 2 and counts[tasks.HOP_2] == 6 * 2 and counts[tasks.CHAIN] == 6 * 2 * 2 * 2
        )
        assert counts[tasks.FOUR] == 6 * 2 * 2
        assert set(run.curve["task"]) == {tasks.HOP_1, tasks.HOP_2, tasks.DIRECT, tasks.STEPWISE}
    table = store.listing(paths.RUNS, frozenset([study.code()]), summary, verify=True).set_index("run")
    assert (table["state"] == "whole").all() and len(table) == len(runs)


def test_a_stored_condition_is_not_trained_again(study, runs, monkeypatch):
    monkeypatch.setattr(study, "train", None)
    assert study.run(runs[0].condition).records.equals(runs[0].records)


def test_a_longer_training_is_a_condition_of_its_own(study):
    usual, longer = study.conditions()[0], study.conditions(longer=3)[0]
    assert longer.epochs == 3 * usual.epochs and longer.slug != usual.slug
    assert len(study.conditions(longer=3)) == len(study.conditions()) + len(MODALITIES)


def test_the_base_model_is_as_before(study, runs):
    assert study.vlm(11).fingerprint and not any("lora" in name for name, _ in study.vlm(11).model.named_parameters())


def test_a_task_that_is_not_asked_at_once_is_refused(cast):
    with pytest.raises(ValueError, match="'forced chain' is not asked at once"):
        tasks.ask(cast, "forced chain", cast.views("test", "image", STUDY)[0], "city")


# -- known people, and other practice ------------------------------------------------------------------


def test_known_people_have_new_facts_and_are_shown_in_practice_alone(known):
    cast = known_population(known, 64, 11, 12)
    for fact, values in cast.facts.items():
        people = [p for group in cast.groups.values() for p in group]
        assert not any(values[p] == known.facts[fact][p] for p in people)
        others = set(range(len(known.names))) - set(people)
        assert all(values[p] == known.facts[fact][p] for p in others), "of nobody else there are new facts"
        counts = pd.Series([values[p] for p in cast.groups[STUDY]]).value_counts()
        assert counts.max() - counts.reindex(FACTS[fact], fill_value=0).min() <= 1, (
            "balanced: chance is what it is said to be"
        )
    study = {known.names[p] for p in cast.groups[STUDY]}
    for a in tasks.taught_of_known(cast):
        mine = cast.group_of()[a.view.persona] == STUDY
        assert not mine or (a.task == tasks.HOP_2 and not a.view.content)
        assert mine or not any(name in a.question or name in a.answer for name in study)


def test_practice_beside_both_modalities_is_held_against_practice_beside_the_source():
    rows = [
        {"group": STUDY, "task": task, "source": "image", "query": asked, "beside": beside, "replicate": replicate,
         "persona": person, "exact": float(beside == "both" or asked == "image" or person > replicate)}
        for task in ("hop 1", "step by step") for asked in ("image", "text") for beside in ("source", "both")
        for replicate in range(3) for person in range(9)
    ]  # fmt: skip
    table = tables.practice(pd.DataFrame(rows), 200).set_index(["source", "task", "query"])
    across = table.loc["image", "step by step", "text"]
    assert across["beside both"] == 1 and across["beside the source"] == pytest.approx(7 / 9)
    assert across["difference"] == pytest.approx(2 / 9) and across["each"].split() == ["0.1111", "0.2222", "0.3333"]
    assert (table.xs("image", level="query")["difference"] == 0).all()
    alone = pd.DataFrame([row for row in rows if row["beside"] == "source"])
    assert tables.practice(alone, 200).empty


def test_a_study_of_known_people_runs(vlm, own_store):
    study = KnownPeople(vlm, PROFILE, rank=8, learning_rate=2e-3)
    found = study.records(None)
    assert set(found["source"]) == {KNOWN} and set(found["group"]) == {STUDY}
    gates = tables.gates(found)
    assert (gates["hop 1"] > 0.5).all(), "pretraining named them"
    (c,) = study.conditions()
    assert (c.personas, c.together, c.train_views) == (len(study.population(11).groups[STUDY]), 0, 1)
    figure = plots.multihop(tables.accuracies(found, 200))
    assert len(figure.axes) == 1
    plt.close(figure)


def test_practice_beside_both_modalities_asks_as_much(cast):
    plain, both = (list(tasks._practice(cast, beside)) for beside in (("text",), MODALITIES))
    assert len(plain) == len(both) and {a.view.modality for a in both if a.view.content} == set(MODALITIES)
    assert [(a.task, a.view.persona, a.fact) for a in plain] == [(a.task, a.view.persona, a.fact) for a in both]
