"""Settings of the mitigations by one rule, fixed before any search was run, on people whom no reported number uses.

Among the settings that keep source recall at the gate in both directions, the one with the highest target recall, mean
over the directions; of equal ones the earlier row of the grid. A method without such a setting takes the one with the
highest source recall. The same people say which method is looked into as the best one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from xmem_utils import paths
from xmem_utils.mitigation.experiment import MitigationStudy
from xmem_utils.mitigation.methods import LAYERS, METHODS, PLAIN, PLAIN_START
from xmem_utils.mitigation.tables import SOURCE, TARGET, collect, per_persona
from xmem_utils.params import MODALITIES, TUNING_SEEDS, MitigationCondition, shard_of
from xmem_utils.stats import GATE
from xmem_utils.vlm.load import resolve_model

SEED = TUNING_SEEDS[0]
TABLES = "mitigation_search.csv", "mitigation_settings.csv"
WEIGHTS, THRESHOLDS = (0.03, 0.1, 0.3, 1.0), (0.5, 0.9)

# Values tried by method and setting; what is not here has no settings.
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "captions": {"weight": WEIGHTS},
    "captions, other people": {"weight": WEIGHTS},
    "captions, from the start": {"weight": WEIGHTS[1:]},
    "matching": {"weight": WEIGHTS},
    "self-labelled, sure": {"threshold": THRESHOLDS},
    "self-labelled, soft, sure": {"threshold": THRESHOLDS},
    "aligned, all layers": {"depth": (0.0,), "weight": WEIGHTS},
    **{f"aligned, depth {k}/{LAYERS}": {"depth": (k / LAYERS,), "weight": WEIGHTS[1:]} for k in range(1, LAYERS + 1)},
    "replay": {"weight": WEIGHTS[1:]},
    "lower rank": {"rank": (4.0, 8.0)},
    "lower learning rate": {"learning_rate": (5e-4, 1e-3)},
    "weight averaging": {"keep": (0.7, 0.85)},
}


def grid(method: str) -> list[dict[str, float]]:
    """All settings of a method that are tried."""
    axes = GRIDS.get(method, {})
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def conditions(study: MitigationStudy) -> list[MitigationCondition]:
    """All runs of the search."""
    tried = [(name, settings) for name in METHODS for settings in grid(name)]
    return [study.condition(name, settings, source, SEED) for source in MODALITIES for name, settings in tried]


def search(study: MitigationStudy, shard: str) -> pd.DataFrame:
    """Source and target recall by method, settings and source; with a shard, of a part alone."""
    rows = []
    for run in study.run_all(shard_of(conditions(study), shard)):
        means = per_persona(collect([run]))[[SOURCE, TARGET]].mean()
        rows.append({"method": run.condition.method, "settings": json.dumps(run.condition.settings, sort_keys=True),
                     "source": run.condition.start.source, **means})  # fmt: skip
    return pd.DataFrame(rows)


def choose(tried: pd.DataFrame) -> pd.DataFrame:
    """The rule: one row a method, with its settings, worst source recall, target recall (mean, and from each source),
    and whether the source was `kept`."""
    wide = tried.pivot_table(index=["method", "settings"], columns="source", values=[SOURCE, TARGET], sort=False)
    table = pd.DataFrame({SOURCE: wide[SOURCE].min(axis=1), TARGET: wide[TARGET].mean(axis=1)})
    table = table.join(wide[TARGET].add_prefix(f"{TARGET} from ")).reset_index()
    rows = []
    for _, part in table.groupby("method", sort=False):
        kept = part[part[SOURCE] >= GATE]
        best = kept.loc[kept[TARGET].idxmax()] if len(kept) else part.loc[part[SOURCE].idxmax()]
        rows.append({**best, "kept": len(kept) > 0})
    return pd.DataFrame(rows)


def write(model: str, tried: pd.DataFrame) -> pd.DataFrame:
    """Write the search and what it chose into the model's folder; returns the latter."""
    folder, chosen = Path(resolve_model(model)), choose(tried)
    tried.to_csv(folder / TABLES[0], index=False, float_format="%.4f")
    chosen.to_csv(folder / TABLES[1], index=False, float_format="%.4f")
    return chosen


def table_of(model: str) -> pd.DataFrame:
    """What the search chose for a model, by method; for one without a search of its own, that of `xmem-tiny-s`."""
    own = Path(resolve_model(model)) / TABLES[1]
    return pd.read_csv(own if own.exists() else paths.BASE_MODELS / "xmem-tiny-s" / TABLES[1]).set_index("method")


def chosen_settings(model: str) -> dict[str, dict[str, float]]:
    """Settings by method."""
    table = table_of(model)
    return {name: json.loads(table.loc[name, "settings"]) for name in METHODS}


def best(model: str, source: str, methods: Sequence[str]) -> str:
    """Of some methods, the one with the highest target recall in the search among those that memorized; of equal ones
    the first. Chosen on people whom no reported number uses, so what is reported of it is not a winner's luck."""
    table = table_of(model).loc[[m for m in methods if m not in (PLAIN, PLAIN_START)]]
    return str(table[table["kept"]][f"{TARGET} from {source}"].idxmax())
