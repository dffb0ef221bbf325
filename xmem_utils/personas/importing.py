"""A user's own people: a folder with `metadata.csv` or `metadata.jsonl`, as in `datasets`' imagefolder.

Columns: `persona` (any label), `name`, `split` ("train" or "test"), and `file_name` (an image beside the
metadata), `description`, or both. Each persona needs both modalities in both splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from xmem_utils.fingerprint import by_content
from xmem_utils.params import shown
from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.personas.dataset import COLUMNS, content_fingerprint
from xmem_utils.personas.metadata import Row, read_rows
from xmem_utils.personas.names import FACTS
from xmem_utils.personas.pictures import read_picture
from xmem_utils.personas.texts import Leaks, check_description, check_name, looks
from xmem_utils.personas.views import SPLITS


@by_content
def import_folder(folder: Path | str) -> tuple[DatasetDict, str]:
    """Read and check a folder of people; returns the dataset and its fingerprint.

    Raises ValueError or OSError with a sentence that names the persona, line or file at fault. Nothing is written.
    """
    folder = Path(folder)
    table = read_rows(folder)
    names = _names(table)
    if len(names) < 2:
        raise ValueError(f"{folder} holds {len(names)} persona; recall among names needs at least two")
    if not any(row.split == "test" for row in table):
        raise ValueError(f"{folder} has zero test views: recall is measured on views that were not trained on")
    _check_descriptions(table, names)
    images = _images(folder, table)
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for number, (persona, name) in enumerate(names.items()):
        for split in SPLITS:
            mine = [row for row in table if (row.persona, row.split) == (persona, split)]
            pictures = [images[row] for row in mine if row.file_name]
            texts = [row.description for row in mine if row.description]
            if not (pictures and texts):
                raise ValueError(
                    f"persona {shown(persona)} has no {split} view in modality {'text' if pictures else 'image'!r}; "
                    "each persona needs pictures and descriptions in both splits"
                )
            rows[split] += [
                {"persona": number, "name": name, "view": k, "image": image, "description": text}
                | dict.fromkeys((*FACTS, *AXIS_NAMES))
                for k, (image, text) in enumerate(zip_longest(pictures, texts))
            ]
    dataset = DatasetDict({split: Dataset.from_list(rows[split], features=COLUMNS) for split in SPLITS})
    return dataset, content_fingerprint(dataset)


def _checked(check: Callable[[Any], Any], value: Any, what: str) -> Any:
    """What `check` gives of a value; the second half of a sentence that it raises gets its first."""
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from error


def _names(table: list[Row]) -> dict[str, str]:
    """Names by persona, which are told apart by more than case, spacing, accents and look-alike letters."""
    names: dict[str, str] = {}
    for row in table:
        _checked(check_name, row.name, f"the name {shown(row.name)} in line {row.line}")
        given = names.setdefault(row.persona, row.name)
        if given != row.name:
            raise ValueError(f"persona {shown(row.persona)} has several names: {shown(given)}, {shown(row.name)}")
    names = dict(sorted(names.items()))
    owner: dict[str, str] = {}
    for persona, name in names.items():
        twin = owner.setdefault(looks(name), persona)
        if twin != persona:
            raise ValueError(
                f"personas {shown(twin)} and {shown(persona)} share the name {shown(name)}; names must differ in more "
                "than case, accents and letters that look alike"
            )
    return names


def _check_descriptions(table: list[Row], names: dict[str, str]) -> None:
    """That each is plain text, gives no name away, and is not in both splits."""
    leaks = Leaks(names.values())
    places: dict[str, Row] = {}
    for row in table:
        if row.description:
            text = f"the description {shown(row.description)} in line {row.line}"
            _checked(check_description, row.description, text)
            if name := leaks.find(row.description):
                raise ValueError(
                    f"the name {shown(name)} is written in a description, {text}: take it out, or write an ordinary "
                    "word in lower case"
                )
            _check_new(text, row, places.setdefault(" ".join(row.description.casefold().split()), row))


def _images(folder: Path, table: list[Row]) -> dict[Row, bytes]:
    """Picture files by row; none shows two people or is in both splits."""
    images: dict[Row, bytes] = {}
    places: dict[tuple, Row] = {}  # by pixels
    for row in table:
        if row.file_name:
            image = f"the image {shown(row.file_name)} of persona {shown(row.persona)} (line {row.line})"
            images[row], picture = _checked(read_picture, _path(folder, row.file_name, image), image)
            first = places.setdefault((picture.size, hashlib.sha256(picture.tobytes()).digest()), row)
            if first.persona != row.persona:
                raise ValueError(
                    f"{image} is also that of persona {shown(first.persona)} (line {first.line}); expected one person "
                    "a picture: replace one"
                )
            _check_new(image, row, first)
    return images


def _check_new(what: str, row: Row, first: Row) -> None:
    """A view that stood before, in row `first`, may not test what was trained."""
    if first.split != row.split:
        raise ValueError(
            f"{what} is the same as in line {first.line}, of the other split; test views must be new: replace one"
        )


def _path(folder: Path, file_name: str, image: str) -> Path:
    try:
        path = (folder / file_name).resolve()
        inside, there = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL or half a character, links in a circle
        raise ValueError(f"{image} has a file name that no file can have") from error
    if not inside:
        raise ValueError(f"{image} lies outside of {folder}; copy it there and give its name alone")
    if path.is_dir():
        raise ValueError(f"{image} is a folder; expected a file")
    if not there:
        raise FileNotFoundError(f"{image} is missing from {folder}")
    return path
