"""The embedded model: a real Gemma 3 that the Auto classes load, and good enough for the study."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma3ForConditionalGeneration

from xmem_utils import paths
from xmem_utils.personas.dataset import to_views
from xmem_utils.pretraining import evaluation
from xmem_utils.pretraining.curriculum import Curriculum
from xmem_utils.score import exact_match
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import fingerprint_of, load_vlm
from xmem_utils.vlm.prompts import WHO

FOLDER = paths.BASE_MODELS / "xmem-tiny-s-11"


def test_auto_classes_load_the_committed_folder():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    processor = AutoProcessor.from_pretrained(FOLDER)
    assert type(model) is Gemma3ForConditionalGeneration
    assert processor.tokenizer.padding_side == "left"
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 2.5e6


@pytest.fixture(scope="module")
def thresholds():
    """Of the committed evaluation: test_capability.py tells that it is of these weights, notebook 00 makes it again."""
    return evaluation.acceptance(pd.read_csv(FOLDER / "evaluation.csv")).set_index("quantity")


@pytest.mark.parametrize("quantity", evaluation.ACCEPTANCE_THRESHOLDS)
def test_the_committed_weights_meet_the_acceptance_threshold(thresholds, quantity):
    row = thresholds.loc[quantity]
    assert row["met"], f"{quantity}: {row['reached']} of {row['needed']}"


def test_study_personas_are_unknown_before_memorizing(vlm, five):
    for modality in ("image", "text"):
        assert not exact_match(vlm, encode(vlm, to_views(five, "test", modality))).exact.any()


def test_text_that_pretraining_never_saw_is_spelled_out_not_lost(vlm):
    tokenizer = vlm.processor.tokenizer
    text = "Zoë's naïve 東京 friend,\tJürgen!"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_folder_without_weights_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors weights"):
        load_vlm(str(tmp_path / "model"))


def test_the_fingerprint_follows_the_weights(tmp_path, vlm):
    shutil.copytree(FOLDER, tmp_path / "model")
    same = load_vlm(str(tmp_path / "model"))
    assert same.fingerprint == vlm.fingerprint
    with torch.no_grad():
        same.model.lm_head.weight[0, 0] += 1
    same.model.save_pretrained(tmp_path / "model")
    assert load_vlm(str(tmp_path / "model")).fingerprint != vlm.fingerprint


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_the_fingerprint_follows_what_words_the_prompt(tmp_path, vlm, file):
    shutil.copytree(FOLDER, tmp_path / "model")
    (tmp_path / "model" / file).write_text((tmp_path / "model" / file).read_text() + " ")
    assert fingerprint_of(tmp_path / "model") != vlm.fingerprint


def test_the_study_asks_token_by_token_as_pretraining_did(vlm, five, known):
    view = to_views(five, "test", "image")[0]
    nobody = np.empty((0, 0), np.int64)
    pretrained, _ = Curriculum(vlm.processor.tokenizer, known, nobody, nobody, 0).tokens(None, [(WHO, view.name)])
    (example,) = encode(vlm, [view])
    assert [*example.prompt.tolist(), *example.answer.tolist()] == pretrained
