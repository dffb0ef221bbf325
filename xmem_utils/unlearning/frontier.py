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
NEAR = 0.9  # from this transfer on, the other modality forgets about as much
SETTING = ["method", "settings", "steps"]
MEASURES = ("said", "exposure")
EITHER = "either"
LOST = "lost", "lost elsewhere"  # in the unlearned modality, and in the other


def frontier(search: pd.DataFrame) -> pd.DataFrame:
    """A row a method, setting, number of steps and unlearned modality, means over the people of the search; last, of
    what was tried in both, `EITHER`: both together. What diverged for some of the people is left out.

    Columns: own and other, recall of the forgotten in the unlearned modality and in the other; retain change, that of
    the retained in the worse modality; admissible, whether it keeps the retained and forgets what it aimed at (of
    either: for both); and for each of `MEASURES` what was `LOST` and the forgetting transfer. Raises ValueError for a
    search of an earlier kind.
    """
    if missing := {f"exposure asked in {m}" for m in MODALITIES} - set(search.columns):
        raise ValueError(f"the search has no {', '.join(sorted(missing))}: run `python -m xmem_utils search` again")
    tried, by = search[~search["method"].isin([BEFORE, RETAIN_ONLY])], [*SETTING, "unlearned"]
    whole = tried.groupby(by)["replicate"].transform("nunique") == search["replicate"].nunique()
    points = ((labels, _point(labels[-1], own, search)) for labels, own in tried[whole].groupby(by, sort=False))
    table = pd.DataFrame([dict(zip(by, labels, strict=True)) | point for labels, point in points])
    return with_transfers(pd.concat([table, _either(table)], ignore_index=True)) if len(table) else table


def _point(unlearned: str, own: pd.DataFrame, search: pd.DataFrame) -> dict[str, object]:
    """What one setting did; references are of the same people, unlearning the same modality."""
    same = search[search["unlearned"] == unlearned]
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
    lost = {f"{side}, {name}": was - left for name, both in zip(MEASURES, (said, bits), strict=True)
            for side, (was, left) in zip(LOST, both, strict=True)}  # fmt: skip
    return point | lost


def _either(points: pd.DataFrame) -> pd.DataFrame:
    """Settings tried in both modalities, both together."""
    groups = points.groupby(SETTING, sort=False)
    lost = {f"{side}, {name}": "mean" for name in MEASURES for side in LOST}
    rules = {"own": "mean", "other": "mean", "retain change": "min", "admissible": "all"} | lost
    table = groups.agg(rules)[groups.size() == len(MODALITIES)]
    return table.reset_index().assign(unlearned=EITHER)


def with_transfers(points: pd.DataFrame) -> pd.DataFrame:
    """Points with the forgetting transfer of each measure; NaN where nothing was forgotten."""
    for name in MEASURES:
        own, across = (points[f"{side}, {name}"] for side in LOST)
        points[f"transfer, {name}"] = across / own.where(own > 0)
    return points


RANGE = ["admissible", "median", "least", "most", "below one", "near one"]


def ranges(points: pd.DataFrame) -> pd.DataFrame:
    """Forgetting transfer over the admissible points of a `frontier`, by method, unlearned modality and measure: of how
    many, median, least, most, the share of them below 1, and that of `NEAR` 1 or above."""
    rows = []
    for (method, unlearned), own in points.groupby(["method", "unlearned"], sort=False) if len(points) else ():
        kept = own[own["admissible"].astype(bool)]
        for name in MEASURES:
            shares = kept[f"transfer, {name}"].dropna()
            row = {"method": method, "unlearned": unlearned, "measure": name, "admissible": len(kept)}
            row |= {"median": shares.median(), "least": shares.min(), "most": shares.max()}
            row |= {"below one": (shares < 1).mean(), "near one": (shares >= NEAR).mean()}
            rows.append(row)
    return pd.DataFrame(rows, columns=["method", "unlearned", "measure", *RANGE])


def transfer_of_means(means: np.ndarray) -> np.ndarray:
    """The forgetting transfer of means `[..., 4]`: before and now in the unlearned modality, then in the other one."""
    sides = means.reshape(*means.shape[:-1], 2, 2)
    lost = sides[..., 0] - sides[..., 1]
    return (lost[..., 1] / np.where(lost[..., 0] > 0, lost[..., 0], np.nan))[..., None]
