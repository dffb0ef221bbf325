"""What all settings of the search do: how much each forgets, retains, and carries over to the other modality.

Forgetting transfer is (before - other) / (before - own): which share of what was forgotten in the unlearned modality
(own) went in the other one, too. Said, and in bits of exposure above a model that never learned the forgotten.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmem_utils.params import MODALITIES, other
from xmem_utils.unlearning.names import BEFORE, RETAIN_ONLY

RETAINED = 0.05  # retain recall may fall by this much, asked in either modality
AIMED = 0.9  # share of its recall that a setting must take away in the unlearned modality
SETTING = ["method", "settings", "steps", "unlearned"]
MEASURES = ("said", "exposure")


def frontier(search: pd.DataFrame) -> pd.DataFrame:
    """A row a method, setting, number of steps and unlearned modality, means over the people of the search.

    Columns: own and other, recall of the forgotten in the unlearned modality and in the other; retain change, that of
    the retained in the worse modality; admissible, whether it keeps the retained and forgets what it aimed at; and the
    forgetting transfer of each of `MEASURES`.
    """
    tried = search[~search["method"].isin([BEFORE, RETAIN_ONLY])]
    points = ((labels, _point(labels[-1], own, search)) for labels, own in tried.groupby(SETTING, sort=False))
    return pd.DataFrame([dict(zip(SETTING, labels, strict=True)) | point for labels, point in points])


def _point(unlearned: str, own: pd.DataFrame, search: pd.DataFrame) -> dict[str, object]:
    """What one setting did; references are of the same people, unlearning the same modality."""
    same = search[(search["unlearned"] == unlearned) & search["replicate"].isin(own["replicate"])]
    before, never = (same[same["method"] == name].mean(numeric_only=True) for name in (BEFORE, RETAIN_ONLY))
    now, sides = own.mean(numeric_only=True), (unlearned, other(unlearned))
    retain = min(now[f"retain asked in {m}"] - before[f"retain asked in {m}"] for m in MODALITIES)
    said = [tuple(at[f"forget asked in {m}"] for at in (before, now)) for m in sides]
    bits = [
        tuple(max(0.0, at[f"exposure asked in {m}"] - never[f"exposure asked in {m}"]) for at in (before, now))
        for m in sides
    ]
    forgot = said[0][1] <= (1 - AIMED) * said[0][0]
    point = {"own": said[0][1], "other": said[1][1], "retain change": retain}
    point["admissible"] = bool(forgot and retain >= -RETAINED - 1e-9)
    return point | {"transfer, said": transfer(*said), "transfer, exposure": transfer(*bits)}


def transfer(own: tuple[float, float], across: tuple[float, float]) -> float:
    """Forgetting transfer of what was (before, now) known in the unlearned modality and in the other; NaN where nothing
    was forgotten."""
    lost = own[0] - own[1]
    return (across[0] - across[1]) / lost if lost > 0 else np.nan


def transfer_of_means(means: np.ndarray) -> np.ndarray:
    """`transfer` of means `[..., 4]`: own before and now, then other; what is below who never learned is nothing."""
    sides = np.maximum(means.reshape(*means.shape[:-1], 2, 2), 0)
    lost = sides[..., 0] - sides[..., 1]
    return (lost[..., 1] / np.where(lost[..., 0] > 0, lost[..., 0], np.nan))[..., None]


def ranges(points: pd.DataFrame) -> pd.DataFrame:
    """Forgetting transfer over the admissible points of a `frontier`, by method, unlearned modality (and "either") and
    measure: of how many, median, least and most."""
    points, rows = pd.concat([points, points.assign(unlearned="either")]), []
    for (method, unlearned), own in points.groupby(["method", "unlearned"], sort=False):
        kept = own[own["admissible"]]
        for name in MEASURES:
            shares = kept[f"transfer, {name}"]
            row = {"method": method, "unlearned": unlearned, "measure": name, "admissible": len(kept)}
            rows.append(row | {"median": shares.median(), "least": shares.min(), "most": shares.max()})
    return pd.DataFrame(rows, columns=["method", "unlearned", "measure", "admissible", "median", "least", "most"])
