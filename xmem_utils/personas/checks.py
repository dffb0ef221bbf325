"""What 01_data_synthesis looks at: contact sheet, attribute distribution, leakage, speed."""

from __future__ import annotations

from timeit import Timer

import numpy as np
import pandas as pd
from datasets import DatasetDict

from xmem_utils.personas.attributes import AXES, AXIS_NAMES, AXIS_SIZES
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.views import SPLITS

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
    train, test = (list(dataset[split]["description"]) for split in SPLITS)
    sentences = [{s.strip() for text in texts for s in text.split(".")} - {""} for texts in (train, test)]
    names = [name.casefold() for name in names_of(dataset)]
    counts = {
        "descriptions with a name in them": sum(any(n in text.casefold() for n in names) for text in train + test),
        "test descriptions that are also train descriptions": len(set(train) & set(test)),
        "sentences that occur in train and test descriptions": len(sentences[0] & sentences[1]),
    }
    closest = _closest(dataset, len(names))
    difference = (
        "smallest difference of a test portrait from its persona's train portraits "
        f"(more than {NEARLY_EQUAL:g} grey levels needed)"
    )
    rows = [(check, found, found == 0) for check, found in counts.items()]
    rows.append((difference, round(closest, 2), closest > NEARLY_EQUAL))
    return pd.DataFrame(rows, columns=["check", "found", "ok"])


def _closest(dataset: DatasetDict, personas: int) -> float:
    """Smallest mean absolute pixel difference between a persona's test and train portraits, of 255."""
    portraits = (np.stack([np.asarray(image) for image in dataset[split]["image"]]) for split in SPLITS)
    own = zip(*(np.split(part, personas) for part in portraits), strict=True)  # rows are in order of persona
    pairs = ((train.astype(np.float32)[None], test.astype(np.float32)[:, None]) for train, test in own)
    return min(float(np.abs(test - train).mean(axis=(2, 3, 4)).min()) for train, test in pairs)


def portrait_rate(count: int = 300, size: int = 64) -> float:
    """Portraits drawn a second by this process."""
    rng = np.random.default_rng(0)
    timer = Timer(lambda: draw(rng.integers(0, AXIS_SIZES), rng, size=size))
    timer.timeit(1)  # the style is parsed once
    return count / timer.timeit(count)
