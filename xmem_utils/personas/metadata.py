"""The table of a user's folder: `metadata.csv` or `metadata.jsonl`, read strictly."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xmem_utils.params import shown
from xmem_utils.personas.views import SPLITS

NEEDED = ("persona", "name", "split")
COLUMNS = (*NEEDED, "file_name", "description")


@dataclass(frozen=True)
class Row:
    """One line of the metadata: a view, or one of each modality."""

    line: int  # counted from 1, the header included
    persona: str
    name: str
    split: str
    file_name: str
    description: str


def read_rows(folder: Path) -> list[Row]:
    """The rows of a folder's metadata, as they were written.

    Columns other than COLUMNS are ignored. Raises ValueError or OSError with a sentence that names file and line.
    """
    if not os.path.isdir(folder):  # False, too, for a path that cannot be
        raise FileNotFoundError(f"{str(folder)[-200:]!r} is no folder; expected one with metadata.csv and images")
    found = [f for f in (folder / "metadata.csv", folder / "metadata.jsonl") if f.is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} has neither metadata.csv nor metadata.jsonl")
    if len(found) > 1:
        raise ValueError(f"{folder} has both metadata.csv and metadata.jsonl; remove one of them")
    file = found[0]
    lines = _csv(file.name, _text(file)) if file.suffix == ".csv" else _jsonl(file.name, _text(file))
    rows = [Row(line, **{c: fields.get(c, "") for c in COLUMNS}) for line, fields in lines]
    if not rows:
        raise ValueError(f"{file.name} has no rows; expected one a view")
    for row in rows:
        if empty := next((c for c in NEEDED if not getattr(row, c).strip()), None):
            raise ValueError(f"line {row.line} of {file.name} has no {empty}")
        if row.persona != row.persona.strip():
            raise ValueError(f"the persona {shown(row.persona)} in line {row.line} has spaces around it; take them out")
        if row.split not in SPLITS:
            raise ValueError(
                f"unknown split {shown(row.split)} in line {row.line} of {file.name}: expected 'train' or 'test'"
            )
    return rows


def _text(file: Path) -> str:
    data = file.read_bytes()
    advice = "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{file.name} is written in UTF-16; {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file.name} is not in UTF-8: line {line} holds the byte 0x{data[error.start]:02x}; {advice}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line} of {file.name} holds a NUL character; {advice}")
    return text


def _csv(name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and fields of every row; commas, semicolons or tabs part the columns, whichever the header has."""
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for fields in reader:
            if fields and not columns:
                columns = fields
                _check_columns(name, columns)
            elif any(field.strip() for field in fields):  # spreadsheets write empty rows
                if len(fields) != len(columns):
                    raise ValueError(
                        f"line {line} of {name} has {len(fields)} fields and the header {len(columns)}; "
                        "put a text that holds a separator into double quotes"
                    )
                yield line, dict(zip(columns, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line} of {name} is no valid CSV: {error}") from error


def _check_columns(name: str, columns: list[str]) -> None:
    if lacking := [c for c in NEEDED if c not in columns]:
        raise ValueError(
            f"{name} lacks the column {', '.join(lacking)} (lower case, no spaces); it has {shown(', '.join(columns))}"
        )
    if twice := next((c for c in COLUMNS if columns.count(c) > 1), None):
        raise ValueError(f"{name} has the column {twice} twice; remove or rename one")


def _jsonl(name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            pairs = json.loads(written, object_pairs_hook=tuple)
        except (ValueError, RecursionError) as error:
            known = isinstance(error, json.JSONDecodeError)
            reason = f"{error.msg} (character {error.colno})" if known else "too deep or too large"
            raise ValueError(f"line {line} of {name} is no valid JSON: {reason}") from error
        if not isinstance(pairs, tuple):
            raise ValueError(f'line {line} of {name} is no object: expected {{"persona": …, "name": …}}')
        fields = {key: value for key, value in pairs if key in COLUMNS}
        for key, value in fields.items():
            if not isinstance(value, str | int | None) or isinstance(value, bool):
                raise ValueError(f"{key} in line {line} of {name} is {shown(str(value))}; expected text")
        # a file of one modality a line has no other columns: those are looked for line by line
        _check_columns(f"line {line} of {name}", [key for key, _ in pairs])
        yield line, {key: "" if value is None else str(value) for key, value in fields.items()}
