"""What 01_data_synthesis looks at: contact sheet, attribute distribution, leakage, speed."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.dataset import to_views
from xmem_utils.personas.portraits import draw

# Mean absolute difference, in grey levels of 255, below which two portraits count as nearly equal: less than
# a one-pixel shift makes.
NEARLY_EQUAL = 1.0


def _people(dataset: DatasetDict) -> pd.DataFrame:
    """Name and attributes, a row a persona."""
    table = dataset["test"].select_columns(["persona", "name", *AXIS_NAMES]).to_pandas()
    return table.drop_duplicates("persona").sort_values("persona", ignore_index=True)


def attribute_vectors(dataset: DatasetDict) -> np.ndarray:
    """Attribute vectors `[personas, axes]` in order of persona."""
    table = _people(dataset)
    return np.stack([table[axis].map([v.name for v in values].index) for axis, values in AXES.items()], axis=1)


def sheet_rows(dataset: DatasetDict, personas: int, train: int, test: int) -> pd.DataFrame:
    """The first personas with their name, attributes and some portraits: a row a persona."""
    views = [*to_views(dataset, "train", "image", train), *to_views(dataset, "test", "image", test)]
    table = _people(dataset).head(personas)
    return table.assign(portraits=[[v.content for v in views if v.persona == p] for p in table["persona"]])


def attribute_counts(dataset: DatasetDict) -> pd.DataFrame:
    """How many personas have each value: rows of axis, value, personas, expected."""
    table = _people(dataset)
    rows = [
        (axis, value.name, int((table[axis] == value.name).sum()), len(table) / len(values))
        for axis, values in AXES.items()
        for value in values
    ]
    return pd.DataFrame(rows, columns=["axis", "value", "personas", "expected"])


def leakage(dataset: DatasetDict) -> pd.DataFrame:
    """Checks that no view gives an answer away: rows of check, found, ok."""
    train, test = dataset["train"], dataset["test"]
    names = {name.casefold() for name in test["name"]}
    named = sum(any(n in text.casefold() for n in names) for part in (train, test) for text in part["description"])
    shared = set(train["description"]) & set(test["description"])
    sentences = [{s.strip() for text in part["description"] for s in text.split(".")} - {""} for part in (train, test)]
    closest = min(_closest(train, test, persona) for persona in set(test["persona"]))
    counts = {
        "descriptions with a name in them": named,
        "test descriptions that are also train descriptions": len(shared),
        "sentences that occur in train and test descriptions": len(sentences[0] & sentences[1]),
    }
    difference = (
        "smallest difference of a test portrait from its persona's train portraits "
        f"(more than {NEARLY_EQUAL:g} grey levels needed)"
    )
    rows = [(check, found, found == 0) for check, found in counts.items()]
    rows.append((difference, round(closest, 2), closest > NEARLY_EQUAL))
    return pd.DataFrame(rows, columns=["check", "found", "ok"])


def _closest(train: Dataset, test: Dataset, persona: int) -> float:
    """Smallest mean absolute pixel difference between a persona's test and train portraits, of 255."""

    def portraits(part: Dataset) -> np.ndarray:
        rows = np.flatnonzero(np.asarray(part["persona"]) == persona)
        return np.stack([np.asarray(image, np.float32) for image in part[rows]["image"]])

    differences = portraits(test)[:, None] - portraits(train)[None]
    return float(np.abs(differences).mean(axis=(2, 3, 4)).min())


def portrait_rate(count: int = 300, size: int = 64) -> float:
    """Portraits drawn a second by this process."""
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, AXIS_SIZES, size=(count, len(AXIS_SIZES)))
    draw(vectors[0], rng, size=size)  # the style is parsed once
    start = time.perf_counter()
    for vector in vectors:
        draw(vector, rng, size=size)
    return count / (time.perf_counter() - start)
