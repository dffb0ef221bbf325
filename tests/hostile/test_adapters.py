"""A stored adapter is loaded whole or refused, and the base model is then as before."""

import json
import shutil

import corpus
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from xmem_utils.vlm.adapters import adapt, language_linears, load_adapter
from xmem_utils.vlm.load import load_vlm


@pytest.fixture(scope="module")
def own():
    return load_vlm("xmem-tiny-s-11", "cpu")


def saved(model, folder):
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    model.save_pretrained(folder)
    model.unload()
    return folder


@pytest.fixture(scope="module")
def stored(own, tmp_path_factory):
    return saved(adapt(own.model, 2), tmp_path_factory.mktemp("stored") / "adapter")


def edit(file, drop=None, add=None, fill=None, cast=None, **more):
    tensors = load_file(file)
    if drop:
        del tensors[next(key for key in tensors if drop in key)]
    if add:
        tensors[add] = torch.zeros(2, 2)
    if fill:
        tensors[next(key for key in tensors if fill in key)][0, 0] = float(more["with"])
    if cast:
        tensors = {key: tensor.to(getattr(torch, cast)) for key, tensor in tensors.items()}
    save_file(tensors, file)


def broken(given, folder):
    if "tensors" in given:
        edit(folder / "adapter_model.safetensors", **given["tensors"])
    if "config" in given:
        raw = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(raw | given["config"]))
    corpus.damage(given, folder)


@corpus.parametrized("adapters")
def test_adapters(case, witness, own, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(stored, tmp_path / "adapter").relative_to(tmp_path)
    if case.given.get("everywhere"):
        everywhere = LoraConfig(r=2, target_modules=r".*(q_proj|up_proj|fc1)")
        shutil.rmtree(folder)
        saved(get_peft_model(own.model, everywhere), folder)
    broken(case.given, folder)
    model = load_vlm(case.given["base"], "cpu").model if "base" in case.given else own.model
    names = [name for name, _ in model.named_modules()]
    loaded = witness(case, lambda: load_adapter(model, folder), tmp_path)
    if loaded is not None:
        kept = load_file(folder / "adapter_model.safetensors")
        for key, tensor in kept.items():
            mine = loaded.get_parameter(key.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"))
            assert torch.equal(mine, tensor.float()) and not mine.requires_grad
        assert not loaded.training
        loaded.unload()
    assert [name for name, _ in model.named_modules()] == names and language_linears(model)


def test_a_stored_adapter_to_train_on_is_trainable(own, stored):
    model = load_adapter(own.model, stored, trainable=True)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    model.unload()
