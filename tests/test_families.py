"""The study's parts on the real classes of other families, tiny and random: see `families.py`."""

import warnings

import families
import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForImageTextToText

from xmem_utils.multihop import tasks
from xmem_utils.multihop.evaluation import MultihopEvaluation
from xmem_utils.multihop.people import STUDY, Population
from xmem_utils.personas.dataset import PersonaSpec, build, names_of, to_views
from xmem_utils.personas.names import FACTS
from xmem_utils.personas.views import View
from xmem_utils.score import exact_match, greedy_answers, ranked, ranks, recall_of_all
from xmem_utils.train import Training, fresh, memorize, train
from xmem_utils.unlearning.experiment import unlearning_steps
from xmem_utils.unlearning.methods import METHODS
from xmem_utils.vlm import lean, name_tree
from xmem_utils.vlm.adapters import adapt, merged
from xmem_utils.vlm.batches import FEATURES, answer_tokens, collate, encode, with_answer
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.precision import mixed_precision
from xmem_utils.vlm.processors import DEFAULT_SIDE, picture_side
from xmem_utils.vlm.prompts import WHO

TRAINING = Training(epochs=35, batch_size=10, learning_rate=1e-2, rank=8, seed=1)


@pytest.fixture(scope="module")
def people():
    return build(PersonaSpec(personas=5, seed=991, train_views=3, test_views=1, size=families.SIDE))


@pytest.fixture(scope="module")
def texts(people):
    return [row["description"] for split in ("train", "test") for row in people[split]] + [WHO]


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def family(request, texts, tmp_path_factory):
    families.skip_without_torchvision(request.param)
    folder = families.save(request.param, texts, tmp_path_factory.mktemp(request.param))
    return load_vlm(str(folder)), folder


@pytest.fixture(scope="module")
def examples(family, people):
    return {(s, m): encode(family[0], to_views(people, s, m)) for s in ("train", "test") for m in ("image", "text")}


@pytest.fixture(scope="module")
def memorized(family, examples, tmp_path_factory):
    """A model that memorized five personas from both modalities in turn, its adapter, and the base before."""
    vlm, _ = family
    before = exact_match(vlm, examples["test", "text"]).logprob
    state = {k: v.clone() for k, v in vlm.model.state_dict().items()}
    models = {}
    for source in ("image", "text"):
        model = memorize(vlm, examples["train", source], TRAINING)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        recalled = exact_match(vlm, examples["train", source], model).exact
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        model.unload()
        models[source] = (folder, recalled, trained)
    return models, before, state


@pytest.fixture(scope="module", params=["image", "text"])
def reloaded(request, family, memorized):
    """Plain PEFT around plain transformers, of the same folder and the saved adapter."""
    vlm, folder = family
    base = AutoModelForImageTextToText.from_pretrained(folder)
    if vlm.model.config._attn_implementation != base.config._attn_implementation:
        base.set_attn_implementation(vlm.model.config._attn_implementation)
    return request.param, PeftModel.from_pretrained(base, memorized[0][request.param][0]).eval()


def mixed(people, vlm) -> list[View]:
    """Portraits in several shapes, so that tiling and dynamic resolution give different numbers of tokens."""
    views = to_views(people, "test", "image")
    sizes = [(32, 32), (64, 32), (32, 64), (64, 64), (48, 32)]
    return [
        View(v.persona, v.name, v.modality, v.split, v.index, v.content.resize(size))
        for v, size in zip(views, sizes, strict=True)
    ]


def test_every_training_view_is_memorized(memorized):
    for source, (_, recalled, _) in memorized[0].items():
        assert recalled.all(), source


def test_only_the_language_models_linear_layers_are_trained(family, memorized):
    vlm, _ = family
    tower = {id(p) for name, p in vlm.model.named_parameters() if "vis" in name or "proj" in name.split(".")[1]}
    assert tower  # there is something that must stay frozen
    for _, _, trained in memorized[0].values():
        assert trained and all("lora_" in name for name in trained)
        assert all("language_model." in name or "text_model." in name for name in trained)
        assert not any("vis" in name or "lm_head" in name for name in trained)


def test_the_base_is_as_before_after_unloading(family, examples, memorized):
    vlm, _ = family
    now = vlm.model.state_dict()
    assert now.keys() == memorized[2].keys()
    assert all(torch.equal(now[k], v) for k, v in memorized[2].items())
    np.testing.assert_array_equal(exact_match(vlm, examples["test", "text"]).logprob, memorized[1])


def test_plain_peft_reloads_the_adapter_and_exact_match_is_greedy_decoding(
    family, people, examples, reloaded, memorized
):
    vlm, _ = family
    source, model = reloaded
    np.testing.assert_array_equal(exact_match(vlm, examples["train", source], model).exact, memorized[0][source][1])
    for (split, modality), some in examples.items():
        forced = exact_match(vlm, some, model).exact
        decoded = greedy_answers(vlm, some, model)
        names = [v.name for v in to_views(people, split, modality)]
        assert [d == n for d, n in zip(decoded, names, strict=True)] == forced.tolist(), (split, modality)
    assert not exact_match(vlm, examples["test", {"image": "text", "text": "image"}[source]], model).exact.all()


def test_all_names_are_scored_as_one_pass_a_name_scores_them(family, people, examples, reloaded):
    vlm, _ = family
    _, model = reloaded
    names = [*names_of(people), names_of(people)[0][:4] + "zu"]  # one shares its beginning with another
    answers = answer_tokens(vlm, names)
    shapes = encode(vlm, mixed(people, vlm))
    for some in (examples["test", "image"], examples["test", "text"], shapes):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the tree serves all of these classes
            shared = recall_of_all(vlm, some, names, model)
        plain = [exact_match(vlm, [with_answer(e, answer) for e in some], model) for answer in answers]
        np.testing.assert_allclose(shared.logprob, np.stack([p.logprob for p in plain], 1), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(shared.exact, np.stack([p.exact for p in plain], 1))


def test_ranks_by_pruning_are_those_of_the_whole_tree(family, people, examples, reloaded):
    """Names of different lengths, one that begins like another, and one that stands there twice and so ties."""
    vlm, _ = family
    _, model = reloaded
    names = [*names_of(people), names_of(people)[0][:4] + "zu", names_of(people)[1] + "zuzu", names_of(people)[2]]
    given = np.array([[i, (i + 3) % 5] for i in range(5)])
    for some in (examples["test", "image"], examples["test", "text"], encode(vlm, mixed(people, vlm))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pruning serves all of these classes
            pruned = ranked(vlm, some, names, given, model)
        every, rows = recall_of_all(vlm, some, names, model), np.arange(5)[:, None]
        np.testing.assert_array_equal(pruned.rank, ranks(every.logprob, given[:, 0]))
        assert pruned.rank[2] > 1  # the tie counts against the model
        np.testing.assert_allclose(pruned.logprob, every.logprob[rows, given], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(pruned.exact, every.exact[rows, given])


def test_batches_of_different_lengths_and_tiles_score_as_single_examples(family, people, examples):
    vlm, _ = family
    for some in (encode(vlm, mixed(people, vlm)), examples["test", "text"]):
        together = exact_match(vlm, some).logprob
        alone = [exact_match(vlm, [e]).logprob[0] for e in some]
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
        pad = vlm.processor.tokenizer.pad_token_id
        bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in some]
        assert len({len(e.prompt) for e in bare}) == 1 or (collate(bare, pad)["attention_mask"] == 0).any()


def test_features_seen_once_score_as_pixels(family, people, examples):
    vlm, _ = family
    pixels = encode(vlm, to_views(people, "test", "image"), features=False)
    assert all(FEATURES not in e.inputs for e in pixels)
    np.testing.assert_allclose(
        exact_match(vlm, pixels).logprob, exact_match(vlm, examples["test", "image"]).logprob, rtol=1e-5, atol=1e-5
    )


def test_pictures_are_drawn_at_the_processors_size(family):
    expected = DEFAULT_SIDE if type(family[0].processor).__name__ in families.ANY_RESOLUTION else families.SIDE
    assert picture_side(family[0].processor) == expected


def test_prefix_language_models_mark_the_answer_and_others_do_not(family, examples):
    _, folder = family
    prefix = "paligemma" in (folder / "config.json").read_text()
    for modality in ("image", "text"):
        e = examples["test", modality][0]
        batch = collate([e], 0)
        for key, value in e.per_token.items():
            assert batch[key].shape[:2] == batch["input_ids"].shape
            further = value[-1] if value.ndim > 1 else 1 if prefix and key == "token_type_ids" else 0
            assert (batch[key][0, len(value) :] == further).all()


def test_a_cache_shorter_than_the_prompt_falls_back_to_plain_passes(people, texts, tmp_path):
    sliding = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    vlm = load_vlm(str(families.save("gemma3", texts, tmp_path / "short", **sliding)))
    some, names = encode(vlm, to_views(people, "test", "text")), names_of(people)
    with pytest.warns(UserWarning, match=r"cannot score all names in one pass for prompts of \d+ tokens; each of 5"):
        fallen = recall_of_all(vlm, some, names)
    for i, answer in enumerate(answer_tokens(vlm, names)):
        alone = exact_match(vlm, [with_answer(e, answer) for e in some])
        np.testing.assert_allclose(fallen.logprob[:, i], alone.logprob, rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recall_of_all(vlm, some, names)  # found out once, said once
    given = np.arange(5)[:, None]
    with pytest.warns(UserWarning, match="cannot score all names in one pass"):
        np.testing.assert_array_equal(ranked(vlm, some, names, given).rank, ranks(fallen.logprob, given[:, 0]))
    decoded = greedy_answers(vlm, some)
    forced = exact_match(vlm, some).exact
    assert [d == v.name for d, v in zip(decoded, to_views(people, "test", "text"), strict=True)] == forced.tolist()


def test_a_tree_that_scores_otherwise_is_not_used(people, texts, tmp_path, monkeypatch):
    vlm = load_vlm(str(families.save("gemma3", texts, tmp_path / "model")))
    some, names = encode(vlm, to_views(people, "test", "image")), names_of(people)
    right = recall_of_all(vlm, some, names)
    vlm.checked.clear()
    monkeypatch.setattr(name_tree, "_next_position", lambda *given: torch.zeros(given[2], 1, dtype=torch.long))
    with pytest.warns(UserWarning, match="cannot score all names in one pass"):
        np.testing.assert_allclose(recall_of_all(vlm, some, names).logprob, right.logprob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bf16", "small"), [(False, lean.SMALL), (False, 0), (True, lean.SMALL)])
def test_a_lean_step_has_the_loss_and_gradients_of_a_plain_one(family, examples, bf16, small, monkeypatch):
    vlm, _ = family
    monkeypatch.setattr(lean, "SMALL", small)
    torch.manual_seed(0)
    model = adapt(vlm.model, 4).train()
    for name, p in model.named_parameters():
        if "lora_B" in name:  # a fresh adapter does nothing
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))

    lora_layers = sum(isinstance(module, LoraLayer) for module in model.modules())

    def step(some):
        batch = collate(some, vlm.processor.tokenizer.pad_token_id, side="left")
        model.zero_grad()
        with mixed_precision(vlm.device, bf16):
            said = forward(model, batch, max(len(e.answer) for e in some))
            logits, labels = said.logits, said.labels
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    try:
        for modality in ("image", "text"):
            loss, gradient = step(examples["train", modality][:4])
            with lean.lean(model, torch.bfloat16 if bf16 else torch.float32):
                assert sum("forward" in vars(module) for module in model.modules()) >= lora_layers
                lean_loss, lean_gradient = step(examples["train", modality][:4])
            assert lean_loss == pytest.approx(loss, rel=2e-2 if bf16 else 1e-5)
            apart = (lean_gradient - gradient).norm() / gradient.norm()
            assert apart < (0.1 if bf16 else 1e-5)
        assert not any("forward" in vars(module) for module in model.modules())
    finally:
        model.unload()


@pytest.mark.parametrize("name", ["NPO", "RMU"])
def test_every_family_unlearns_from_pictures_and_texts(family, examples, name):
    """Prompts of both modalities in one step, reference logits and hidden states, then the merged weights."""
    vlm, _ = family
    shown = examples["train", "image"][:4]
    views = {"forget": shown, "refusal": shown, "retain": examples["train", "text"][:4]}
    method, settings = METHODS[name], {**METHODS[name].settings()[-1], "steps": 2.0}
    before = exact_match(vlm, shown).logprob
    objective = method.objective(settings, vlm.model.config.get_text_config().hidden_size)
    model = train(vlm, fresh(vlm, 4, 0), unlearning_steps(views, method, settings, 0), objective)
    with merged(model):
        after = exact_match(vlm, shown, model).logprob
    np.testing.assert_allclose(exact_match(vlm, shown, model).logprob, after, atol=1e-2)
    model.unload()
    assert not np.allclose(before, after, atol=1e-6)
    np.testing.assert_array_equal(exact_match(vlm, shown).logprob, before)


def test_every_family_goes_through_the_multi_hop_arms(family, people):
    """Prompts of one batch of different lengths, questions without a view, answers decoded and forced."""
    vlm, _ = family
    names, cities, jobs = names_of(people), list(FACTS["city"][:5]), list(FACTS["job"][:5])
    views = {("test", m): to_views(people, "test", m) for m in ("image", "text")}
    population = Population(names, {"city": cities, "job": jobs}, {STUDY: range(5)}, views, "", 0)
    evaluation = MultihopEvaluation(vlm, population, {STUDY: tasks.ALONE})
    records = evaluation.records()
    assert set(records["task"]) == {*tasks.ALONE, tasks.CHAIN, tasks.REVERSE_NAME, tasks.REVERSE_FACT}
    assert records["exact"].isin([0, 1]).all()
    for key in ((STUDY, tasks.STEPWISE, "image"), (STUDY, tasks.FOUR_STEPWISE, "text")):
        forced = exact_match(vlm, evaluation.examples[key]).exact
        written = evaluation.written(None, evaluation.questions[key], evaluation.examples[key])["exact"] == 1
        np.testing.assert_array_equal(written, forced)
