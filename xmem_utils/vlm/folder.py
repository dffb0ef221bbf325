"""What stands in a model's folder, read and bounded before anything is built of it: it may be cut off, or meant ill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from xmem_utils.params import shown

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SETTINGS = ("*config.json", "*token*.json", "vocab.json", "chat_template.json")  # what transformers reads as JSON
LARGEST_JSON = 1 << 27  # bytes; large tokenizers have some 10^7
COUNTS = re.compile(r"(num|n)_.*|.*_layers|depths?")  # for each of these, transformers lists or builds something
LONGEST = 160  # characters of what a library says
MOST_COUNTED = 10**6
MOST_PARAMETERS = 10**13
MOST_TENSORS = 30_000
FLOATS = {"F64", "F32", "F16", "BF16"}

Stored = dict[str, tuple[str, int]]  # of each tensor in a model's files: data type and size (numbers)


class Refusal(ValueError):
    """A sentence for a person, which `one_sentence` leaves as it is."""


@contextlib.contextmanager
def one_sentence(failed: str, advice: str) -> Iterator[None]:
    """Whatever a library raises inside becomes a Refusal: what failed, why, and what to do."""
    try:
        yield
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # transformers raises all kinds
        why = " ".join(str(error).split())
        why = why if type(error) is ValueError else f"{type(error).__name__}: {why}"
        why = why if len(why) <= LONGEST else f"{why[:LONGEST]}..."
        raise Refusal(f"{failed} ({why}); {advice}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises Refusal when it is unreadable, no JSON, or no object."""
    again = "fetch it again from where the model comes from"
    with one_sentence(f"{file} cannot be read as JSON", again):
        if file.stat().st_size > LARGEST_JSON:
            raise Refusal(f"{file} is larger than {LARGEST_JSON >> 20} MiB, which no model's settings are; {again}")
        found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise Refusal(f"{file} holds a {type(found).__name__} where a JSON object with settings was expected; {again}")
    return found


def read_config(file: Path) -> dict[str, Any]:
    """A model's config.json, with counts of layers and the like that a list can have.

    Raises Refusal as `read_json` does, for a count above `MOST_COUNTED`, and for a number beyond 64 bits.
    """
    raw = read_json(file)
    inner: list[Any] = [raw]
    for part in inner:  # which grows
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, (dict, list)):
                inner.append(value)
            elif isinstance(value, int) and abs(value) > (MOST_COUNTED if COUNTS.fullmatch(str(key)) else 2**62):
                raise Refusal(
                    f"{file} says {shown(key)}: {str(value)[:40]}, which no model has; fetch it again from where the "
                    "model comes from"
                )
    return raw


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads of a model folder, complete.

    Raises FileNotFoundError with a sentence for a folder without config or weights, with pickled weights alone
    (they could run code when they are read), or without some of the files that its index names; Refusal for a folder
    with an adapter, with two sets of weights, or with an index that is none.
    """
    if (folder / "adapter_config.json").is_file():
        raise Refusal(
            f"{folder} holds a PEFT adapter (adapter_config.json), which transformers would add in silence; give the "
            "folder of a base model alone"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.lexists(whole) and index.exists():
        raise Refusal(f"{folder} has two sets of weights, {whole.name} and {index.name}; move away the one not meant")
    if os.path.lexists(whole):
        return [whole]
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(s, str) for s in shards.values()):
            raise Refusal(f"{index} has no weight_map that names a file for every tensor; fetch it again")
        wanted = sorted(set(shards.values()))
        if outside := [s for s in wanted if Path(s).name != s]:
            raise Refusal(f"{index} names {shown(outside[0])}, which is no file of its own folder; fetch it again")
        if missing := [s for s in wanted if not (folder / s).exists()]:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise FileNotFoundError(f"{folder} lacks {shown(missing[0])}{more}, named in its weight index")
        return [folder / s for s in wanted]
    if other := sorted(f.name for f in folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has {shown(other[0])}, but transformers reads {whole.name}, or the files that {index.name} "
            "names; rename it, or fetch the index too"
        )
    pickled = sorted(f.name for kind in PICKLES for f in folder.glob(kind))
    raise FileNotFoundError(
        f"{folder} has a config but no .safetensors weights; only safetensors are read, never pickles"
        + (f" ({', '.join(pickled[:3])}): convert them with from_pretrained and save_pretrained" if pickled else "")
    )


def headers(files: Iterable[Path]) -> Stored:
    """Data type and size (numbers) of every tensor in some safetensors files, from their headers.

    Raises Refusal for a file that is damaged or cut short, and for a tensor that stands in two files.
    """
    found: Stored = {}
    for file in files:
        if not file.is_file():
            raise Refusal(f"{file} is no file but a folder, or a link to nothing; fetch it again")
        again = "restore it, e.g. with git or by downloading again"
        with one_sentence(f"{file} is damaged or cut short", again), safe_open(file, framework="pt") as weights:
            parts = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            here = {name: (p.get_dtype(), math.prod(p.get_shape())) for name, p in parts.items()}
        if twice := sorted(found.keys() & here.keys()):
            raise Refusal(f"{file} holds {shown(twice[0])} again, which another file has; fetch the weights anew")
        found |= here
    return found


@contextlib.contextmanager
def bounded(name: str, numbers: int = MOST_PARAMETERS, tensors: int = MOST_TENSORS) -> Iterator[None]:
    """Stop a model that is built inside, without memory on the meta device, when it gets larger than can be true."""
    count = size = 0

    def add(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, size
        if parameter is not None and parameter.is_meta:  # loading puts each in its place once more
            count, size = count + 1, size + parameter.numel()
            if size > numbers or count > tensors:
                raise Refusal(
                    f"the config of {shown(name)} asks for more than {min(size, numbers):,} parameters in "
                    f"{min(count, tensors):,} tensors, which its weights do not hold and no model has; config and "
                    "weights belong together, so fetch both again"
                )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def check_loaded(model: nn.Module, info: dict[str, Any], stored: Stored, name: str) -> None:
    """Raise Refusal unless a model's weights are those of its files, all of them, and finite numbers.

    `info` is what `from_pretrained(..., output_loading_info=True)` returns: tensors that a class declares needless are
    not in it. `stored` is what the files hold, see `headers`.
    """
    parts = []
    for kind, words in (("missing", "missing"), ("unexpected", "too many"), ("mismatched", "of another shape")):
        keys = sorted(key if isinstance(key, str) else key[0] for key in info[f"{kind}_keys"])
        if keys:
            parts.append(f"{len(keys)} {words} (such as {shown(keys[0], 80)})")
    if parts:
        raise Refusal(
            f"the weights of {shown(name)} are not those that its config.json describes, counted in tensors: "
            f"{', '.join(parts)}; config and weights belong together, so fetch both again"
        )
    check_finite(model.named_parameters(), f"the weights of {shown(name)}")
    numbers = {key.rpartition(".")[2] for key, p in model.named_parameters() if p.is_floating_point()}
    for key, (dtype, _) in sorted(stored.items()):
        if dtype not in FLOATS and key.rpartition(".")[2] in numbers:
            raise Refusal(
                f"the weights of {shown(name)} are quantized ({shown(key, 80)} is {dtype}), which cannot be "
                "trained and merged here; take the model in 16 or 32 bit floating point"
            )


def check_finite(parameters: Iterable[tuple[str, nn.Parameter]], what: str) -> None:
    """Raise Refusal for a parameter with NaN or infinity in it."""
    for key, p in parameters:
        if p.numel() and p.is_floating_point() and not all(end.isfinite() for end in p.detach().aminmax()):
            raise Refusal(f"{what} are damaged: {shown(key, 100)} holds NaN or infinity; fetch or train them again")


def check_settings(folder: Path) -> None:
    """Raise Refusal for a file of settings or a tokenizer that is no JSON: transformers passes over some in silence."""
    for file in sorted({f for kind in SETTINGS for f in folder.glob(kind)}):
        read_json(file)
