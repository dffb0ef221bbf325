"""The people's description in Croissant 1.0 (docs.mlcommons.org/croissant): files with checksums, and their columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmem_utils.paths import PACKAGE
from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.personas.dataset import COLUMNS, SHOWN_IN
from xmem_utils.personas.names import FACTS

# the one that the specification prescribes
CONTEXT = json.loads((PACKAGE / "export" / "croissant_context.json").read_text("utf-8"))
KIND = {"int32": "sc:Integer", "string": "sc:Text"}
WHAT = {
    "persona": "Number of the person.",
    "name": "Made-up name, drawn at random; of nobody who lives.",
    "view": "Number of the view of the person in its split.",
    "image": "Portrait, PNG of 64 x 64 pixels.",
    "description": "Description of the same person, from the same attributes, with words of its own.",
    **{fact: f"A made-up {fact}." for fact in FACTS},
    **{axis: f"Attribute: {axis}." for axis in AXIS_NAMES},
}


def croissant(folder: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """The description of Parquet files in `folder`, by what they are called."""
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "xmem-personas",
        "description": "Fictitious people in portraits and descriptions, for cross-modality memorization.",
        "license": "https://opensource.org/license/mit",
        "version": "1.0.0",
        "citeAs": "The xmem authors (2026): xmem, a reproducible study of cross-modality memorization.",
        "datePublished": "2026-11-30",
        "creator": {"@type": "sc:Organization", "name": "The xmem authors"},
        "distribution": [_file(name, folder, file) for name, file in files.items()],
        "recordSet": [_rows(name) for name in files],
    }


def _file(name: str, folder: Path, file: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": file.relative_to(folder).as_posix(),
        "encodingFormat": "application/x-parquet",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def _rows(file: str) -> dict[str, Any]:
    name = f"{file}-rows"
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": [_field(file, column) for column in COLUMNS]}


def _field(file: str, column: str) -> dict[str, Any]:
    taken = {"fileObject": {"@id": file}, "extract": {"column": column}}
    picture, name = column == SHOWN_IN["image"], f"{file}-rows/{column.replace(' ', '_')}"  # no blanks in an @id
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": WHAT[column],
        "dataType": "sc:ImageObject" if picture else KIND[COLUMNS[column].dtype],
        "source": taken | ({"transform": {"jsonPath": "bytes"}} if picture else {}),
    }
