"""What cannot be used is refused by `load_vlm` with one sentence that says what to do."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from xmem_utils import paths
from xmem_utils.vlm.adapters import language_linears
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.processors import DEFAULT_SIDE, picture_side

EMBEDDED = paths.BASE_MODELS / "xmem-tiny-s"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def edit(file, **changes):
    raw = json.loads(file.read_text())
    raw.update(changes)
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def test_a_hub_model_that_is_not_there_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`hf download google/gemma-3-4b-it`.*licence.*`hf auth login`"):
        load_vlm("google/gemma-3-4b-it")


def test_a_hub_model_in_the_cache_loads_offline_under_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(EMBEDDED, tmp_path / "models--someone--tiny" / "snapshots" / commit)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text(commit)
    assert load_vlm("someone/tiny").fingerprint == f"someone/tiny@{commit}"


def test_a_text_only_model_is_refused(tmp_path):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no vision-language model.*'llama'"):
        load_vlm(str(tmp_path))


def test_a_folder_without_processor_is_refused(folder):
    for file in folder.glob("*"):
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(ValueError, match=r"copy .*tokenizer\.json.* of the original model"):
        load_vlm(str(folder))


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"copy .*tokenizer\.json.* of the original model"):
        load_vlm(str(folder))


def test_a_processor_without_chat_template_is_refused_until_it_gets_one(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template.*chat_template\.jinja in a local copy"):
        load_vlm(str(folder))
    (folder / "chat_template.jinja").write_text(template)
    load_vlm(str(folder))


def test_pickled_weights_are_refused_by_name(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"never pickles \(pytorch_model\.bin\): convert them"):
        load_vlm(str(folder))


def test_an_unknown_model_type_is_refused(folder):
    edit(folder / "config.json", model_type="tomorrow")
    with pytest.raises(ValueError, match=r"transformers \S+ does not know the model_type 'tomorrow'"):
        load_vlm(str(folder))


CODE = """
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

class OwnConfig(Gemma3Config):
    model_type = "own"

class OwnModel(Gemma3ForConditionalGeneration):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_on_request_alone_and_is_announced(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "own.py").write_text(CODE)
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    edit(folder / "config.json", model_type="own", auto_map=auto)
    with pytest.raises(ValueError, match=r"needs Python code .*own\.OwnModel.*trust_remote_code=True"):
        load_vlm(str(folder))
    with pytest.warns(UserWarning, match=r"running Python code that comes with .*own\.OwnModel"):
        vlm = load_vlm(str(folder), trust_remote_code=True)
    assert type(vlm.model).__name__ == "OwnModel"


def test_a_model_without_a_language_model_of_its_own_is_refused():
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.eye, self.mouth = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def get_decoder(self):
            return self

    with pytest.raises(ValueError, match=r"Whole shows no language model .* its get_decoder\(\) must return one"):
        language_linears(Whole())


def test_models_are_float32_on_the_cpu_whatever_they_were_saved_in(folder):
    load_vlm(str(folder)).model.bfloat16().save_pretrained(folder)
    assert load_vlm(str(folder)).model.dtype == torch.float32


class Images:
    def __init__(self, **fields):
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("images", "side"),
    [
        (Images(size={"height": 896, "width": 896}), 896),
        (Images(size={"shortest_edge": 336}, do_center_crop=True, crop_size={"height": 336, "width": 336}), 336),
        (Images(size={"longest_edge": 1456}, max_image_size={"longest_edge": 364}), 364),
        (Images(size={"shortest_edge": 3136, "longest_edge": 1003520}, merge_size=2), DEFAULT_SIDE),
        (Images(size={"longest_edge": 1024}), DEFAULT_SIDE),
        (Images(size={"height": 4096, "width": 4096}), 1024),
    ],
)
def test_pictures_are_drawn_at_the_size_of_crop_tile_or_a_default(images, side):
    assert picture_side(type("Processor", (), {"image_processor": images})) == side


def test_the_embedded_model_keeps_its_64_pixels(vlm):
    assert picture_side(vlm.processor) == 64
