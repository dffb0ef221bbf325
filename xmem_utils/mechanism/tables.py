"""From rows of `explain` (one a person) to estimates with intervals, and the layer at which recall switches on."""

from __future__ import annotations

import pandas as pd

from xmem_utils.mechanism.measures import BEFORE, OTHERS, OWN, RECALLED
from xmem_utils.stats import INTERVAL, RESAMPLES, estimate

KEYS = ["model", "source", "measure", "given", "query", "layer"]


def estimates(rows: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Means over people with 95 % intervals: the columns of `KEYS`, then estimate, low, high and chance.

    `rows` are those of `explain` with the columns model, source and replicate added. Chance, which may differ from one
    replicate's names to another's, is averaged over them.
    """
    table = estimate(rows, KEYS[:2], KEYS[2:], "value", resamples)
    chance = rows.groupby([*KEYS[:2], "measure"])["chance"].mean()
    return table.join(chance, on=chance.index.names)[[*KEYS, *INTERVAL, "chance"]]


def switches_on(table: pd.DataFrame) -> pd.DataFrame:
    """Where recall switches on: first layers from which patched source states bring back half of what they could.

    One row a model and source: restored, the first layer after which the own name's recall has gained half of ceiling
    less unpatched; swapped, the first after which another person's name is said at half of the ceiling (this one is
    also defined where the target misses nothing); NaN when no layer does. unpatched and ceiling are target and source
    recall without a patch. `table` is that of `estimates`; models in which nothing was patched are left out.
    """
    out = []
    table = table[table["model"] != BEFORE]
    for (model, source), own in table.groupby(["model", "source"], sort=False):
        of = {m: own[own["measure"] == m].set_index("layer")["estimate"].sort_index() for m in (OWN, OTHERS)}
        unpatched = of[OWN][0]
        ceiling = own[own["measure"] == RECALLED].set_index("query")["estimate"][source]
        restored, swapped = of[OWN].drop(0), of[OTHERS].drop(0)
        restored = restored[(ceiling > unpatched) & (restored >= (unpatched + ceiling) / 2)]
        swapped = swapped[(swapped > 0) & (swapped >= ceiling / 2)]
        row = {"model": model, "source": source, "restored": restored.index.min(), "swapped": swapped.index.min()}
        out.append(row | {"unpatched": unpatched, "ceiling": ceiling})
    return pd.DataFrame(out)
