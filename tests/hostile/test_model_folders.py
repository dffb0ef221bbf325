"""A model's folder that is cut off, mixed up or meant ill is refused before anything large is built of it."""

import json
import shutil
import warnings
from pathlib import Path

import corpus
import huggingface_hub.constants
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from xmem_utils import paths
from xmem_utils.plan import config_of, on_meta
from xmem_utils.vlm.folder import Refusal, read_config
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.readable import check_answers

EMBEDDED = paths.BASE_MODELS / "xmem-tiny-s-11"
KNOWN = ", ".join(sorted(file.parent.name for file in paths.BASE_MODELS.glob("*/config.json")))  # here


def expanded(value):
    return value["repeat"] * value["times"] if isinstance(value, dict) and "repeat" in value else value


def edit_config(file, changes):
    raw = json.loads(file.read_text())
    for place, value in changes.items():
        *outer, last = place.split(".")
        inside = raw
        for part in outer:
            inside = inside[part]
        inside[last] = expanded(value)
        if value is None:
            del inside[last]
    file.write_text(json.dumps(raw))


def edit_tensors(tensors, drop=None, add=None, fill=None, cast=None, **more):
    tensors.pop(drop, None)
    if more.get("zero"):
        tensors |= {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    if add:
        tensors[add] = torch.zeros(2)
    if fill:
        tensors[fill][3] = float(more["with"])
    if cast:
        tensors[cast] = tensors[cast].to(torch.int8)


def split(folder, tensors, drop=None, twice=None):
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    for shard, part in shards.items():
        part = [*part, twice] if twice and twice not in part else part
        save_file({name: tensors[name] for name in part if name != drop}, folder / shard, {"format": "pt"})


def broken(given, folder: Path):
    """Do to a copy of the embedded model's folder what a case says."""
    if given.keys() & {"tensors", "shards"}:
        tensors = load_file(folder / "model.safetensors")
        edit_tensors(tensors, **given.get("tensors", {}))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        if "shards" in given:
            split(folder, tensors, **given["shards"])
    for part in given.keys() & {"config", "processor_config"}:
        edit_config(folder / f"{part}.json", given[part])
    for name, digits in given.get("bytes", {}).items():
        (folder / name).write_bytes(bytes.fromhex(digits))
    for name, encoding in given.get("encode", {}).items():
        (folder / name).write_text((folder / name).read_text(), encoding=encoding)
    if "tokens" in given:
        raw = json.loads((folder / "tokenizer.json").read_text())
        raw["model"]["vocab"].update({f"word{n}": 10**4 + n for n in range(given["tokens"])})
        (folder / "tokenizer.json").write_text(json.dumps(raw))
    if file := given.get("deep"):
        (folder / file).write_text('{"a":' * 10**5)
    corpus.damage(given, folder)
    if "folder" in given:
        (folder / given["folder"]).mkdir()
    for link, target in given.get("link", {}).items():
        (folder / link).symlink_to(target)


def asked(name):
    """A model as a study takes it: loaded, and asked about a picture and a text."""
    vlm = load_vlm(name, "cpu")
    check_answers(vlm)
    return vlm


@corpus.parametrized("model_folders")
def test_model_folders(case, witness, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(EMBEDDED, tmp_path / case.given.get("called", "model"))
    broken(case.given, folder)
    if case.given.get("symlink"):
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    monkeypatch.chdir(tmp_path)
    name = expanded(case.given.get("name", folder.name))
    act = (lambda: on_meta(config_of(name))) if case.given.get("plan") else (lambda: asked(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = witness(case, act, tmp_path, KNOWN)
    if loaded is not None:
        same = load_vlm(str(EMBEDDED), "cpu")
        assert ("shards" in case.given) or loaded.fingerprint == same.fingerprint
        mine, theirs = loaded.model.state_dict(), same.model.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=JSON)
def test_any_json_is_an_object_with_settings_or_refused(value, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(value))
    if isinstance(value, dict):
        assert read_config(file).keys() == value.keys()
    else:
        with pytest.raises(Refusal, match="where a JSON object"):
            read_config(file)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=40))
def test_any_bytes_are_settings_or_refused_in_one_line(data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(data)
    try:
        assert isinstance(read_config(file), dict)
    except Refusal as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 500
