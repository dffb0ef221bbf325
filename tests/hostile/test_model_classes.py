"""Classes of models that cannot be used, or not in the usual way; `tests/test_families.py` has those that can."""

import shutil

import pytest
import torch
import transformers
from corpus import parametrized
from PIL import Image
from torch import nn
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available

from xmem_utils import paths
from xmem_utils.personas.views import View
from xmem_utils.vlm.adapters import language_linears
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.processors import checked_processor

EMBEDDED = paths.BASE_MODELS / "xmem-tiny-s-11"


class Router(nn.Linear):
    def forward(self, states):
        return super().forward(states), states


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.language_model = nn.ModuleDict({"router": Router(2, 2), "gate": nn.Linear(2, 2)})

    def get_decoder(self):
        return self.language_model


def refused_processor(given, folder, monkeypatch):
    """Load the processor that a case describes."""
    if given.get("missing") == "torchvision" and is_torchvision_available():
        pytest.skip("torchvision is installed")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    shutil.copytree(EMBEDDED, folder)
    if "processor" in given:
        for file in folder.glob("*processor_config.json"):
            file.unlink()
        (folder / "preprocessor_config.json").write_text(
            f'{{"image_processor_type": "{given["images"]}", "processor_class": "{given["processor"]}"}}'
        )
    return checked_processor(folder, getattr(transformers, given["config"])(), "some/model", False)


def pixels_stay(how, monkeypatch):
    """Encode a picture with a model whose image features are missing, or others than its language model reads."""
    vlm = load_vlm(str(EMBEDDED), "cpu")
    see = type(vlm.model).get_image_features

    def other(self, pixels, **more):
        made = see(self, pixels, **more)
        made.pooler_output = torch.zeros_like(made.pooler_output)
        return made

    monkeypatch.setattr(type(vlm.model), "get_image_features", None if how == "none" else other)
    view = View(0, "Ada", "image", "train", 0, Image.new("RGB", (64, 64), "red"))
    return set(encode(vlm, [view])[0].inputs)


@parametrized("model_classes")
def test_model_classes(case, witness, tmp_path, monkeypatch):
    if "layer" in case.given:
        assert witness(case, lambda: language_linears(Routed())) == ["language_model.gate"]
    elif "features" in case.given:
        assert witness(case, lambda: pixels_stay(case.given["features"], monkeypatch)) == {"pixel_values"}
    else:
        witness(case, lambda: refused_processor(case.given, tmp_path / "model", monkeypatch), tmp_path)
