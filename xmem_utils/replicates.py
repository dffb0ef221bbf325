"""A replicate: a base model pretrained from a seed, people drawn for it, and a training seed, all of one number.

A model whose bases are not ours (one from the Hub, say) has one: then people and training seed vary alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from xmem_utils.params import TUNING_BASE, TUNING_SEEDS, shown
from xmem_utils.paths import BASE_MODELS
from xmem_utils.personas.attributes import VERSION

LADDER = "xmem-tiny-s"  # the family whose rungs differ in how many people they know
FIRST = 11  # replicates are counted from here; numbers below were looked at while rules were made


def seeds_of(model: str) -> tuple[int, ...]:
    """Pretraining seeds of a family of embedded models ("xmem-tiny-s") for a study; none for any other model."""
    names = (file.parent.name.rpartition("-") for file in BASE_MODELS.glob("*/config.json"))
    seeds = sorted(int(seed) for family, _, seed in names if family == model and seed.isdecimal())
    return tuple(seed for seed in seeds if seed >= FIRST and seed not in (TUNING_BASE, *TUNING_SEEDS))


def families() -> list[str]:
    """The names of all families."""
    return sorted({file.parent.name.rpartition("-")[0] for file in BASE_MODELS.glob("xmem-tiny-*/config.json")})


def base_of(model: str, replicate: int) -> str:
    """Name of the base of a replicate: of a family the one pretrained from its number; any other model is its own."""
    name = f"{model}-{pretrained_for(replicate)}"
    ours = (BASE_MODELS / name).parent == BASE_MODELS  # and no folder of the user's
    return name if ours and (BASE_MODELS / name / "config.json").is_file() else model


def pretrained_for(replicate: int) -> int:
    """Seed of the pretraining whose base meets the people of a replicate; tuning people share one."""
    return TUNING_BASE if replicate in TUNING_SEEDS else replicate


def replicates_of(model: str, wanted: int, exactly: bool = False) -> tuple[int, ...]:
    """The first replicates of a study: as many as wanted, or as there are bases for.

    Raises ValueError naming the bases where they do not suffice and `exactly` so many are wanted.
    """
    if not (seeds := seeds_of(model)):
        return tuple(range(FIRST, FIRST + wanted))
    if exactly and wanted > len(seeds):
        bases = ", ".join(f"{model}-{seed}" for seed in seeds)
        raise ValueError(
            f"replicates={shown(wanted)}: each has a base of its own, and there are {len(seeds)} ({bases})"
        )
    return seeds[:wanted]


def check_base(name: str) -> None:
    """Raises ValueError for an embedded model without its evaluation, or pretrained on other looks and words."""
    folder = (BASE_MODELS / name).resolve()
    if folder.parent != BASE_MODELS.resolve() or not (folder / "config.json").is_file():
        return  # not ours
    again = f"delete {folder} and run `python -m xmem_utils pretrain`"
    if not ((folder / "evaluation.csv").is_file() and (folder / "recipe.json").is_file()):
        raise ValueError(f"{name} has no evaluation.csv or no recipe.json, so what it can do is not known: {again}")
    if json.loads((folder / "recipe.json").read_text()).get("population") != VERSION:
        raise ValueError(f"{name} was pretrained on other looks and words than population.yaml has now: {again}")


def seed_of(name: str) -> int | None:
    """Seed of the pretraining of one embedded base, by name or folder; None for any other model."""
    recipe = BASE_MODELS / name / "recipe.json"
    return json.loads(recipe.read_text())["seed"] if recipe.is_file() else None


def described(model: str, replicates: Sequence[int]) -> str:
    """What the replicates of a study are, in words."""
    n, numbers = len(replicates), ", ".join(map(str, replicates))
    if seeds_of(model):
        return (
            f"{n} replicate(s) ({numbers}), each with a base ({base_of(model, replicates[0])}, ...), people and a seed"
        )
    return f"{n} replicate(s) ({numbers}): people and training seeds; the base is one, {model}"


def rungs() -> dict[str, int]:
    """The families of the ladder of knowledge, by how many public figures each knows in both modalities."""
    found = {}
    for file in BASE_MODELS.glob(f"{LADDER}-*/recipe.json"):
        family, recipe = file.parent.name.rpartition("-")[0], json.loads(file.read_text())
        if family == LADDER or family.startswith(f"{LADDER}-knows-"):
            found[family] = recipe["figures"][0] if recipe["known"] is None else recipe["known"]
    return dict(sorted(found.items(), key=lambda rung: rung[1]))
