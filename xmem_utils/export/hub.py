"""The folders of an export, each with its card.

`dataset/` for `datasets.load_dataset`; `models/<base>/` for `from_pretrained`; `adapters/<run>/` for
`peft.PeftModel.from_pretrained`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from xmem_utils import paths
from xmem_utils.explore.models import Stored
from xmem_utils.export.croissant import WHAT, croissant
from xmem_utils.params import MODALITIES, VIEWS, profile_named
from xmem_utils.personas.dataset import COLUMNS, load_personas, persona_spec
from xmem_utils.personas.views import SPLITS
from xmem_utils.replicates import LADDER, replicates_of
from xmem_utils.store import damage

CARDS = paths.PACKAGE / "export"


def export(folder: Path, runs: Sequence[Stored] = ()) -> list[Path]:
    """Lay out the people of the standard profile, all committed bases, and the adapters of some runs; returns the
    folders. Raises FileExistsError where `folder` holds something, ValueError for a damaged run."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give a new folder, so that nothing of an earlier export stays")
    bases = sorted(paths.BASE_MODELS.glob("xmem-*"))
    return [
        _dataset(folder / "dataset"),
        *(_base(base, folder / "models" / base.name) for base in bases),
        *(_adapter(run, folder / "adapters" / run.folder.name) for run in runs),
    ]


def _dataset(folder: Path) -> Path:
    """A configuration a replicate, two splits each."""
    profile, files, configs = profile_named("standard"), {}, []
    for replicate in replicates_of(LADDER, profile.replicates):
        people, _ = load_personas(persona_spec(profile, replicate))
        name = f"replicate-{replicate}"
        configs += [f"- config_name: {name}", *["  default: true"] * (not files), "  data_files:"]
        for split in SPLITS:
            file = folder / name / f"{split}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            people[split].to_parquet(file)
            files[f"{name}-{split}"] = file
            configs.append(f"  - split: {split}\n    path: {name}/{split}.parquet")
    columns = "\n".join(f"- `{column}`: {WHAT[column]}" for column in COLUMNS)
    fields = {"configs": "\n".join(configs), "people": profile.personas, "count": len(files) // len(SPLITS)}
    card = (CARDS / "dataset.md").read_text("utf-8").format(columns=columns, **fields)
    (folder / "README.md").write_text(card, "utf-8")
    (folder / "croissant.json").write_text(json.dumps(croissant(folder, files), indent=1) + "\n", "utf-8")
    return folder


def _base(base: Path, folder: Path) -> Path:
    """A committed base, without the tables of its pretraining."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.csv", "recipe.json"))
    found = pd.read_csv(base / "evaluation.csv")
    table = found.pivot_table(index="ability", columns="query", values="accuracy", sort=False)[list(MODALITIES)]
    rows = [
        f"| {ability} | " + " | ".join(f"{share:.2f}" for share in row) + " |" for ability, *row in table.itertuples()
    ]
    head = [f"| ability | {' | '.join(VIEWS[m] for m in MODALITIES)} |", "|---|---|---|"]
    data = ModelCardData(
        language="en", license="mit", library_name="transformers", pipeline_tag="image-text-to-text",
        tags=["memorization"],
    )  # fmt: skip
    _card(folder, "base", data, name=base.name, abilities="\n".join(head + rows))
    return folder


def _adapter(run: Stored, folder: Path) -> Path:
    """An adapter as PEFT wrote it; beside one of unlearning those that it went on from."""
    if problem := damage(run.folder):
        raise ValueError(f"{run.label} is damaged ({problem}): train it again")
    *before, own = run.adapters
    for adapter, place in ((own, folder), *((path, folder / f"before-{k}") for k, path in enumerate(before, 1))):
        shutil.copytree(adapter, place, ignore=shutil.ignore_patterns("README.md"))
    merge = "".join(
        f'model = PeftModel.from_pretrained(model, "{folder.name}/before-{k}").merge_and_unload()\n'
        for k in range(1, len(before) + 1)
    )
    base, condition = Path(run.start.model).name, run.condition.model_dump_json(indent=1)
    data = ModelCardData(license="mit", library_name="peft", base_model=base, tags=["memorization", "lora"])
    _card(folder, "adapter", data, name=folder.name, base=base, before=merge, condition=condition)
    return folder


def _card(folder: Path, kind: str, data: ModelCardData, **fields: str) -> None:
    text = (CARDS / f"{kind}.md").read_text("utf-8").format(**fields)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / "README.md")
