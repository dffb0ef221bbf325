"""What 01_data_synthesis looks at: contact sheet, attribute distribution, leakage, speed."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from datasets import DatasetDict

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.portraits import draw

# Mean absolute difference, in grey levels of 255, below which two portraits count as nearly equal: less than
# a one-pixel shift makes.
NEARLY_EQUAL = 1.0


def attribute_vectors(dataset: DatasetDict) -> np.ndarray:
    """Attribute vectors `[personas, axes]` in order of persona."""
    table = dataset["test"].select_columns(["persona", *AXIS_NAMES]).to_pandas()
    table = table.drop_duplicates("persona").sort_values("persona")
    columns = [table[axis].map({value.name: i for i, value in enumerate(AXES[axis])}) for axis in AXIS_NAMES]
    return np.stack(columns, axis=1)


def sheet_rows(dataset: DatasetDict, personas: int, train: int, test: int) -> pd.DataFrame:
    """The first personas with their name, attributes and some portraits: a row a persona."""
    rows = []
    for persona in range(personas):
        mine = {
            split: dataset[split].select([i for i, p in enumerate(dataset[split]["persona"]) if p == persona])
            for split in ("train", "test")
        }
        first = mine["test"][0]
        rows.append(
            {"persona": persona, "name": first["name"], **{axis: first[axis] for axis in AXIS_NAMES},
             "portraits": [*mine["train"][:train]["image"], *mine["test"][:test]["image"]]}
        )  # fmt: skip
    return pd.DataFrame(rows)


def attribute_counts(dataset: DatasetDict) -> pd.DataFrame:
    """How many personas have each value: rows of axis, value, personas, expected."""
    vectors = attribute_vectors(dataset)
    rows = [
        {"axis": axis, "value": value.name, "personas": int((vectors[:, a] == i).sum()),
         "expected": len(vectors) / len(AXES[axis])}
        for a, axis in enumerate(AXIS_NAMES)
        for i, value in enumerate(AXES[axis])
    ]  # fmt: skip
    return pd.DataFrame(rows)


def leakage(dataset: DatasetDict) -> pd.DataFrame:
    """Checks that no view gives an answer away: rows of check, found, ok."""
    train, test = dataset["train"].to_pandas(), dataset["test"].to_pandas()
    names = sorted(set(test["name"]))
    texts = [*train["description"], *test["description"]]
    named = sum(any(name.casefold() in text.casefold() for name in names) for text in texts)
    shared = len(set(train["description"]) & set(test["description"]))
    sentences = [
        {s for text in part["description"] for s in map(str.strip, text.split(".")) if s} for part in (train, test)
    ]
    closest = min(_closest(dataset["train"], dataset["test"], persona) for persona in sorted(set(test["persona"])))
    rows = [
        ("descriptions with a name in them", named, named == 0),
        ("test descriptions that are also train descriptions", shared, shared == 0),
        ("sentences that occur in train and test descriptions", len(sentences[0] & sentences[1]),
         not sentences[0] & sentences[1]),
        (f"smallest difference of a test portrait from its persona's train portraits (more than {NEARLY_EQUAL:g} "
         "grey levels needed)", round(closest, 2), closest > NEARLY_EQUAL),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["check", "found", "ok"])


def _closest(train, test, persona: int) -> float:
    """Smallest mean absolute pixel difference between a persona's test and train portraits, of 255."""

    def portraits(part) -> np.ndarray:
        rows = [i for i, p in enumerate(part["persona"]) if p == persona]
        return np.stack([np.asarray(image, np.float32) for image in part[rows]["image"]])

    a, b = portraits(test), portraits(train)
    return float(np.abs(a[:, None] - b[None]).mean(axis=(2, 3, 4)).min())


def portrait_rate(count: int = 300, size: int = 64) -> float:
    """Portraits drawn a second by this process."""
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, AXIS_SIZES, size=(count, len(AXIS_SIZES)))
    draw(vectors[0], rng, size=size)  # the style is parsed once
    start = time.perf_counter()
    for vector in vectors:
        draw(vector, rng, size=size)
    return count / (time.perf_counter() - start)
