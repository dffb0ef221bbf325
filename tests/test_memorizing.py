"""Memorizing and recall on the real tiny model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from xmem_utils import paths
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.score import exact_match, ranked, ranks, recall_of_all
from xmem_utils.train import Training, memorize, memorizing_steps, rate
from xmem_utils.vlm.adapters import for_evaluation
from xmem_utils.vlm.batches import FEATURES, answer_tokens, collate, encode, messages, model_inputs, with_answer
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.name_tree import Prompts
from xmem_utils.vlm.prompts import WHO

TRAINING = Training(epochs=12, batch_size=10, learning_rate=3e-3, seed=1)


@pytest.fixture(scope="module")
def examples(vlm, five):
    return {(split, m): encode(vlm, to_views(five, split, m)) for split in ("train", "test") for m in ("image", "text")}


@pytest.fixture(scope="module", params=["image", "text"])
def memorized(request, examples, tmp_path_factory):
    """A model that memorized five personas from one modality, the source, and its saved adapter."""
    own = load_vlm("xmem-tiny-s-11")  # the adapter stays in its model while other tests use the shared one
    model = memorize(own, examples["train", request.param], TRAINING)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return request.param, model, folder


def test_five_personas_are_memorized_to_the_last_one(vlm, examples, memorized):
    source, model, _ = memorized
    assert exact_match(vlm, examples["train", source], model).exact.all()


def test_pruned_ranks_equal_the_whole_tree_and_run_little_of_it(vlm, five, examples, memorized, monkeypatch):
    source, model, _ = memorized
    rng = np.random.default_rng(0)
    parts = ["ba", "zu", "mi", "ke", "lo", "ra", "ti", "no"]
    more = ["".join(rng.choice(parts, rng.integers(1, 5))).capitalize() for _ in range(80)]  # some stand twice
    names = [*names_of(five), *more]
    run, nodes = Prompts.run, []
    monkeypatch.setattr(Prompts, "run", lambda self, rows, *a: nodes.append(a[0].numel()) or run(self, rows, *a))
    for modality in ("image", "text"):
        shown = examples["test", modality]
        every = recall_of_all(vlm, shown, names, model).logprob
        for true in (every.argmax(1), every.argsort(1)[:, 40], every.argmin(1)):
            np.testing.assert_array_equal(ranked(vlm, shown, names, true[:, None], model).rank, ranks(every, true))
    shown, true = examples["train", source], np.repeat(np.arange(5), 4)[:, None]
    ranked(vlm, shown[:2], names, true[:2], model)  # tries the tree
    nodes.clear()
    assert (ranked(vlm, shown, names, true, model).rank == 1).all()
    pruned = sum(nodes)
    nodes.clear()
    recall_of_all(vlm, shown, names, model)
    assert pruned < sum(nodes) / 5, "a recalled name needs little more than its own path"


def test_decoding_among_the_names_writes_what_constrained_generation_writes(vlm, five, examples, memorized):
    _, model, _ = memorized
    names = [*names_of(five), "Bazumi", "Bazuke", "Kelora"]
    tokens = [tuple(answer.tolist()) for answer in answer_tokens(vlm, names)]
    for modality in ("image", "text"):
        shown = examples["test", modality]
        bare = [with_answer(e, torch.empty(0, dtype=torch.long)) for e in shown]
        batch = collate(bare, vlm.processor.tokenizer.pad_token_id, side="left")
        width = batch["input_ids"].shape[1]

        def allowed(_, ids, width=width):
            begun = tuple(ids[width:].tolist())
            longer = (name for name in tokens if name[: len(begun)] == begun and len(name) > len(begun))
            return sorted({name[len(begun)] for name in longer}) or [0]

        with torch.inference_mode():
            made = model.generate(
                **model_inputs(batch), max_new_tokens=len(tokens[0]), do_sample=False, prefix_allowed_tokens_fn=allowed
            )
        written = [tokens.index(tuple(ids[: len(tokens[0])])) for ids in made[:, width:].tolist()]
        among = recall_of_all(vlm, shown, names, model).among
        assert (among.sum(1) == 1).all() and among.argmax(1).tolist() == written
        for name in range(len(names)):
            found = ranked(vlm, shown, names, np.full((len(shown), 1), name), model).among[:, 0]
            np.testing.assert_array_equal(found, among[:, name])


def test_names_that_all_tie_come_last(vlm, five, examples, monkeypatch):
    forward = type(vlm.model).forward

    def indifferent(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = torch.zeros_like(out.logits)
        return out

    monkeypatch.setattr(type(vlm.model), "forward", indifferent)
    given = np.array([v.persona for v in to_views(five, "test", "text")])[:, None]
    assert (ranked(vlm, examples["test", "text"], names_of(five), given).rank == 5).all()


def test_evaluation_with_the_adapter_merged_leaves_every_weight_as_it_was(vlm, examples, memorized):
    _, model, _ = memorized
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = exact_match(vlm, examples["test", "text"], model)
    with for_evaluation(model):
        merged = exact_match(vlm, examples["test", "text"], model)
    np.testing.assert_allclose(merged.logprob, plain.logprob, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    np.testing.assert_array_equal(exact_match(vlm, examples["test", "text"], model).logprob, plain.logprob)


def test_a_picture_seen_once_gives_the_logits_of_its_pixels(vlm, five, examples):
    views = to_views(five, "test", "image")
    with torch.inference_mode():
        for view, example in zip(views[:3], examples["test", "image"], strict=False):
            prompt = vlm.processor.apply_chat_template(messages(view, WHO), add_generation_prompt=True, tokenize=False)
            plain = vlm.processor(text=[prompt], images=[[view.content]], return_tensors="pt", add_special_tokens=False)
            bare = with_answer(example, torch.empty(0, dtype=torch.long))
            batch = model_inputs(collate([bare], vlm.processor.tokenizer.pad_token_id))
            assert FEATURES in example.inputs and "pixel_values" not in batch
            torch.testing.assert_close(vlm.model(**batch).logits, vlm.model(**plain).logits)


def test_plain_peft_reloads_the_adapter_to_the_same_logits(vlm, examples, memorized):
    _, model, folder = memorized
    base = AutoModelForImageTextToText.from_pretrained(paths.BASE_MODELS / "xmem-tiny-s-11", dtype=torch.float32)
    base.set_attn_implementation(vlm.model.config._attn_implementation)
    plain = PeftModel.from_pretrained(base, folder).eval()
    for modality in ("image", "text"):
        ours = exact_match(vlm, examples["test", modality], model)
        theirs = exact_match(vlm, examples["test", modality], plain)
        np.testing.assert_allclose(ours.logprob, theirs.logprob, rtol=1e-5, atol=1e-5)


def test_a_diverging_run_stops_with_a_sentence_and_leaves_the_base_alone(vlm, examples):
    names = [name for name, _ in vlm.model.named_parameters()]
    bad = list(examples["train", "image"])
    blind = torch.full_like(bad[0].inputs[FEATURES], float("nan"))
    bad[0] = replace(bad[0], inputs={FEATURES: blind})
    with pytest.raises(FloatingPointError, match="the loss became nan in step 1"):
        memorize(vlm, bad, Training(epochs=1))
    assert [name for name, _ in vlm.model.named_parameters()] == names


def test_training_repeats_with_the_seed(vlm, examples):
    scores = []
    for _ in range(2):
        model = memorize(vlm, examples["train", "text"], Training(epochs=2, seed=5))
        scores.append(exact_match(vlm, examples["test", "image"], model).logprob)
        model.unload()
    np.testing.assert_array_equal(*scores)


def test_batches_hold_one_modality_and_every_example_once(examples):
    mixed = [*examples["train", "image"], *examples["train", "text"]]
    an_epoch = sum(math.ceil(len(examples["train", modality]) / 8) for modality in ("image", "text"))
    orders = []
    for _ in range(2):
        batches = [step.batch["names"] for step in memorizing_steps(mixed, Training(1, batch_size=8, seed=3))]
        assert len(batches) == an_epoch
        assert all(len({bool(e.inputs) for e in batch}) == 1 for batch in batches)
        found = [id(e) for batch in batches for e in batch]
        assert sorted(found) == sorted(map(id, mixed))
        orders.append(found)
    assert orders[0] == orders[1]  # the seed determines the order
    kinds = [bool(batch[0].inputs) for batch in batches]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True)), "modalities take turns"


def test_the_learning_rate_warms_up_and_ends_at_a_tenth(examples):
    assert (rate(0.0), rate(0.05), rate(1.0)) == pytest.approx((0.1, 1.0, 0.1))
    rates = [step.learning_rate for step in memorizing_steps(examples["train", "text"], Training(50, 5, 2.0))]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(2.0, abs=1e-3) and rates[-1] < 0.21
    assert rates.index(max(rates)) == len(rates) // 20


def test_the_least_likely_fifth_of_four_tokens_is_the_least_likely_one(vlm, examples):
    shown = examples["test", "text"][:3]
    found = exact_match(vlm, shown, thorough=True)
    for i, example in enumerate(shown):
        ids = torch.cat([example.prompt, example.answer])[None]
        with torch.inference_mode():
            logits = vlm.model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits[
                0, len(example.prompt) - 1 : -1
            ]
        scores = logits.float().log_softmax(-1).gather(-1, example.answer[:, None])[:, 0]
        assert len(scores) == 4
        assert found.least[i] == pytest.approx(float(scores.min()), abs=1e-3)
        assert found.logprob[i] == pytest.approx(float(scores.sum()), abs=1e-3)
