"""What loads, and how; folders that `load_vlm` refuses are in tests/hostile."""

import json
import shutil
import warnings
from pathlib import Path

import huggingface_hub.constants
import pandas as pd
import pytest
import torch

from xmem_utils import paths, replicates, store
from xmem_utils.checkpoint import adapter_writer
from xmem_utils.memorization.experiment import MemorizationCondition
from xmem_utils.params import TUNING_BASE
from xmem_utils.plan import config_of
from xmem_utils.vlm.adapters import adapt, language_linears
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.processors import DEFAULT_SIDE, picture_side

EMBEDDED = paths.BASE_MODELS / "xmem-tiny-s-11"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def edit(file, **changes):
    raw = json.loads(file.read_text())
    raw.update(changes)
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_copy(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    shutil.copytree(EMBEDDED, cache / "models--someone--tiny" / "snapshots" / COMMIT)
    (cache / "models--someone--tiny" / "refs").mkdir()
    (cache / "models--someone--tiny" / "refs" / "main").write_text(COMMIT)
    return "someone/tiny"


def test_a_family_s_bases_are_those_of_replicates_alone(monkeypatch, tmp_path):
    for name in ("fam-3", "fam-11", "fam-12", "fam-900", f"fam-{TUNING_BASE}", "fam-knows-0-13", "14"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.setattr(replicates, "BASE_MODELS", tmp_path)
    assert replicates.seeds_of("fam") == (11, 12) and replicates.seeds_of("fam-knows-0") == (13,)
    assert replicates.seeds_of("google/gemma-3-4b-it") == ()
    assert replicates.base_of("fam", 12) == "fam-12" and replicates.base_of("fam", 900) == f"fam-{TUNING_BASE}"
    beside = tmp_path.parent / f"{tmp_path.name}-11"
    beside.mkdir()
    (beside / "config.json").write_text("{}")
    assert replicates.base_of(str(tmp_path), 11) == str(tmp_path), "a folder of that name beside it is no base"


def test_a_hub_model_in_the_cache_loads_offline_under_its_commit(tmp_path, monkeypatch):
    name = hub_copy(tmp_path, monkeypatch)
    assert load_vlm(name).fingerprint == f"{name}@{COMMIT}"
    assert config_of(name).model_type == "gemma3"


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


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.eye, self.mouth = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def get_decoder(self):
        return self


@pytest.mark.parametrize("model", [Whole(), torch.nn.Linear(2, 2)], ids=type)
def test_a_model_without_a_language_model_of_its_own_is_refused(model):
    with pytest.raises(ValueError, match=r"\w+ shows no language model .* its get_decoder\(\) must return one"):
        language_linears(model)


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


@pytest.mark.parametrize("name", ["xmem-tiny-s-11", "a folder"])
def test_a_stored_run_names_its_base_and_no_folder_of_this_machine(folder, tmp_path, name):
    own = load_vlm("xmem-tiny-s-11" if name == "xmem-tiny-s-11" else str(folder), "cpu")

    def train():
        return adapter_writer(adapt(own.model, 1)), pd.DataFrame({"epoch": [0]}), {}

    condition = MemorizationCondition(
        model="m", weights=own.fingerprint, data="d", personas=5, source="image", replicate=0, train_views=1,
        epochs=1, rank=1, learning_rate=1e-3, batch_size=1, question="Who is this?", code="c",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT looks for the base on the Hub, and says when it finds none
        run = store.trained(condition, train, tmp_path / "runs")
    base = json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == ("xmem-tiny-s-11" if name == "xmem-tiny-s-11" else folder.name)
    for file in (f for f in run.folder.rglob("*") if f.is_file()):
        for place in (str(paths.REPO), str(tmp_path), str(Path.home())):
            assert place.encode() not in file.read_bytes(), f"{file.name} names {place}"


def test_an_adapter_of_a_hub_model_names_its_hub_id(tmp_path, monkeypatch):
    own = load_vlm(hub_copy(tmp_path, monkeypatch), "cpu")
    assert adapt(own.model, 1).peft_config["default"].base_model_name_or_path == "someone/tiny"
