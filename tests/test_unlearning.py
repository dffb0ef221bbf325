"""Unlearning end to end on six people, method by method, and what it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from test_distributed import Noted

from xmem_utils import paths, store
from xmem_utils.experiment import summary
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import Profile
from xmem_utils.personas.dataset import to_views
from xmem_utils.personas.public_figures import known_in
from xmem_utils.score import exact_match
from xmem_utils.train import Resources
from xmem_utils.unlearning import attacks, experiment, people
from xmem_utils.unlearning.evaluation import RANKED_VIEWS, kind_of
from xmem_utils.unlearning.experiment import BEFORE, RETAIN_ONLY, Unlearning, preamble
from xmem_utils.unlearning.methods import METHODS, Method, method_named
from xmem_utils.unlearning.public import PublicFigures, PublicUnlearning
from xmem_utils.vlm.adapters import merged
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import resolve_model

PROFILE = Profile(
    personas=6, replicates=1, train_views=4, test_views=2, epochs=14, dose_views=(4,), resamples=200
)  # fmt: skip
FORGET = (2,)
SETTINGS = {"learning_rate": 1e-3, "steps": 3.0}


@pytest.fixture(scope="module")
def study(vlm, own_store):
    return Unlearning(Memorization(vlm, PROFILE, rank=8, learning_rate=2e-3))


def condition(study, method, unlearned="image", settings=SETTINGS, **more):
    return study.condition(method, settings, unlearned, 11, forget=FORGET, **more)


def settings_of(method, steps):
    fastest = {"learning_rate": max(method.rates)} if method.losses else {}
    return {**method.settings()[0], **fastest, "steps": float(steps)}


def trained(study, made_of, look=lambda *step: None):
    """The model that a condition makes, which the caller unloads."""
    model, facts = study.train(made_of, look, Resources())
    assert "diverged" not in facts
    return model


def asked(evaluation, group, modality):
    """The examples of the test views of the forgotten or the retained."""
    questions = evaluation.questions[evaluation.questions["task"] == "view"]
    return list(questions[(questions["group"] == group) & (questions["query"] == modality)]["example"])


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


# -- methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.losses], ids=lambda m: m.name)
@pytest.mark.parametrize("unlearned", ["image", "text"])
def test_a_method_moves_its_adapter_and_nothing_else(study, method, unlearned):
    made_of = condition(study, method.name, unlearned, settings_of(method, 3))
    start = study.base(made_of)
    evaluation = study.evaluation_of(11, FORGET, False)
    before = exact_match(study.vlm(11), asked(evaluation, "retain", "text"), start.model).logprob
    model = trained(study, made_of)
    moved = [float(p.abs().max()) for n, p in weights(model).items() if "lora_B" in n]
    model.unload()
    assert max(moved) > 1e-4
    after = exact_match(study.vlm(11), asked(evaluation, "retain", "text"), start.model).logprob
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", ["GA", "GradDiff", "NPO", "SimNPO", "IDK", "DPO", "UNDIAL"])
def test_a_method_lowers_the_probability_of_the_forgotten_name(study, name):
    evaluation = study.evaluation_of(11, FORGET, False)
    made_of = condition(study, name, "text", settings_of(METHODS[name], 8))
    start = study.base(made_of)
    before = exact_match(study.vlm(11), asked(evaluation, "forget", "text"), start.model).logprob.mean()
    model = trained(study, made_of)
    after = exact_match(study.vlm(11), asked(evaluation, "forget", "text"), model).logprob.mean()
    model.unload()
    assert after < before - 0.5


@pytest.mark.parametrize("name", ["NPO", "SCRUB", "task vector"])
def test_a_short_run_is_the_beginning_of_a_longer_one(study, name):
    """What lets the search look at several numbers of steps in one run."""
    seen = {}
    for steps in (2, 4):

        def look(model, step, of, loss, steps=steps):
            seen[steps, step] = weights(model)

        made_of = condition(study, name, settings=settings_of(METHODS[name], steps))
        trained(study, made_of, look).unload()
    for n, value in seen[2, 2].items():
        torch.testing.assert_close(value, seen[4, 2][n], rtol=0, atol=0)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.losses], ids=lambda m: m.name)
def test_several_passes_a_step_have_the_loss_of_one(study, method, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # in bf16 they differ in the third digit
    made_of, losses = condition(study, method.name, settings=settings_of(method, 2)), []
    for accumulation in (1, 3):
        noted = Noted()
        study.train(made_of, noted, Resources(accumulation))[0].unload()
        losses.append(noted.losses)
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)


def test_an_interrupted_unlearning_goes_on_from_its_checkpoint(study, tmp_path):
    made_of = condition(study, "NPO", settings=settings_of(METHODS["NPO"], 6))
    model = trained(study, made_of)
    whole = weights(model)
    model.unload()
    saved = Resources(checkpoint=tmp_path / "c", save_every=2)
    with pytest.raises(KeyboardInterrupt):
        study.train(made_of, Noted(stop=5), saved)
    rest = Noted()
    model, _ = study.train(made_of, rest, saved)
    again = weights(model)
    model.unload()
    assert len(rest.losses) == 2, "the first four are behind it"
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_what_a_loss_needs_is_read_off_its_arguments():
    assert METHODS["GA"].parts(1, {}) == ("forget",)
    assert METHODS["IDK"].parts(1, {}) == ("refusal", "retain")
    assert METHODS["DPO"].parts(1, {}) == ("forget", "refusal", "retain")
    assert [METHODS["SCRUB"].parts(step, {}) for step in (1, 2, 3)] == [("forget",), ("retain",), ("forget",)]
    turns = {"forget_turns": 2, "steps": 8}
    alone = [METHODS["SCRUB"].parts(step, turns) for step in range(1, 9)]
    assert alone == [("forget",), ("retain",)] * 2 + [("retain",)] * 4
    for method in METHODS.values():
        assert set(method.reference) <= {part for step in (1, 2) if method.losses for part in method.parts(step, {})}
    with pytest.raises(ValueError, match="no loss of 'new' takes 'gama'"):
        Method("new", grid={"gama": (1.0,)}, losses=METHODS["NPO"].losses)
    with pytest.raises(ValueError, match="unknown unlearning method 'NP0': expected one of GA"):
        method_named("NP0")


def test_a_task_vector_is_the_adapter_that_learned_the_forget_set_subtracted(study):
    """Twice as many steps subtract twice the weight change, and 0 leaves the start."""
    deltas = {}
    for steps in (1, 2):
        model = trained(study, condition(study, "task vector", settings={"scale": 0.1, "steps": float(steps)}))
        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        deltas[steps] = [layer.get_delta_weight("default").detach() for layer in layers]
        model.unload()
    assert max(float(d.abs().max()) for d in deltas[1]) > 0
    for one, two in zip(deltas[1], deltas[2], strict=True):
        torch.testing.assert_close(two, 2 * one)


def test_a_prompt_changes_the_question_and_no_weight(study):
    plain, told = study.evaluation_of(11, FORGET, False), study.evaluation_of(11, FORGET, True)
    name = plain.names[FORGET[0]]
    decode = study.vlm(11).processor.tokenizer.decode
    for modality in ("image", "text"):
        texts = [decode(e.prompt) for e in asked(told, "retain", modality)]
        assert all(preamble([name]).strip() in text for text in texts)
        assert not any(name in decode(e.prompt) for e in asked(plain, "retain", modality))
    model = trained(study, condition(study, "prompt", settings={}))
    assert all(not p.any() for n, p in weights(model).items() if "lora_B" in n)
    model.unload()


# -- a whole condition ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(study):
    return {
        name: study.run(condition(study, name, settings=settings, measures="thorough"))
        for name, settings in ((BEFORE, {}), (RETAIN_ONLY, {}), ("GradDiff", {"learning_rate": 1e-3, "steps": 8.0}))
    }


def recall(run, group, task="view"):
    shown = run.records[(run.records["group"] == group) & (run.records["task"] == task)]
    return shown.groupby("query")["exact"].mean()


def test_references_know_and_do_not_know_the_forgotten(runs):
    assert (recall(runs[BEFORE], "forget") == 1).all()
    assert (recall(runs[RETAIN_ONLY], "forget") == 0).all()
    assert (recall(runs[RETAIN_ONLY], "retain") >= 0.9).all()
    for run in runs.values():
        assert (recall(run, "held out", "train view") == 0).all()


def test_the_evaluation_has_every_measure_of_the_forgotten(runs):
    forgot = runs["GradDiff"].records.query("group == 'forget' and task == 'view'")
    assert len(forgot) == 2 * PROFILE.test_views
    assert forgot[["least", "logprob"]].notna().all().all()
    ranked = forgot[forgot["view"] < RANKED_VIEWS]
    assert ranked[["rank", "truth_ratio", "answer"]].notna().all().all()
    before = runs[BEFORE].records.query("group == 'forget' and task == 'view'")
    assert (before["rank"] == 1).all() and (before["answer"] == "name").all()
    assert (ranked["answer"].eq("name") == ranked["exact"].eq(1)).all(), (
        "an exact match is the name, and nothing else is"
    )
    assert before["truth_ratio"].mean() < forgot["truth_ratio"].mean()
    assert (before["least"] <= before["logprob"] / before["tokens"] + 1e-6).all()
    assert set(runs[BEFORE].records["task"]) >= {"int8", "int4"}
    assert runs[BEFORE].records["lookalike"].sum() > 0


def test_all_tasks_together_score_as_each_alone(study, runs):
    """Views of all tasks share batches, and come back in their places."""
    records, evaluation = runs[BEFORE].records, study.evaluation_of(11, FORGET, False)
    start = study.base(runs[BEFORE].condition)
    for (group, task, modality), questions in evaluation.further.groupby(["group", "task", "query"]):
        rows = records[(records["group"] == group) & (records["task"] == task) & (records["query"] == modality)]
        assert rows[["persona", "view"]].to_numpy().tolist() == questions[["persona", "view"]].to_numpy().tolist()
        alone = exact_match(study.vlm(11), list(questions["example"]), start.model)
        np.testing.assert_allclose(rows["logprob"], alone.logprob, atol=1e-3)
        np.testing.assert_array_equal(rows["exact"], alone.exact)


def test_whether_it_forgot_is_judged_on_views_the_headline_does_not_ask(study):
    evaluation = study.evaluation_of(11, FORGET, False)
    judged = evaluation.questions.query("group == 'forget' and task == 'train view'")
    assert set(judged["query"]) == {"image", "text"}
    # of texts: a picture's prompt is the same for all
    seen, judged = (
        {e.prompt.numpy().tobytes() for e in examples}
        for examples in (asked(evaluation, "forget", "text"), judged[judged["query"] == "text"]["example"])
    )
    train = [v for v in to_views(study.memorization.dataset(11)[0], "train", "text") if v.persona in FORGET]
    assert judged <= {e.prompt.numpy().tobytes() for e in encode(study.vlm(11), train)} and not judged & seen


def test_what_trains_nothing_is_evaluated_once_for_both_modalities(study, runs, monkeypatch):
    other = condition(study, BEFORE, "text", {}, measures="thorough")
    monkeypatch.setattr(type(study.evaluation_of(11, FORGET, False)), "records", None)
    records = study.run(other).records
    first = runs[BEFORE].records
    evaluated = ~first["task"].isin(["int8", "int4", "relearned"])
    assert records[~records["task"].isin(["int8", "int4", "relearned"])].equals(first[evaluated])


def test_the_curve_ends_with_the_evaluation(runs):
    run = runs["GradDiff"]
    assert sorted(run.curve["step"].unique()) == [2, 4, 6, 8]
    end = run.curve[run.curve["step"] == 8].set_index(["group", "query"])["recall"]
    first = run.records.query("task == 'view' and view == 0").groupby(["group", "query"])["exact"].mean()
    for key, value in end.items():
        assert value == first[key]


def test_the_stored_adapter_is_the_one_before_the_attacks(study, runs):
    run = runs["GradDiff"]
    start = study.base(run.condition)
    model = PeftModel.from_pretrained(start.model, run.adapter).eval()
    evaluation = study.evaluation_of(11, FORGET, False)
    again = exact_match(study.vlm(11), asked(evaluation, "forget", "text"), model).logprob
    model.unload()
    stored = run.records.query("group == 'forget' and task == 'view' and query == 'text'")["logprob"]
    np.testing.assert_allclose(again, stored, atol=1e-4)


def test_a_stored_condition_is_not_computed_again(study, runs, monkeypatch):
    monkeypatch.setattr(study, "train", None)
    monkeypatch.setattr(study, "evaluate", None)
    assert study.run(runs["GradDiff"].condition).records.equals(runs["GradDiff"].records)


def test_unlearning_runs_are_listed(runs):
    table = store.listing(paths.RUNS, frozenset([runs[BEFORE].condition.code]), summary, verify=True).set_index("run")
    row = table.loc[f"unlearning/{runs[BEFORE].condition.slug}"]
    assert row["state"] == "whole" and row["recall asked in image"] == 1
    assert set(table["state"]) == {"whole", "stale"}, "those of other methods have other code"


# -- attacks -------------------------------------------------------------------------------------------


def test_rounding_is_to_the_nearest_of_a_grid():
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        found = attacks.rounded(weight, bits)
        assert ((found - weight).abs() <= step / 2 + 1e-6).all()
        torch.testing.assert_close(found / step, (found / step).round(), atol=1e-3, rtol=0)


def test_a_merged_adapter_says_the_same_and_is_taken_out_to_the_bit(study):
    evaluation, model = study.evaluation_of(11, FORGET, False), trained(study, condition(study, "GradDiff"))
    examples = asked(evaluation, "forget", "image")
    layers = [m.get_base_layer() for m in model.modules() if isinstance(m, LoraLayer)]
    kept = [layer.weight.detach().clone() for layer in layers]
    apart = exact_match(study.vlm(11), examples, model).logprob
    with merged(model):
        np.testing.assert_allclose(exact_match(study.vlm(11), examples, model).logprob, apart, atol=1e-3)
    with merged(model, torch.zeros_like):
        assert not np.allclose(exact_match(study.vlm(11), examples, model).logprob, apart, atol=0.1)
    for before, layer in zip(kept, layers, strict=True):
        torch.testing.assert_close(layer.weight, before, rtol=0, atol=0)
    np.testing.assert_array_equal(exact_match(study.vlm(11), examples, model).logprob, apart)
    model.unload()


def test_relearning_teaches_some_and_asks_the_others(study):
    evaluation = study.evaluation_of(11, (1, 2, 4, 5), False)
    model = trained(study, study.condition("GradDiff", SETTINGS, "text", 11, forget=(1, 2, 4, 5)))
    rows = attacks.attack(evaluation, model, "text", 0)
    model.unload()
    assert set(rows["group"]) == {"forget"} and set(rows["task"]) == {"int8", "int4", "relearned"}
    others = rows[rows["task"] == "relearned"]
    assert sorted(others["persona"].unique()) == [2, 4, 5]  # a third of four, the first, was taught


# -- what is refused or recorded -----------------------------------------------------------------------


def test_forget_sets_are_checked():
    for wrong, sentence in (([], "is empty"), (range(5), "is all 5 personas")):
        with pytest.raises(ValueError, match=sentence):
            people.check_forget(wrong, 5)
    with pytest.raises(ValueError, match="is empty"):
        people.forget_set(5, 0.05, seed=0)
    with pytest.raises(ValueError, match="unknown personas: Zed"):
        people.by_name(["Ada", "Zed"], ["Ada", "Bob", "Cid"])
    assert people.by_name(["Cid", "Ada"], ["Ada", "Bob", "Cid"]) == (0, 2)
    for seed in range(3):
        assert set(people.forget_set(100, 0.05, seed)) < set(people.forget_set(100, 0.2, seed))
    assert people.forget_set(100, 0.1, 0) != people.forget_set(100, 0.1, 1)


def test_lookalikes_share_most_attributes(study):
    dataset, _ = study.memorization.dataset(11)
    from xmem_utils.personas.attributes import AXIS_NAMES

    looks = {}
    for row in dataset["test"].select_columns(["persona", *AXIS_NAMES]):
        looks[row["persona"]] = [row[axis] for axis in AXIS_NAMES]
    (alike,) = people.lookalikes(dataset, FORGET)
    shared = {i: sum(a == b for a, b in zip(looks[i], looks[2], strict=True)) for i in looks if i != 2}
    assert shared[alike] == max(shared.values())


def test_who_has_not_memorized_cannot_unlearn(vlm, study):
    lazy = Unlearning(Memorization(vlm, replace_profile(PROFILE, epochs=1), rank=2, learning_rate=1e-5))
    with pytest.raises(ValueError, match=r"has not memorized: it recalls 0\.\d\d of the names asked with image views"):
        lazy.run(condition(lazy, "GA"))


def replace_profile(profile, **changes):
    return Profile(**{**profile.model_dump(), **changes})


def test_a_loss_that_stops_being_finite_is_recorded_as_diverged(study, monkeypatch):
    def bursting(forget, retain):
        calls.append(retain)
        return forget.logits.mean() * (float("nan") if len(calls) > 1 else 1.0)

    calls = []
    monkeypatch.setitem(METHODS, "bursting", Method("bursting", losses=(bursting,)))
    run = study.run(condition(study, "bursting", settings={"learning_rate": 1e-4, "steps": 5.0}))
    assert list(run.records["group"]) == ["diverged"]
    assert len(calls) == 2


def test_kinds_of_answers():
    study, figures = frozenset({"Tavelo", "Ada Lin"}), frozenset({"Zorabe"})
    for answer, kind in (
        ("Mirako", "name"), ("Tavelo", "other name"), ("Ada Lin", "other name"), ("Mirakomi", "nobody's name"),
        ("Zorabe", "public figure"),
        ("I don't know.", "refusal"), ("mimimi", "collapse"), ("", "collapse"), ("black", "collapse"),
    ):  # fmt: skip
        assert kind_of(answer, "Mirako", study, figures) == kind


# -- design and search ---------------------------------------------------------------------------------


def test_a_design_has_all_arms_once(study):
    planned = study.conditions(SimpleNamespace(methods="all", forget_share=0.5, forget="", ablations=True))
    assert len({c.slug for c in planned}) == len(planned)
    main = [c for c in planned if c.start.source == "image+text" and c.retained == c.unlearned and len(c.forget) == 3]
    assert len(main) == 2 * (len(METHODS) + 2) + len(METHODS)
    retain_only = [c for c in planned if c.method == RETAIN_ONLY]
    assert all(c.start.left_out == c.forget for c in retain_only)
    assert {c.unlearned for c in planned if c.start.source == "text"} == {"text"}
    alone, ablated = 2 * (len(METHODS) + 2), 2 * 2 * 2  # a twentieth of six people is nobody
    assert len(planned) == len(main) + alone + ablated


def test_the_search_reads_what_it_tried_and_can_be_asked_for_one_method(study, monkeypatch, tmp_path):
    monkeypatch.setitem(study.methods, "GradDiff", replace(METHODS["GradDiff"], grid={}, points=(1, 2)))
    monkeypatch.setattr(experiment, "TUNING_SEEDS", (0,))
    monkeypatch.setattr(study, "forget_set", lambda seed, share=0.1: FORGET)
    first = study.search(["GradDiff"])
    assert set(first["method"]) == {BEFORE, RETAIN_ONLY, "GradDiff"} and set(first["steps"]) == {0, 1, 2}
    monkeypatch.setattr(study, "train", None)
    assert study.search(["GradDiff"]).equals(first)
    halves = [study.search(["GradDiff"], shard) for shard in ("1/2", "2/2")]
    assert sum(map(len, halves)) == len(first)
    (tmp_path / "unlearning_settings.csv").write_text("method,settings,steps\nNPO,{},7\nGradDiff,{},99\n")
    (tmp_path / "unlearning_search.csv").write_text("method,settings,steps\nNPO,{},7\nGradDiff,{},99\n")
    monkeypatch.setattr("xmem_utils.experiment.resolve_model", lambda name: tmp_path)
    study.write(first)
    chosen = study.table("any").set_index("method")
    assert chosen.loc["NPO", "steps"] == 7 and chosen.loc["GradDiff", "steps"] in (1, 2), "other rows stay"
    assert list(chosen.index) == ["GradDiff", "NPO"], "in the order of the table of methods"


def test_unlearning_needs_views_of_the_forgotten_alone_or_with_others(study):
    views = study.views(condition(study, "DPO", "text", retained="image+text"))
    assert len(views["forget"]) == len(views["refusal"]) == PROFILE.train_views
    assert len(views["retain"]) == 2 * 5 * PROFILE.train_views
    for name, refusal in zip(views["forget"], views["refusal"], strict=True):
        assert torch.equal(name.prompt, refusal.prompt) and not torch.equal(name.answer, refusal.answer)


def test_every_field_of_an_unlearning_condition_is_in_its_identity(study):
    made_of = condition(study, "NPO")
    others = {
        "start": made_of.start.model_copy(update={"replicate": 5}), "forget": (1,), "unlearned": "text",
        "retained": "text", "earlier": ((1,),),
        "method": "GA", "settings": {"steps": 1.0}, "measures": "thorough", "code": "x",
    }  # fmt: skip
    assert set(others) == set(type(made_of).model_fields)
    slugs = {made_of.model_copy(update={field: value}).slug for field, value in others.items()}
    assert len(slugs | {made_of.slug}) == len(others) + 1


# -- request after request, and what pretraining taught ------------------------------------------------


def test_a_later_request_starts_where_the_earlier_one_ended(study):
    first = condition(study, "GradDiff")
    later = study.condition("GradDiff", SETTINGS, "image", 11, forget=(2, 4), earlier=(FORGET,))
    assert later.before == [first] and later.labels["requests"] == 2
    taught = study.views(later)
    assert len(taught["forget"]) == PROFILE.train_views, "of who is new alone"
    assert len(taught["retain"]) == 4 * PROFILE.train_views
    run = study.run(first)
    model = PeftModel.from_pretrained(study.base(first).model, run.adapter).eval()
    evaluation = study.evaluation_of(11, FORGET, False)
    ended = exact_match(study.vlm(11), asked(evaluation, "forget", "text"), model).logprob
    begins = exact_match(study.vlm(11), asked(evaluation, "forget", "text"), study.base(later).model).logprob
    np.testing.assert_allclose(ended, begins, atol=1e-3)
    records = study.run(later).records
    assert set(records.loc[records["group"] == "forget", "persona"]) == {2, 4}


def test_requests_are_of_people_who_are_forgotten_at_once_too(vlm, own_store, monkeypatch):
    profile = PROFILE.model_copy(update={"personas": 40, "forget_sets": 2})
    several = Unlearning(Memorization(vlm, profile, rank=8, learning_rate=2e-3))
    monkeypatch.setattr(several, "settings_of", lambda model, methods: dict.fromkeys(methods, SETTINGS))
    p = SimpleNamespace(methods="GradDiff", forget="", forget_share=0.1, ablations=True)
    made = several.conditions(p)
    assert len({c.slug for c in made}) == len(made)
    chain = [c for c in made if c.earlier and c.unlearned == "image"]
    assert [len(c.forget) for c in chain] == [4, 6, 8] and all(len(c.before) == len(c.earlier) for c in chain)
    once = [c for c in made if not c.earlier and c.unlearned == c.retained == "image" and len(c.forget) == 8]
    assert [c.forget for c in once] == [chain[-1].forget], "the same people at once"
    assert chain[0].before[0].slug in {c.slug for c in made}, "the first request is one of the smaller shares"


def test_further_sets_are_for_methods_that_reach_what_is_asked_of_them(vlm, own_store, monkeypatch):
    profile = PROFILE.model_copy(update={"personas": 40, "forget_sets": 3})
    several = Unlearning(Memorization(vlm, profile, rank=8, learning_rate=2e-3))
    monkeypatch.setattr(several, "settings_of", lambda model, methods: dict.fromkeys(methods, SETTINGS))
    monkeypatch.setattr(several, "reaching", lambda model: {"NPO"})
    p = SimpleNamespace(methods="GradDiff,NPO", forget="", forget_share=0.1, ablations=False)
    sets = {m: {c.forget for c in several.conditions(p) if c.method == m} for m in ("GradDiff", "NPO", RETAIN_ONLY)}
    assert {method: len(own) for method, own in sets.items()} == {"GradDiff": 1, "NPO": 3, RETAIN_ONLY: 3}
    assert len(set().union(*sets["NPO"])) == 12, "disjoint"
    assert not Unlearning.reaching("xmem-tiny-s") & {"GA", "prompt"}, "GA does not forget what it aims at"


def test_who_diverged_or_did_not_memorize_is_no_start(study, monkeypatch):
    first = condition(study, "GradDiff")
    later = study.condition("GradDiff", SETTINGS, "image", 11, forget=(2, 4), earlier=(FORGET,))
    alone = study.condition("GradDiff", SETTINGS, "image", 11, source="image", forget=FORGET)
    assert not any(study.unusable(c) for c in (first, later, alone))
    run = study.run(first)
    monkeypatch.setattr(study, "run", lambda c: replace(run, facts={"diverged": 3}))
    assert study.unusable(later) and not study.unusable(first)
    monkeypatch.setattr(experiment, "memorized", lambda run: False)
    model, facts = study.train(alone, lambda *step: None, Resources())
    model.unload()
    assert facts == {"diverged": 0}, "a model that has not memorized is no start"


def test_public_figures_are_forgotten_from_the_base_itself(vlm, own_store):
    study = PublicUnlearning(PublicFigures(vlm, PROFILE, 8, 2e-3, "", PROFILE.epochs))
    people, _ = study.memorization.dataset(11)
    assert set(people["test"]["name"]) <= set(known_in(resolve_model(vlm.name)).names)
    before, after = (
        study.run(study.condition(method, settings, "text", 11, forget=FORGET, measures="ranked"))
        for method, settings in ((BEFORE, {}), ("GradDiff", {"learning_rate": 1e-3, "steps": 8.0}))
    )
    assert (recall(before, "forget") >= 0.5).all() and (recall(before, "retain") >= 0.9).all()
    assert recall(after, "forget")["text"] < recall(before, "forget")["text"]
    assert not (study.memorization.root / before.condition.start.slug).exists(), "nothing was memorized"
    asked = study.conditions(SimpleNamespace(ablations=True, methods="all", forget_share=0.5))
    searched = Unlearning.settings_of("xmem-tiny-s", ["GradDiff", "IDK"])
    assert {c.method: c.settings for c in asked} == {BEFORE: {}, **searched}
