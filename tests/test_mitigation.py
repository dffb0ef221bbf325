"""Mitigation end to end on six people: what it is fed, at equal compute, and what its tables say."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from peft.tuners.lora import LoraLayer

from xmem_utils import paths, store
from xmem_utils.experiment import summary
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.mitigation import data, losses, tables
from xmem_utils.mitigation.evaluation import MitigationEvaluation
from xmem_utils.mitigation.experiment import Mitigation, budgeted_steps, shrink
from xmem_utils.mitigation.methods import METHODS, Method, method_named
from xmem_utils.mitigation.names import BASELINE, CEILING, DESCRIBED, PAIRED, PUBLIC, STUDY, VIEW
from xmem_utils.params import Profile, other
from xmem_utils.personas.dataset import names_of
from xmem_utils.score import exact_match, greedy_answers
from xmem_utils.stats import EQUIVALENT, REVERSED, SUPPORTED
from xmem_utils.train import Outputs, Resources
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import Example, answer_tokens

PROFILE = Profile(personas=6, replicates=1, train_views=4, test_views=2, epochs=4, dose_views=(4,), resamples=200)
SOURCES = ("image", "text")


@pytest.fixture(scope="module")
def study(vlm, own_store):
    return Mitigation(Memorization(vlm, PROFILE, rank=8, learning_rate=2e-3))


@pytest.fixture(scope="module")
def runs(study):
    """A method of each kind, in both directions."""
    chosen = (BASELINE, "captions", "self-labelled", "aligned, all layers")
    return study.run_all([study.condition(m, METHODS[m].settings()[0], s, 11) for s in SOURCES for m in chosen])


@pytest.fixture(scope="module")
def fed(study):
    """What every method is fed: (method, source) -> named examples and material, by an untrained model."""
    model = adapt(study.vlm(11).model, 8).eval()
    try:
        return {
            (m.name, source): study.data(study.condition(m.name, m.settings()[0], source, 11), model)
            for m in METHODS.values()
            for source in SOURCES
        }
    finally:
        model.unload()
        for source in SOURCES:  # labels are kept by what had been memorized, and this model had memorized nothing
            study.around(study.memorization.condition(source, 11)).labels = None


# -- what is mixed in --------------------------------------------------------------------------------


def said_in(examples, names):
    """Which of some token sequences occur in the examples' tokens."""
    found = set()
    for e in examples:
        ids = torch.cat([e.prompt, e.answer]).tolist()
        for name, pieces in names.items():
            if any(ids[i : i + len(p)] == p for p in pieces for i in range(len(ids) - len(p) + 1)):
                found.add(name)
    return found


@pytest.fixture(scope="module")
def name_tokens(study):
    """Token ids of the study's names, as they stand at the start of a text and after a blank."""
    tokenizer = study.vlm(11).processor.tokenizer
    names = names_of(study.memorization.dataset(11)[0])
    return {n: [tokenizer(before + n, add_special_tokens=False).input_ids for before in ("", " ")] for n in names}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", SOURCES)
def test_no_target_view_carries_a_study_name(study, fed, name_tokens, method, source):
    mixed = fed[method, source]
    named = mixed.named
    assert said_in(named, name_tokens) == set(name_tokens)  # the search finds names where they are
    if method == "own words":  # text with names, all of it written by the model of source views
        views = study.around(study.memorization.condition(source, 11)).views
        texts, _ = data.described(study.vlm(11), [v for v in views if v.index % 2])
        tokenizer = study.vlm(11).processor.tokenizer
        shown = [tokenizer.decode(e.prompt) for e, v in zip(named, views, strict=True) if v.index % 2]
        assert all(text in prompt for text, prompt in zip(texts, shown, strict=True))
        assert not mixed.auxiliary
        return
    assert all(bool(e.inputs) == (source == "image") for e in named)  # with a picture, or without: source views
    # an untrained model labels with names of its own: whatever it says of the study's people is not their name
    assert not said_in(mixed.auxiliary + mixed.partners, name_tokens)


def test_pairs_are_nameless_and_of_views_that_nobody_trains_on(study):
    for source in SOURCES:
        start = study.memorization.condition(source, 11)
        pairs = study.around(start).pairs
        assert len(pairs) == 6 * data.PAIR_VIEWS
        assert {v.name for p in pairs for v in (p.source, p.target)} == {""}
        assert all(p.source.persona == p.target.persona and p.source.modality == source for p in pairs)
        assert all(p.target.modality == other(source) for p in pairs)
        trained = {(v.persona, v.index) for v in study.around(start).views}
        assert not trained & {(p.source.persona, p.source.index) for p in pairs}


def test_labels_are_what_the_model_says_of_the_source_view(study, fed):
    vlm = study.vlm(11)
    mixed = fed["self-labelled", "image"]
    asked = study.around(study.memorization.condition("image", 11)).asked
    said = greedy_answers(vlm, [p.source for p in asked])  # the untrained adapter is the base model
    assert [e.answer.tolist() for e in mixed.auxiliary] == [t.tolist() for t in answer_tokens(vlm, said)]
    assert all(torch.equal(e.prompt, p.target.prompt) for e, p in zip(mixed.auxiliary, asked, strict=True))
    assert not mixed.auxiliary[0].inputs  # a description: the target


def test_self_training_labels_target_views_by_themselves(study, fed):
    vlm = study.vlm(11)
    asked = study.around(study.memorization.condition("image", 11)).asked
    said = answer_tokens(vlm, greedy_answers(vlm, [p.target for p in asked]))
    mixed = fed["self-trained", "image"]
    assert [e.answer.tolist() for e in mixed.auxiliary] == [t.tolist() for t in said]
    assert all(torch.equal(e.prompt, p.target.prompt) for e, p in zip(mixed.auxiliary, asked, strict=True))
    assert mixed.read == 2 * sum(len(p.target.prompt) + len(t) for p, t in zip(asked, said, strict=True))


def test_a_threshold_leaves_the_likely_labels_and_fewer_people_leave_the_others_out(study):
    asked = study.around(study.memorization.condition("image", 11)).asked
    n = len(asked)
    probability = np.linspace(0, 1, n)
    around = study.around(study.memorization.condition("image", 11))
    teacher = torch.zeros(2, 3), torch.zeros(2, 3)
    said = [replace(p.source, answer=torch.tensor([5, 1]), teacher=teacher) for p in asked]
    labels = data.Labels(said, probability)
    assert len(data._labelled(around, labels, 6, 0.0, soft=False).auxiliary) == n
    sure = data._labelled(around, labels, 6, 0.9, soft=True).auxiliary
    assert len(sure) == (probability >= 0.9).sum() and all(e.teacher is not None for e in sure)
    few = data._labelled(around, labels, 2, 0.0, soft=False)
    own = [p.target for p in asked if p.person < 2]
    assert [e.prompt.tolist() for e in few.auxiliary] == [e.prompt.tolist() for e in own]
    assert set(few.people) == {0, 1}


def test_the_figures_whom_the_evaluation_asks_about_are_not_replayed(study, fed):
    figures = study.memorization.evaluation_of(11).figures
    tokenizer = study.vlm(11).processor.tokenizer
    asked = {figures.names[i] for i in figures.where("both")[-data.ASKED_FIGURES :]}
    mixed = fed["replay", "image"]
    said = {tokenizer.decode(e.answer, skip_special_tokens=True).strip() for e in mixed.auxiliary}
    assert not said & asked
    assert said & set(figures.names)


def test_replay_is_refused_for_a_model_whose_figures_are_not_known(study, monkeypatch):
    monkeypatch.setattr(study.memorization.evaluation_of(11), "figures", None)
    with pytest.raises(ValueError, match="nothing can be replayed"):
        data.replayed(study.around(study.memorization.condition("image", 11)), None, 0, 0.0)


def test_half_of_the_source_views_come_in_the_models_own_words(study, fed):
    for source in SOURCES:
        mixed = fed["own words", source]
        named, before = mixed.named, fed[BASELINE, source].named
        assert [e.answer.tolist() for e in named] == [e.answer.tolist() for e in before]  # the names stay
        changed = [not torch.equal(a.prompt, b.prompt) for a, b in zip(named, before, strict=True)]
        assert changed == [bool(v.index % 2) for v in study.around(study.memorization.condition(source, 11)).views]
        assert mixed.read > 0


def test_matching_asks_about_the_same_person_and_about_another(study, fed):
    tokenizer = study.vlm(11).processor.tokenizer
    mixed = fed["matching", "text"]
    said = [tokenizer.decode(e.answer, skip_special_tokens=True) for e in mixed.auxiliary]
    assert said == ["Yes", "No"] * (len(said) // 2)
    for yes, no in zip(mixed.auxiliary[::2], mixed.auxiliary[1::2], strict=True):
        assert all(torch.equal(yes.inputs[k], no.inputs[k]) for k in yes.inputs) and yes.inputs  # the same picture
        assert not torch.equal(yes.prompt, no.prompt)


# -- losses --------------------------------------------------------------------------------------------


def taught(logits, teacher):
    """What a student says to one token of one example, and what its teacher said."""
    example = Example(torch.tensor([1]), torch.tensor([0]), {}, {}, teacher=teacher)
    return Outputs(logits[None], torch.tensor([[0]]), examples=[example])


def test_distillation_is_zero_for_the_teacher_itself_and_right_on_three_tokens():
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]])
    same = taught(logits, losses.soft_label(logits, kept=2))
    assert float(losses.distillation(same)) == pytest.approx(0, abs=1e-6)
    teacher, student = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])
    tokens, logprobs = losses.soft_label(teacher.log()[None], kept=1)
    assert tokens.tolist() == [[0]]
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)  # the first token, and all others as one event
    other = taught(student.log()[None], (tokens, logprobs))
    assert float(losses.distillation(other)) == pytest.approx(by_hand, abs=1e-6)


def test_alignment_is_relative_and_pulls_the_target_alone():
    nothing, label = torch.zeros(1, 1, 3), torch.tensor([[0]])
    source = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
    target = torch.tensor([[[[3.0, 9.0]]]], requires_grad=True)
    here, there = Outputs(nothing, label, states=target), Outputs(nothing, label, states=source)
    loss = losses.alignment(here, there)
    assert loss.item() == pytest.approx(25 / 25)
    loss.backward()
    assert source.grad is None and target.grad is not None
    assert losses.alignment(there, there).item() == 0


# -- runs ----------------------------------------------------------------------------------------------


def test_every_method_trains_for_the_same_tokens(runs):
    costs = tables.costs(runs)
    assert set(costs["method"]) == {BASELINE, "captions", "self-labelled", "aligned, all layers"}
    assert costs.groupby("source")["budget"].nunique().eq(1).all()
    over = costs["tokens"] - costs["budget"]
    assert (over >= 0).all() and (over < costs["last step"]).all()
    assert (costs["work"] >= 3 * (costs["budget"] - costs["of the start"])).all()
    reads = costs.groupby("method")["read"].sum()
    assert (reads[["self-labelled", "aligned, all layers"]] > 0).all() and (reads[[BASELINE, "captions"]] == 0).all()


def test_a_run_off_its_budget_is_refused(runs):
    own = runs[0].facts
    for tokens in (own["budget"] - 1, own["budget"] + own["last step"]):  # too short, a step too long
        with pytest.raises(AssertionError, match="off its budget"):
            tables.costs([replace(runs[0], facts={**own, "counted": tokens})])
    other_budget = replace(runs[0], facts={**own, "budget": 1, "counted": 1})
    with pytest.raises(AssertionError, match="budgets differ"):
        tables.costs([runs[0], other_budget])


@pytest.mark.parametrize("method", ["self-labelled, soft", "aligned, all layers", "replay"])
def test_several_passes_a_step_have_the_loss_of_one(study, method, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # in bf16 they differ in the third digit
    made_of, losses = study.condition(method, METHODS[method].settings()[0], "image", 11), {1: [], 3: []}
    for accumulation, seen in losses.items():
        note = lambda model, step, steps, loss, seen=seen: seen.append(loss)  # noqa: E731
        study.train(made_of, note, Resources(accumulation))[0].unload()
    np.testing.assert_allclose(losses[1][:3], losses[3][:3], rtol=1e-4)


def test_labels_are_held_against_the_names_for_the_record_alone(study, runs):
    by = {(r.condition.method, r.condition.start.source): r.facts["labels right"] for r in runs}
    assert np.isnan(by[BASELINE, "image"]) and 0 <= by["self-labelled", "image"] <= 1
    start = study.memorization.condition("image", 11)
    names = answer_tokens(study.vlm(11), names_of(study.memorization.dataset(11)[0]))
    bare = study.around(start).asked[0].target
    fed = data.Mixed([], [replace(bare, answer=names[0]), replace(bare, answer=names[0])], people=[0, 1])
    assert study._labels_right(start, fed) == 0.5


def test_what_is_perceived_does_not_depend_on_an_adapter(study):
    vlm = study.vlm(11)
    kept = study.evaluation_of.__wrapped__(study, 0, "text")._asked[2][4]
    model = adapt(vlm.model, 8)
    try:
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=1.0)
        with pytest.raises(RuntimeError, match="an adapter is on the base model"):
            study.evaluation_of.__wrapped__(study, 0, "text")
    finally:
        model.unload()
    again = study.evaluation_of.__wrapped__(study, 0, "text")._asked[2][4]
    assert [e.prompt.tolist() for e in kept] == [e.prompt.tolist() for e in again]


def test_training_from_the_start_has_the_same_budget_in_all(study):
    run = study.run(study.condition("lower rank", {"rank": 4.0}, "image", 11))
    baseline = study.run(study.condition(BASELINE, {}, "image", 11))
    assert run.facts["budget"] == baseline.facts["budget"]
    assert run.facts["steps"] > 2 * baseline.facts["steps"]
    model = study.model_of(run)
    rank = next(m.r["default"] for m in model.modules() if isinstance(m, LoraLayer))
    model.unload()
    assert rank == 4


def test_a_run_leaves_the_base_model_as_it_was(study, runs):
    before = study.evaluation_of.__wrapped__(study, 0, "image").records()["logprob"].to_numpy()
    study.run(study.condition("aligned, depth 3/5", {"depth": 0.6, "weight": 0.3}, "image", 11))
    assert np.array_equal(before, study.evaluation_of.__wrapped__(study, 0, "image").records()["logprob"].to_numpy())
    assert not any(isinstance(m, LoraLayer) for m in study.vlm(11).model.modules())


def test_a_stored_run_gives_the_model_that_was_evaluated(study, runs):
    run = next(r for r in runs if r.condition.method == "self-labelled" and r.condition.start.source == "text")
    model = study.model_of(run)
    try:
        examples = study.memorization.evaluation_of(11).examples["image"]
        logprob = exact_match(study.vlm(11), examples, model).logprob
    finally:
        model.unload()
    shown = run.records[
        (run.records["group"] == STUDY) & (run.records["task"] == VIEW) & (run.records["query"] == "image")
    ]
    assert np.allclose(logprob, shown["logprob"], atol=1e-4)
    found = store.listing(paths.RUNS, frozenset(), summary)
    assert found["run"].str.startswith("mitigation/").sum() >= len(runs)


def test_shrinking_keeps_a_share_of_the_change(vlm):
    model = adapt(vlm.model, 4)
    try:
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        change = layer.get_delta_weight("default").clone()
        shrink(model, 0.25)
        assert torch.allclose(layer.get_delta_weight("default"), 0.25 * change)
    finally:
        model.unload()


def test_nobody_paired_is_the_baseline(study):
    for source in SOURCES:
        doses = study.doses(source, 11)
        assert doses[0] == study.condition(BASELINE, {}, source, 11)
        assert doses[-1] == study.condition(PAIRED, {}, source, 11)
        assert [c.paired for c in doses] == sorted({c.paired for c in doses})


def test_the_ceiling_asks_in_the_source_modality(study):
    for source, kind in (("image", "image"), ("text", "text")):
        evaluation = study.evaluation_of(11, source)
        shown = [v for v in study.memorization.evaluation_of(11).views[other(source)] if v.index < 1]
        seen = evaluation.perceived(shown)
        assert {v.modality for v in seen} == {kind}
        assert [v.persona for v in seen] == [v.persona for v in shown]


def test_unknown_methods_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown mitigation 'caption': expected some of baseline; captions;"):
        method_named("caption")
    asked = SimpleNamespace(methods="replay; captions")
    assert Mitigation.methods_of(asked) == [BASELINE, "replay", "captions"]
    assert Mitigation.methods_of(SimpleNamespace(methods=f"captions; {DESCRIBED}")) == [BASELINE, "captions"]
    fresh = SimpleNamespace(methods="lower rank")
    assert Mitigation.methods_of(fresh) == [BASELINE, "baseline, from the start", "lower rank"]


def test_a_method_that_no_search_has_tried_needs_one_only_if_it_has_settings(study, monkeypatch):
    monkeypatch.setitem(study.methods, "new", Method("new"))
    monkeypatch.setitem(study.methods, "newer", Method("newer", grid={"weight": (1.0,)}))
    assert study.settings_of("xmem-tiny-s", ["new", BASELINE]) == {"new": {}, BASELINE: {}}
    with pytest.raises(ValueError, match="no settings for newer: run `python -m xmem_utils search 07_mitigation"):
        study.settings_of("xmem-tiny-s", [BASELINE, "newer"])


# -- tables --------------------------------------------------------------------------------------------


def made_up(recalls, people=40, source="image"):
    """Records of methods whose source, target and ceiling recall are given shares of people."""
    rows = []
    for method, (own, target, ceiling) in recalls.items():
        shares = {(STUDY, VIEW, source): own, (STUDY, VIEW, other(source)): target,
                  (STUDY, CEILING, other(source)): ceiling, (PUBLIC, VIEW, source): 0.5}  # fmt: skip
        for (group, task, query), share in shares.items():
            for person in range(people):
                labels = {"source": source, "method": method, "replicate": 0, "paired": 0, "group": group, "task": task}
                rows.append(
                    {
                        **labels,
                        "query": query,
                        "persona": person,
                        "view": 0,
                        "exact": person < share * people,
                        "rank": 1 if person < share * people else 2,
                        "names": people,
                        "among": float("nan"),
                    }
                )
    return pd.DataFrame(rows)


RECORDS = made_up({BASELINE: (1.0, 0.5, 0.9), "good": (1.0, 0.9, 0.95), "bad": (1.0, 0.1, 0.9), "same": (1.0, 0.5, 0.9),
                   "forgets": (0.5, 0.9, 0.5)})  # fmt: skip


def test_the_parts_add_up_to_the_gap():
    for method, part in RECORDS.groupby("method"):
        table = tables.per_persona(part)
        assert np.allclose(table["perception part"] + table["recall part"], table["gap"]), method
    own = tables.per_persona(RECORDS[RECORDS["method"] == BASELINE]).mean()
    assert own["perception part"] == pytest.approx(0.1) and own["recall part"] == pytest.approx(0.4)


def test_verdicts_need_a_difference_and_a_memory():
    both = tables.comparison(RECORDS, 500)
    assert both["measure"].value_counts().tolist() == [5, 5], "said and closed-set"
    table = both[both["measure"] == "said"].set_index("method")
    said = {"good": SUPPORTED, "bad": REVERSED, "same": EQUIVALENT, "forgets": tables.FORGOT}
    assert table["verdict"].to_dict() == {**said, DESCRIBED: SUPPORTED}
    assert (table["p holm"] >= table["p"]).all()
    assert table.loc["good", f"change of {tables.TARGET}"] == pytest.approx(0.4)


def test_describing_recalls_what_the_ceiling_says_and_leaves_no_recall_part():
    base = RECORDS[RECORDS["method"] == BASELINE].assign(exact=False)
    base.loc[base["group"] == PUBLIC, "exact"] = True
    memorized = made_up({BASELINE: (1.0, 0.25, 0.9)})
    table = tables.estimates(RECORDS, base, memorized, 200)
    start = table[table["method"] == tables.START].set_index("quantity")["estimate"]
    assert start.to_dict() == {tables.SOURCE: 1.0, tables.TARGET: 0.25}
    knew = table[table["method"] == tables.BEFORE].set_index("quantity")["estimate"]
    assert knew.to_dict() == {f"{PUBLIC}, image": 1.0}
    own = table[table["method"] == DESCRIBED].set_index("quantity")["estimate"]
    assert own[tables.TARGET] == pytest.approx(0.9) and own["recall part"] == 0
    assert own["gap"] == own["perception part"] == pytest.approx(0.1)
    ratio = table[(table["method"] == "good") & (table["quantity"] == tables.RATIO)]["estimate"].item()
    assert ratio == pytest.approx(0.9)
    assert table[(table["method"] == "forgets") & (table["quantity"] == tables.RATIO)]["estimate"].isna().all()


def test_doses_tell_paired_from_unpaired_people():
    records = pd.concat([
        made_up({BASELINE: (1.0, 0.5, 1.0)}), made_up({PAIRED: (1.0, 0.25, 1.0)}).assign(paired=10),
    ])  # fmt: skip
    tested = tables.doses(records, 200).set_index(["paired", "group"])[["p", "p holm"]]
    assert tested.loc[0].isna().all(axis=None) and (tested.loc[10, "p holm"] >= tested.loc[10, "p"]).all()
    table = tables.doses(records, 200).set_index(["paired", "group"])["estimate"]
    assert table[10, "paired"] == 1.0 and table[10, "not paired"] == 0.0 and table[10, "everybody"] == 0.25
    assert (0, "paired") not in table.index
    said = tables.doses(records, 200).set_index(["paired", "group"])["verdict"]
    assert (said[0] == "").all() and (said[10] != "").all(), "nobody paired is what the others are held against"
    whole = pd.concat([records, made_up({PAIRED: (1.0, 1.0, 1.0)}).assign(paired=40)])
    tested = tables.doses(whole, 200).set_index(["paired", "group"])["p"]
    assert np.isnan(tested[40, "everybody"]) and tested[40, "paired"] < 0.05, "the same people are tested once"
    moved = tables.doses(records, 200).set_index(["paired", "group"])["change"]
    # of the thirty unpaired ten were recalled before, none is now; the ten paired were all recalled before
    assert moved[10, "not paired"] == pytest.approx(-1 / 3) and moved[10, "paired"] == 0
    not_asked = made_up({BASELINE: (1.0, 1.0, 1.0)}).assign(replicate=1)  # who was never paired is in no point
    pd.testing.assert_frame_equal(tables.doses(pd.concat([records, not_asked]), 200), tables.doses(records, 200))


def test_the_search_takes_the_best_that_memorizes_and_the_first_of_equals():
    def rows(method, setting, own, target):
        return [
            {"method": method, "settings": setting, "source": m, tables.SOURCE: own[k], tables.TARGET: target[k]}
            for k, m in enumerate(SOURCES)
        ]

    tried = [
        *rows("m", "a", (1, 1), (0.6, 0.6)),
        *rows("m", "b", (0.95, 1), (0.6, 0.6)),
        *rows("m", "c", (0.8, 1), (0.9, 0.9)),
        *rows("n", "d", (0.5, 1), (0.9, 0.9)),
        *rows("n", "e", (0.7, 1), (0.1, 0.1)),
    ]
    chosen = Mitigation.choose(pd.DataFrame(tried)).set_index("method")
    assert chosen.loc["m", "settings"] == "a" and chosen.loc["m", "kept"]
    assert chosen.loc["n", "settings"] == "e" and not chosen.loc["n", "kept"]


def test_the_committed_settings_are_those_that_the_committed_search_chose(study):
    again = Mitigation.choose(Mitigation.table("xmem-tiny-s", "search")).set_index("method")
    committed = Mitigation.table("xmem-tiny-s").set_index("method")
    assert list(committed.index) == list(again.index) == [name for name in METHODS if name in committed.index]
    assert {name for name, row in METHODS.items() if row.grid and not row.like} <= set(committed.index)
    assert (again["settings"] == committed["settings"]).all()
    chosen = Mitigation.settings_of("xmem-tiny-s", list(METHODS))
    assert all(chosen[name] in METHODS[row.like or name].settings() for name, row in METHODS.items())
    for source in SOURCES:
        assert study.best(source, list(METHODS)) not in (BASELINE, "baseline, from the start")
        assert study.best(source, [BASELINE, "captions"]) == "captions"
        strangers = [name for name in METHODS if "strangers" in name]
        assert study.best(source, [BASELINE, *strangers]) == strangers[0], "neither has had a search"
        assert study.best(source, [BASELINE]) == BASELINE


def test_what_base_models_answer_is_stored(study, monkeypatch):
    first = study.before()
    monkeypatch.setattr(MitigationEvaluation, "records", None)
    pd.testing.assert_frame_equal(study.before(), first)
    kept = list((paths.RUNS / "untrained").glob("xmem-tiny-s-11-mitigation-*.parquet"))
    assert len(kept) >= 2 and all(file.with_suffix(".sha256").exists() for file in kept)


# -- an added budget, and hard labels ------------------------------------------------------------------


def test_on_top_there_are_as_many_named_views_as_without(study, fed):
    mixed = fed["captions, on top", "text"]
    budget = 3 * data.length(mixed.named)
    plain, spent = budgeted_steps(data.Mixed(mixed.named), budget, 1e-3, 0)
    added, more = budgeted_steps(mixed, budget, 1e-3, 0, on_top=True)
    assert [step.batch["names"] for step in plain] == [step.batch["names"] for step in added]
    assert all("auxiliary" in step.batch for step in added)
    assert more["counted"] == spent["tokens"] < more["tokens"]


def test_half_of_the_pairs_with_strangers_are_of_people_whom_nobody_named(study, fed):
    for source in SOURCES:
        mixed = fed["self-labelled, with strangers", source]
        whole = fed[PAIRED, source]
        strangers = [i for i in mixed.people if i == data.STRANGER]
        assert len(strangers) == len(mixed.people) / 2 and len(mixed.people) == len(whole.people)


def test_labels_of_who_has_not_memorized_are_asked_for_too(study):
    usual = study.condition(PAIRED, {}, "text", 11)
    early = study.condition(PAIRED, {}, "text", 11, after=0.5)
    assert early.start.epochs == usual.start.epochs / 2 and early.epochs == usual.epochs
    plain = [study.condition(BASELINE, {}, "text", 11, after=share) for share in (0.5, 1.0)]
    made = study.run_all([usual, early, *plain])
    table = tables.hard(made, lambda run: run.condition.start.epochs, 200).set_index("after")
    assert table.index.tolist() == [0.5, 1.0] and (table["method"] == PAIRED).all()
    assert table["of the start"].tolist() == [early.start.epochs, usual.start.epochs]
    assert tables.bake_off(made, [BASELINE, PAIRED]) == [made[0], made[3]] and tables.bake_off(made, [PAIRED]) == [
        made[0]
    ]
    assert (table["verdict"] != "").all() and (table["material"] > 0).all()
    labelled, unlabelled = early, plain[0]
    for column, condition in (("another's name", labelled), ("another's name, plain", unlabelled)):
        records = study.run(condition).records
        asked = records[(records["group"] == STUDY) & (records["task"] == VIEW) & (records["query"] == "image")]
        assert (asked["exact"] == (asked["answer"] == "name")).all()
        assert table.loc[0.5, column] == (asked["answer"] == "other name").mean()
