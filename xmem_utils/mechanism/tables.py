"""From rows of `explain` (one a person) to estimates with intervals, and the layer at which recall switches on."""

from __future__ import annotations

import pandas as pd

from xmem_utils.mechanism.explain import (
    LENS,
    OTHERS_OTHER,
    OTHERS_OWN,
    OWN,
    PROBE,
    RECALLED,
    RETRIEVED,
    RETRIEVED_RANK,
)
from xmem_utils.mechanism.lens import blind_reciprocal_rank
from xmem_utils.mechanism.people import People
from xmem_utils.stats import RESAMPLES, cluster_bootstrap

KEYS = ["model", "source", "measure", "given", "asked", "layer"]


def chance(people: People) -> dict[str, float]:
    """Chance levels by measure, for the measures that have one."""
    n = len(people)
    return {
        LENS: blind_reciprocal_rank(people.answers),
        RETRIEVED_RANK: sum(1 / rank for rank in range(1, n + 1)) / n,
        **dict.fromkeys((RETRIEVED, PROBE, OWN, OTHERS_OWN, OTHERS_OTHER, RECALLED), 1 / n),
    }


def estimates(rows: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Means over people with 95 % intervals: the columns of `KEYS`, then estimate, low and high.

    `rows` are those of `explain` with the columns model, source and seed added; people are resampled within seeds.
    """
    parts = []
    for (model, source), own in rows.groupby(["model", "source"], sort=False):
        wide = own.pivot_table(index=["seed", "persona"], columns=KEYS[2:], values="value", observed=True)
        part = cluster_bootstrap(wide, resamples).reset_index()
        parts.append(part.assign(model=model, source=source))
    return pd.concat(parts, ignore_index=True)[[*KEYS, "estimate", "low", "high"]]


def switches_on(table: pd.DataFrame) -> pd.DataFrame:
    """First layer after which a patched source state brings back half of the recall that is missing.

    One row a model and source: model, source, layer (NaN when no layer does), recalled (the most that a patch reaches),
    best (the layer at which it does), unpatched (target recall without a patch) and ceiling (source recall). Half is
    of ceiling less unpatched. `table` is that of `estimates`.
    """
    out = []
    for (model, source), own in table.groupby(["model", "source"], sort=False):
        patched = own[own["measure"] == OWN].set_index("layer")["estimate"].sort_index()
        recalled = own[(own["measure"] == RECALLED)].set_index("asked")["estimate"]
        unpatched, ceiling = patched[0], recalled[source]
        after = patched.drop(0)
        enough = after[(after > unpatched) & (after >= (unpatched + ceiling) / 2)]
        out.append({
            "model": model, "source": source, "layer": enough.index.min(), "recalled": after.max(),
            "best": after.idxmax(), "unpatched": unpatched, "ceiling": ceiling,
        })  # fmt: skip
    return pd.DataFrame(out)
