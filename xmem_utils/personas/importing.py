"""A user's own people: a folder with `metadata.csv` or `metadata.jsonl`, as in `datasets`' imagefolder.

Columns: `persona` (any label), `name`, `split` ("train" or "test"), and `file_name` (an image beside the
metadata), `description`, or both. Each persona needs both modalities in both splits.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict
from PIL import Image, UnidentifiedImageError

from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.personas.dataset import SPLITS, content_fingerprint, features
from xmem_utils.personas.names import FACTS


def import_folder(folder: Path | str) -> tuple[DatasetDict, str]:
    """Read and check a folder of people; returns the dataset and its fingerprint.

    Raises ValueError or FileNotFoundError with a sentence that names the persona and file at fault. Nothing
    is written.
    """
    folder = Path(folder)
    table = _metadata(folder)
    names = _names(table)
    if len(names) < 2:
        raise ValueError(f"{folder} holds {len(names)} persona; recall among names needs at least two")
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for number, (persona, name) in enumerate(names.items()):
        for split in SPLITS:
            mine = table[(table["persona"] == persona) & (table["split"] == split)]
            images = [_image(folder, f, persona) for f in mine["file_name"] if f]
            texts = [d for d in mine["description"] if d]
            for modality, views in (("image", images), ("text", texts)):
                if not views:
                    raise ValueError(
                        f"persona {persona!r} has no {split} view in modality {modality!r}; each persona needs "
                        "pictures and descriptions in both splits"
                    )
            for k, (image, text) in enumerate(zip_longest(images, texts)):
                rows[split].append(
                    {"persona": number, "name": name, "view": k, "description": text,
                     "image": None if image is None else {"bytes": image, "path": None},
                     **dict.fromkeys((*FACTS, *AXIS_NAMES))}
                )  # fmt: skip
    for text in table["description"]:
        written = next((n for n in names.values() if n.casefold() in text.casefold()), None)
        if written:
            raise ValueError(
                f"the name {written!r} is written in a description ({text[:60]!r}): the answer would be in the question"
            )
    dataset = DatasetDict({s: Dataset.from_list(rows[s], features=features()) for s in SPLITS})
    return dataset, content_fingerprint(dataset)


def _metadata(folder: Path) -> pd.DataFrame:
    files = [folder / f"metadata{suffix}" for suffix in (".csv", ".jsonl")]
    found = [f for f in files if f.is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} has neither metadata.csv nor metadata.jsonl")
    if found[0].suffix == ".csv":
        table = pd.read_csv(found[0], dtype=str)
    else:
        table = pd.read_json(found[0], lines=True, dtype=str)
    if lacking := [c for c in ("persona", "name", "split") if c not in table]:
        raise ValueError(f"{found[0].name} lacks the column {', '.join(lacking)}")
    for column in ("file_name", "description"):
        if column not in table:
            table[column] = ""
    table = table.fillna("")
    if table.empty:
        raise ValueError(f"{found[0].name} has no rows")
    for column in ("persona", "name", "split"):
        if (table[column] == "").any():
            row = int((table[column] == "").to_numpy().argmax()) + 1
            raise ValueError(f"row {row} of {found[0].name} has no {column}")
    if wrong := sorted(set(table["split"]) - set(SPLITS)):
        raise ValueError(f"unknown split {wrong[0]!r} in {found[0].name}: expected 'train' or 'test'")
    if "test" not in set(table["split"]):
        raise ValueError(f"{found[0].name} has zero test views: recall is measured on views that were not trained on")
    return table


def _names(table: pd.DataFrame) -> dict[str, str]:
    names: dict[str, str] = {}
    for persona, rows in table.groupby("persona", sort=True):
        given = sorted(set(rows["name"]))
        if len(given) > 1:
            raise ValueError(f"persona {persona!r} has several names: {', '.join(given)}")
        twin = next((p for p, n in names.items() if n.casefold() == given[0].casefold()), None)
        if twin is not None:
            raise ValueError(f"personas {twin!r} and {persona!r} share the name {given[0]!r}; names must be unique")
        names[persona] = given[0]
    return names


def _image(folder: Path, file_name: str, persona: str) -> bytes:
    path = folder / file_name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the image {file_name!r} of persona {persona!r} lies outside of {folder}")
    if not path.is_file():
        raise FileNotFoundError(f"the image {file_name!r} of persona {persona!r} is missing from {folder}")
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"the image {file_name!r} of persona {persona!r} cannot be read: {error}") from error
    return path.read_bytes()
