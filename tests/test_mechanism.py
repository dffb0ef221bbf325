"""Looking into fixed models: the real tiny one, other families' classes, and states made by hand."""

from dataclasses import replace

import families
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from xmem_utils import plots
from xmem_utils.mechanism import explain as questions
from xmem_utils.mechanism import measures, patching, probe, tables
from xmem_utils.mechanism.explain import explain, explain_models, person_means, retrieval_ranks
from xmem_utils.mechanism.first_token import first_token
from xmem_utils.mechanism.lens import blind_reciprocal_rank, first_tokens, lens_logits, lens_ranks
from xmem_utils.mechanism.patching import patched_recall
from xmem_utils.mechanism.people import VIEWS, public_figure_people, study_people
from xmem_utils.mechanism.states import answer_states, in_batches, layers_of, name_states
from xmem_utils.params import MODALITIES
from xmem_utils.personas.attributes import distances
from xmem_utils.personas.dataset import PersonaSpec, build, names_of
from xmem_utils.personas.public_figures import PublicFigures
from xmem_utils.score import exact_match
from xmem_utils.train import Training, memorize
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import answer_tokens, model_inputs, with_answer
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.prompts import WHO


@pytest.fixture(scope="module")
def people(vlm, five):
    return study_people(vlm, five)


@pytest.fixture(scope="module")
def memorized(vlm, five, people):
    """The tiny model in an adapter that memorized five personas from pictures; loaded apart from the shared one."""
    own = load_vlm("xmem-tiny-s-11")
    model = memorize(own, people.examples["train", "image"], Training(12, 10, 3e-3, seed=1))
    return replace(own, model=model)


@pytest.fixture(scope="module")
def rows(memorized, people):
    return explain(memorized, people, ["image"])


def next_token_logits(vlm, examples):
    """What plain passes over the bare prompts predict: `[examples, vocabulary]`."""
    out = [None] * len(examples)
    with torch.no_grad():
        for batch_rows, batch in in_batches(vlm, [with_answer(e, e.answer[:0]) for e in examples]):
            logits = vlm.model(**model_inputs(batch), use_cache=False).logits[:, -1]
            for i, row in zip(batch_rows, logits, strict=True):
                out[i] = row
    return torch.stack(out)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def mean(rows: pd.DataFrame, measure: str, given: str, asked: str) -> pd.Series:
    own = rows[(rows["measure"] == measure) & (rows["given"] == given) & (rows["query"] == asked)]
    return own.groupby("layer")["value"].mean()


# -- people ------------------------------------------------------------------------------------------


def test_views_are_of_the_person_they_are_said_to_be_of_and_none_is_in_both_splits(vlm, five, people):
    assert all(map(torch.equal, people.answers, answer_tokens(vlm, names_of(five))))
    for modality in MODALITIES:
        for split, count in VIEWS.items():
            examples, who = people.examples[split, modality], people.who[split, modality]
            assert len(examples) == 5 * count
            for example, person in zip(examples, who, strict=True):
                assert torch.equal(example.answer, people.answers[person])
    shown = {s: {tuple(e.prompt.tolist()) for e in people.examples[s, "text"]} for s in ("train", "test")}
    assert not shown["train"] & shown["test"]
    first = people.first("test", "image")
    assert all(torch.equal(e.answer, answer) for e, answer in zip(first, people.answers, strict=True))
    assert people.mean(np.arange(10), "test", "image").tolist() == [
        np.flatnonzero(people.who["test", "image"] == person).mean() for person in range(5)
    ]


def test_who_lacks_a_modality_is_left_out_and_the_others_keep_their_numbers(vlm, five):
    def unseen(*personas):
        test = five["test"].map(lambda row: {"image": None if row["persona"] in personas else row["image"]})
        return type(five)(train=five["train"], test=test)

    part, names = study_people(vlm, unseen(0, 3)), names_of(five)
    assert part.numbers == (1, 2, 4)
    assert all(map(torch.equal, part.answers, answer_tokens(vlm, [names[i] for i in part.numbers])))
    with pytest.raises(ValueError, match=r"1 people have views of both .* at least 2"):
        study_people(vlm, unseen(0, 1, 2, 3))


def test_public_figures_are_known_from_both_modalities_apart_from_each_other_and_always_the_same(vlm, known):
    figures = known
    chosen, again = (public_figure_people(vlm, figures, n=6) for _ in range(2))
    assert len(chosen) == 6 and set(figures.group[list(chosen.numbers)]) == {"both"}
    apart = distances(figures.vectors[list(chosen.numbers)])
    assert apart[~np.eye(6, dtype=bool)].min() >= PersonaSpec.min_distance
    names = [figures.names[i] for i in chosen.numbers]
    assert all(map(torch.equal, chosen.answers, answer_tokens(vlm, names)))
    views, same = (part.examples["test", "text"] for part in (chosen, again))
    assert all(torch.equal(a.prompt, b.prompt) for a, b in zip(views, same, strict=True))
    nobody = PublicFigures(figures.table.assign(group="text only"))
    with pytest.raises(ValueError, match="at least 2"):
        public_figure_people(vlm, nobody)


# -- logit lens --------------------------------------------------------------------------------------


def test_the_lens_at_the_last_layer_is_the_models_own_prediction(memorized, people):
    carrier = people.examples["test", "text"][0]
    vocabulary = torch.arange(memorized.model.config.text_config.vocab_size)
    for modality in MODALITIES:
        examples = people.examples["test", modality]
        states = answer_states(memorized, examples)
        assert states.shape == (10, 5, 128)
        seen = lens_logits(memorized, states[:, -1], carrier, vocabulary)
        torch.testing.assert_close(seen, next_token_logits(memorized, examples), rtol=1e-4, atol=1e-4)
        early = lens_logits(memorized, states[:, 0], carrier, vocabulary)
        assert (early - seen).abs().max() > 1  # and another layer's is another


def test_the_lens_at_an_earlier_layer_is_norm_and_head_applied_to_its_state(memorized, people):
    model, examples, tokens = memorized.model, people.examples["test", "image"], torch.tensor([70, 9, 33])
    states = answer_states(memorized, examples)[:, 2]
    with torch.no_grad():
        expected = model.lm_head(model.get_decoder().norm(states))[:, tokens]
    seen = lens_logits(memorized, states, people.examples["test", "text"][0], tokens)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_names_that_share_a_first_token_are_one_candidate():
    answers = [torch.tensor(ids) for ids in ([5, 1, 0], [9, 1, 0], [5, 2, 0], [7, 0])]
    different, which = first_tokens(answers)
    assert different.tolist() == [5, 7, 9] and which.tolist() == [0, 2, 0, 1]
    # the best blind order: token 5 (two of four names) first, then the two others
    assert blind_reciprocal_rank(answers) == pytest.approx((2 * 1 + 1 / 2 + 1 / 3) / 4)
    assert blind_reciprocal_rank([torch.tensor([3, i]) for i in range(4)]) == 1  # nothing to tell apart


def test_a_lens_rank_counts_the_first_tokens_that_are_at_least_as_likely(vlm, people):
    vocabulary = torch.arange(vlm.model.config.text_config.vocab_size)
    carrier, examples = people.examples["test", "text"][0], people.examples["test", "text"]
    states = answer_states(vlm, examples)
    found = lens_ranks(vlm, states, people.answers, people.who["test", "text"], carrier)
    logits = lens_logits(vlm, states[:, 3], carrier, vocabulary)
    for row, person in enumerate(people.who["test", "text"]):
        scores = {int(a[0]): float(logits[row, a[0]]) for a in people.answers}
        assert found[row, 3] == sum(s >= scores[int(people.answers[person][0])] for s in scores.values())


# -- retrieval ---------------------------------------------------------------------------------------


def test_identical_states_retrieve_their_person_however_far_apart_the_modalities_lie():
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    offset = 100 * torch.ones(16)  # uncentred, every picture would be nearest to the same description
    assert (retrieval_ranks(states, 3 * states + offset) == 1).all()


def test_states_of_other_people_retrieve_at_chance():
    generator = torch.Generator().manual_seed(0)
    ranks = retrieval_ranks(torch.randn(200, 16, generator=generator), torch.randn(200, 16, generator=generator))
    assert (ranks == 1).mean() < 0.03 and abs(ranks.mean() - 100.5) < 12
    assert (retrieval_ranks(torch.eye(4), torch.eye(4).roll(1, 0)) > 1).all()
    assert (retrieval_ranks(torch.eye(4), torch.zeros(4, 4)) == 4).all()  # ties count against


def test_states_are_averaged_over_each_persons_views():
    states = torch.arange(8.0).reshape(4, 1, 2)
    means = person_means(states, np.array([1, 0, 1, 0]), 2)
    assert means.tolist() == [[[4.0, 5.0]], [[2.0, 3.0]]]


# -- probe -------------------------------------------------------------------------------------------


def separable(people: int, views: int, noise: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """States around a corner of the cube for each person, the same corners for every seed."""
    corners = torch.randn(people, 24, generator=torch.Generator().manual_seed(0)).sign()
    who = np.tile(np.arange(people), views)
    return corners[who] + noise * torch.randn(len(who), 24, generator=torch.Generator().manual_seed(seed)), who


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_probe_tells_separable_people_apart_in_new_views_and_in_the_other_modality(scale):
    train, who = separable(20, 4, 0.2, seed=1)
    new, shown = separable(20, 3, 0.2, seed=2)
    learned, centre = probe.fit(scale * train, who, 20), scale * train.double().mean(0)
    assert (learned.guesses(scale * new, centre) == shown).all()
    shifted = scale * (new + 7 * torch.randn(24, generator=torch.Generator().manual_seed(3)))
    assert (learned.guesses(shifted, shifted.double().mean(0)) == shown).all()
    assert (learned.guesses(shifted, centre) == shown).mean() < 0.9  # the offset must be taken off


def test_the_probe_is_ridge_regression_and_its_ridge_is_chosen_by_leaving_one_out():
    states, who = separable(6, 5, 1.5, seed=1)
    learned = probe.fit(states, who, 6)
    x = (states - states.mean(0)).double()
    y = torch.nn.functional.one_hot(torch.from_numpy(who), 6).double()
    y = y - y.mean(0)
    mean_square = float((x**2).sum(1).mean())

    def ridge(rows: np.ndarray, share: float) -> torch.Tensor:
        a, b = x[rows], y[rows]
        return torch.linalg.solve(a.T @ a + share * mean_square * torch.eye(24).double(), a.T @ b)

    torch.testing.assert_close(learned.weights, ridge(np.arange(30), learned.share), rtol=1e-4, atol=1e-6)
    right = {
        share: np.mean([
            int((x[i] @ ridge(np.delete(np.arange(30), i), share)).argmax()) == who[i] for i in range(30)
        ]) for share in probe.SHARES
    }  # fmt: skip
    assert learned.share == max(right, key=right.get)


def test_without_anything_to_learn_a_probe_fails_on_new_views_and_says_who_is_missing():
    generator = torch.Generator().manual_seed(0)
    who = np.tile(np.arange(30), 4)
    states = torch.randn(120, 200, generator=generator)
    learned = probe.fit(states, who, 30)
    new = torch.randn(120, 200, generator=generator)
    assert (learned.guesses(new, states.double().mean(0)) == who).mean() < 0.15
    with pytest.raises(ValueError, match="30 of 31 people"):
        probe.fit(torch.randn(120, 200), who, 31)


def test_the_probe_learns_from_training_views_of_one_modality_alone(people, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states = {key: torch.randn(len(e), 2, 300, generator=generator) for key, e in people.examples.items()}
    fit, seen = probe.fit, []
    monkeypatch.setattr(probe, "fit", lambda x, who, n: seen.append(x) or fit(x, who, n))
    found = questions.probing(people, states)
    wanted = [states["train", m][:, layer] for m in MODALITIES for layer in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))
    # what is learned of noise by heart would be right every time on the views it was learned from
    assert np.mean([*found.values()]) < 0.5
    same = {key: torch.eye(5)[people.who[key]][:, None] for key in states}
    assert all((values == 1).all() for values in questions.probing(people, same).values())


# -- patching ----------------------------------------------------------------------------------------


def test_a_views_own_state_changes_nothing_at_any_layer(memorized, people):
    for modality in MODALITIES:
        examples = people.examples["test", modality]
        states, unpatched = answer_states(memorized, examples), exact_match(memorized, examples)
        named = name_states(memorized, examples)
        assert named.shape == (10, 5, 4, 128)
        torch.testing.assert_close(named[:, :, 0], states, rtol=1e-3, atol=1e-4)
        alone = [(layer, states[:, layer - 1, None]) for layer in range(1, 6)]
        everywhere = [(layer, named[:, layer - 1]) for layer in range(1, 6)]
        for patched in patched_recall(memorized, examples, [*alone, *everywhere]):
            np.testing.assert_allclose(patched.logprob, unpatched.logprob, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(patched.exact, unpatched.exact)
    for lacking in (0, 6):
        with pytest.raises(ValueError, match=f"layer {lacking} cannot be patched: the model has layers 1 to 5"):
            patched_recall(memorized, examples, [(lacking, states[:, :1])])


def test_a_patch_after_the_last_layer_gives_the_sources_first_token(memorized, people):
    targets, sources = people.examples["test", "text"], people.examples["test", "image"][::-1]
    said = next_token_logits(memorized, sources).argmax(-1)
    asked = [with_answer(e, torch.cat([token[None], e.answer[1:]])) for e, token in zip(targets, said, strict=True)]
    states = answer_states(memorized, sources)[:, -1:]
    unpatched, patched = patched_recall(memorized, asked, [(5, states)])
    np.testing.assert_array_equal(patched.first, said)
    assert (unpatched.first != said.numpy()).any()


def test_patched_wherever_the_name_is_predicted_the_last_layer_gives_the_sources_whole_answer(memorized, people):
    sources = people.examples["test", "image"][::-1]
    targets = [with_answer(e, s.answer) for e, s in zip(people.examples["test", "text"], sources, strict=True)]
    states, wanted = name_states(memorized, sources)[:, -1], exact_match(memorized, sources)
    unpatched, patched = patched_recall(memorized, targets, [(5, states)])
    np.testing.assert_allclose(patched.logprob, wanted.logprob, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(patched.exact, wanted.exact)
    assert patched.exact.all() and not unpatched.exact.all()


@pytest.mark.parametrize("places", [1, 2, 7])
def test_a_patch_in_a_padded_batch_is_the_patch_of_each_view_alone(memorized, people, places):
    targets = list(people.examples["test", "text"])
    targets[0] = with_answer(targets[0], torch.cat([targets[0].answer[:-1], targets[1].answer]))  # a longer name
    sources = [with_answer(e, t.answer) for e, t in zip(people.examples["test", "image"], targets, strict=True)]
    states = name_states(memorized, sources)[:, 2, :places]
    unpatched, together = patched_recall(memorized, targets, [(3, states)])
    assert np.abs(together.logprob - unpatched.logprob).max() > 0.01  # far beyond rounding
    for i, example in enumerate(targets):
        ids = torch.cat([example.prompt, example.answer])[None]
        place, count = len(example.prompt) - 1, min(places, len(example.answer))

        def put(module, args, output, place=place, i=i, count=count):
            output[0, place : place + count] = states[i, :count]  # in place: the layer returns the bare tensor
            return output

        hook = layers_of(memorized.model)[2].register_forward_hook(put)
        with torch.no_grad():
            logits = memorized.model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits[0, place:-1]
        hook.remove()
        scores = logits.log_softmax(-1).gather(1, example.answer[:, None])
        assert float(scores.sum()) == pytest.approx(together.logprob[i], rel=1e-4, abs=1e-4)
        assert bool((logits.argmax(-1) == example.answer).all()) == together.exact[i]
        assert int(logits[0].argmax()) == together.first[i]


def test_the_other_persons_state_is_another_persons(memorized, people, monkeypatch):
    calls = []

    def spy(vlm, examples, patches=()):
        calls.append((examples, patches))
        return patched_recall(vlm, examples, patches)

    monkeypatch.setattr(questions, "patched_recall", spy)
    states = answer_states(memorized, people.first("test", "image"))[:, 1]
    questions.patching(memorized, people, "image")
    (targets, own), (renamed, others) = (call for call in calls if call[1])
    assert [layer for layer, _ in own] == [layer for layer, _ in others] == [1, 2, 3, 4, 5] * 2
    same, alone, swapped, swapped_alone = (states for layer, states in (*own, *others) if layer == 2)
    begins = np.array([int(answer[0]) for answer in people.answers])
    following = [questions.next_other(person, begins) for person in range(5)]
    assert all(begins[a] != begins[b] for a, b in enumerate(following))
    near = dict(rtol=1e-3, atol=1e-4)  # batches of other lengths
    torch.testing.assert_close(same[:, 0], states, **near)
    torch.testing.assert_close(swapped[:, 0], states[following], **near)
    assert torch.equal(alone, same[:, :1]) and torch.equal(swapped_alone, swapped[:, :1])
    for person in range(5):
        assert torch.equal(targets[person].answer, people.answers[person])
        assert torch.equal(targets[person].prompt, renamed[person].prompt)
        assert torch.equal(renamed[person].answer, people.answers[following[person]])


def test_the_other_person_begins_with_another_token_if_anybody_does():
    assert [questions.next_other(i, np.array([5, 5, 9])) for i in range(3)] == [2, 2, 0]
    assert questions.next_other(1, np.array([5, 5])) == 0


# -- everything together -----------------------------------------------------------------------------


def test_every_question_is_answered_for_every_layer_and_person(memorized, people, rows):
    assert not rows.drop(columns="chance").isna().any().any()
    assert not rows.duplicated(["measure", "given", "query", "layer", "persona"]).any()
    assert set(rows["persona"]) == set(people.numbers)
    counts = rows[rows["layer"] > 0].groupby(["measure", "given", "query"])["layer"].nunique()
    assert (counts[counts.index.get_level_values("measure") != measures.RECALLED] == 5).all()
    recalled = rows[(rows["measure"] == measures.RECALLED) & (rows["query"] == "image")]
    np.testing.assert_array_equal(recalled["value"], exact_match(memorized, people.first("test", "image")).exact)


def test_a_memorized_name_shows_late_and_not_early(rows):
    lens = mean(rows, measures.LENS, "", "image")
    assert lens[5] > 0.9 > lens[1]
    assert (mean(rows, measures.RECALLED, "", "image") == 1).all()
    assert mean(rows, measures.PROBE, "image", "image")[5] > 0.8


def test_nothing_is_patched_unless_it_is_asked_for(vlm, people):
    without = explain(vlm, people, ["text"], patched=False)
    assert set(without["measure"]) == {measures.LENS, measures.LENS_RANK, measures.RETRIEVED,
                                       measures.RETRIEVED_RANK, measures.PROBE, *measures.BEGINNINGS}  # fmt: skip


def test_models_side_by_side_are_each_explained_and_the_base_as_before(memorized, people, rows, tmp_path, vlm):
    memorized.model.save_pretrained(tmp_path)
    before = {k: v.clone() for k, v in vlm.model.state_dict().items()}
    table = explain_models(vlm, {("one", "image"): tmp_path, ("two", "text"): tmp_path}, people, public_figures=people)
    assert all(torch.equal(v, before[k]) for k, v in vlm.model.state_dict().items())
    assert list(dict.fromkeys(zip(table["model"], table["source"], strict=True))) == [
        ("one", "image"), ("two", "text"),
        *((name, m) for name in (measures.BEFORE, measures.PUBLIC_FIGURES) for m in MODALITIES),
    ]  # fmt: skip
    keys = ["measure", "given", "query", "layer", "persona"]
    mine, expected = (part.set_index(keys)["value"] for part in (table[table["model"] == "one"], rows))
    np.testing.assert_allclose(mine, expected[mine.index], rtol=1e-3, atol=1e-3)  # merged, and not


def test_the_model_comes_out_as_it_went_in(vlm, people, monkeypatch):
    before = {k: v.clone() for k, v in vlm.model.state_dict().items()}
    examples, hooks = people.examples["test", "text"], hooks_of(vlm.model)
    answers = exact_match(vlm, examples).logprob
    vlm.model.train()
    try:
        explain(vlm, people, ["text"])
        assert vlm.model.training and hooks_of(vlm.model) == hooks
        with monkeypatch.context() as broken:  # and also when a pass fails
            broken.setattr(type(vlm.model), "forward", lambda *args, **kwargs: 1 / 0)
            for ask in (answer_states, patched_recall):
                with pytest.raises(ZeroDivisionError):
                    ask(vlm, examples)
        with monkeypatch.context() as broken:
            broken.setattr(patching, "replaced", lambda layer, *args: layer.register_forward_hook(lambda *a: 1 / 0))
            with pytest.raises(ZeroDivisionError):
                patched_recall(vlm, examples, [(2, torch.zeros(10, 1, 128))])
        assert not any("forward" in vars(layer) for layer in layers_of(vlm.model))
        assert vlm.model.training and hooks_of(vlm.model) == hooks
    finally:
        vlm.model.eval()
    assert all(torch.equal(v, before[k]) for k, v in vlm.model.state_dict().items())
    # on some processors a product's last digit depends on where in memory its numbers lie
    np.testing.assert_allclose(exact_match(vlm, examples).logprob, answers, rtol=1e-5)


def test_a_model_of_another_build_is_refused_in_a_sentence(vlm, monkeypatch):
    monkeypatch.setattr(vlm.model.config.text_config, "num_hidden_layers", 17)
    with pytest.raises(ValueError, match="no list of its 17 layers"):
        layers_of(vlm.model)


@pytest.mark.parametrize("family", list(families.FAMILIES))
def test_other_families_can_be_looked_into(family, tmp_path):
    families.skip_without_torchvision(family)
    dataset = build(PersonaSpec(personas=3, seed=991, train_views=2, test_views=1, size=families.SIDE))
    texts = [row["description"] for split in ("train", "test") for row in dataset[split]] + [WHO]
    vlm = load_vlm(str(families.save(family, texts, tmp_path)))
    people = study_people(vlm, dataset)
    layers = vlm.model.config.get_text_config().num_hidden_layers
    assert len(layers_of(vlm.model)) == layers
    decoder = set(map(id, vlm.model.get_decoder().modules()))
    assert all(id(layer) in decoder for layer in layers_of(vlm.model))
    if family == "mllama":
        with pytest.raises(ValueError, match="passes over 1 of its layers where there is no picture"):
            answer_states(vlm, people.examples["test", "text"])
        return
    vocabulary = torch.arange(vlm.model.get_output_embeddings().weight.shape[0])
    for modality in MODALITIES:
        examples = people.examples["test", modality]
        states = answer_states(vlm, examples)
        own = lens_logits(vlm, states[:, -1], people.examples["test", "text"][0], vocabulary)
        torch.testing.assert_close(own, next_token_logits(vlm, examples), rtol=1e-3, atol=1e-4)
        unpatched, states = exact_match(vlm, examples).logprob, name_states(vlm, examples)
        for patched in patched_recall(vlm, examples, [(layer, states[:, layer - 1]) for layer in range(1, layers + 1)]):
            np.testing.assert_allclose(patched.logprob, unpatched, rtol=1e-3, atol=1e-4)
    adapted = replace(vlm, model=adapt(vlm.model, 2))
    assert not explain(adapted, people, ["image"])["value"].isna().any()


# -- tables and figure -------------------------------------------------------------------------------


def made(own: dict[int, float], others: dict[int, float], ceiling: float) -> pd.DataFrame:
    """Estimates of one model by layer; layer 0 is not patched."""
    points = [(measures.OWN, "image", "text", layer, value) for layer, value in own.items()]
    points += [(measures.OTHERS, "image", "text", layer, value) for layer, value in others.items()]
    points += [(measures.RECALLED, "", "image", 0, ceiling), (measures.RECALLED, "", "text", 0, own[0])]
    table = pd.DataFrame(points, columns=["measure", "given", "query", "layer", "estimate"])
    return table.assign(model="plain", source="image")


def test_recall_switches_on_where_half_of_what_can_come_has_come():
    row = tables.switches_on(made({0: 0.2, 1: 0.2, 2: 0.5, 3: 0.7}, {0: 0, 1: 0.1, 2: 0.6, 3: 1.0}, 1.0)).iloc[0]
    assert (row["restored"], row["swapped"], row["unpatched"], row["ceiling"]) == (3, 2, 0.2, 1.0)
    never = tables.switches_on(made({0: 0.2, 1: 0.3}, {0: 0.0, 1: 0.0}, 1.0)).iloc[0]
    assert np.isnan(never["restored"]) and np.isnan(never["swapped"])
    # where the target misses nothing, nothing can be restored, but names can still be swapped
    known = tables.switches_on(made({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.9}, 1.0)).iloc[0]
    assert np.isnan(known["restored"]) and known["swapped"] == 1


def test_estimates_are_means_over_people_with_intervals_and_the_figure_draws_them(vlm, rows, people):
    both = [rows.assign(model=model, replicate=0) for model in ("plain", "mitigated")]
    before = explain(vlm, people, ["image"], patched=False)
    both.append(before.assign(model=measures.BEFORE, replicate=0))
    table = tables.estimates(pd.concat(both), resamples=200)
    assert set(tables.switches_on(table)["model"]) == {"plain", "mitigated"}
    assert (table["low"] <= table["estimate"] + 1e-9).all() and (table["estimate"] <= table["high"] + 1e-9).all()
    lens = table[(table["measure"] == measures.LENS) & (table["query"] == "image") & (table["model"] == "plain")]
    np.testing.assert_allclose(lens["estimate"], mean(rows, measures.LENS, "", "image"))
    chance = table.groupby("measure")["chance"].first()
    assert chance[measures.PROBE] == 1 / 5 and chance[measures.RETRIEVED_RANK] == pytest.approx(137 / 300)
    assert chance[measures.LENS] == pytest.approx(blind_reciprocal_rank(people.answers))
    figure = plots.mechanism_controls(table)
    assert len(figure.axes) == 8
    drawn = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, mean(rows, measures.LENS, "", "image"))
    grey = figure.axes[2].lines[-2].get_ydata()  # the last line is chance
    np.testing.assert_allclose(grey, mean(before, measures.PROBE, "image", "text"))
    plt.close(figure)


def test_the_first_token_decides_what_is_said_and_what_would_be(memorized, people):
    values = first_token(memorized, people, "image")
    for query in ("image", "text"):
        said, first, among, calibrated, rest = (
            values[name, "", query, 0]
            for name in (
                measures.AS_IT_IS,
                measures.FIRST,
                measures.FIRST_AMONG,
                measures.FIRST_CALIBRATED,
                measures.REST,
            )
        )
        plain = exact_match(memorized, people.examples["test", query], memorized.model).exact
        np.testing.assert_allclose(said, people.mean(plain, "test", query))
        assert (said <= np.minimum(first, rest)).all() and (among <= rest).all() and (calibrated <= rest).all()
    np.testing.assert_array_equal(
        values[measures.FIRST_CALIBRATED, "", "image", 0], values[measures.AS_IT_IS, "", "image", 0]
    )


def test_the_main_figure_has_a_row_of_panels_for_each_source(rows, people, vlm):
    parts = [
        rows.assign(source=source, model=model, replicate=0)
        for source in ("image", "text")
        for model in ("plain", "best")
    ]
    swapped = {"image": "text", "text": "image"}
    parts = [p if (p["source"] == "image").all() else p.replace({"given": swapped, "query": swapped}) for p in parts]
    before = explain(vlm, people, patched=False).assign(model=measures.BEFORE, replicate=0)
    figure = plots.mechanism(tables.estimates(pd.concat([*parts, before]), resamples=100), "plain")
    assert len(figure.axes) == 6
    plt.close(figure)
