"""Settings of the mitigations by one rule, fixed before any search was run, on people whom no reported number uses.

Among the settings that keep source recall at the gate in both directions, the one with the highest target recall, mean
over the directions; of equal ones the earlier row of the grid. A method without such a setting takes the one with the
highest source recall.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from xmem_utils import paths
from xmem_utils.gap import GATE
from xmem_utils.mitigate.methods import METHODS
from xmem_utils.mitigate.study import MitigationStudy
from xmem_utils.mitigate.tables import SOURCE, TARGET, collect, per_persona
from xmem_utils.params import MODALITIES, TUNING_SEEDS, MitigationCondition, shard_of
from xmem_utils.vlm.load import resolve_model

SEED = TUNING_SEEDS[0]
TABLES = "mitigation_search.csv", "mitigation_settings.csv"


def conditions(study: MitigationStudy) -> list[MitigationCondition]:
    """All runs of the search: methods with more than one setting."""
    tried = [(m.name, settings) for m in METHODS.values() if len(m.grid()) > 1 for settings in m.grid()]
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
    """The rule: one row a method, with its settings, worst source and mean target recall, and whether that was kept."""
    table = tried.groupby(["method", "settings"], sort=False).agg({SOURCE: "min", TARGET: "mean"}).reset_index()
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


def chosen_settings(model: str) -> dict[str, dict[str, float]]:
    """Settings by method: of the model's own search, or, for one without, of that of `xmem-tiny-s`."""
    own = Path(resolve_model(model)) / TABLES[1]
    table = pd.read_csv(own if own.exists() else paths.BASE_MODELS / "xmem-tiny-s" / TABLES[1]).set_index("method")
    return {
        m.name: json.loads(table.loc[m.name, "settings"]) if len(m.grid()) > 1 else m.grid()[0]
        for m in METHODS.values()
    }
