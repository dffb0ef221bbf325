"""Which conditions the mitigation notebook compares, from its parameters."""

from __future__ import annotations

import pandas as pd

from xmem_utils.memorization.experiment import Study
from xmem_utils.mitigation.experiment import MitigationStudy
from xmem_utils.mitigation.methods import DESCRIBED, METHODS, PLAIN, PLAIN_START, method_named
from xmem_utils.mitigation.search import chosen_settings
from xmem_utils.params import MODALITIES, MitigationCondition, Parameters, profile_named, scaled
from xmem_utils.vlm.load import load_vlm


def study_of(p: Parameters) -> MitigationStudy:
    """The study that a notebook's parameters describe, its model loaded."""
    return MitigationStudy(Study(load_vlm(p.model), scaled(profile_named(p.profile), p), p.rank, p.learning_rate))


def methods_of(p: Parameters) -> list[str]:
    """The methods asked for, after what they are held against. Raises ValueError naming the known ones.

    Describe-then-recall trains nothing: it comes with plain.
    """
    wanted = list(METHODS) if p.methods == "all" else [name.strip() for name in p.methods.split(";")]
    chosen = [method_named(name) for name in wanted if name != DESCRIBED]
    against = [PLAIN, *[PLAIN_START] * any(m.fresh for m in chosen)]
    return list(dict.fromkeys([*against, *(m.name for m in chosen)]))


def conditions(study: MitigationStudy, p: Parameters) -> list[MitigationCondition]:
    """All conditions: every method in both directions, seed by seed, and with `pairs` fewer people paired."""
    chosen = chosen_settings(p.model)
    return study.conditions({name: chosen[name] for name in methods_of(p)}, p.pairs)


def memorized(study: MitigationStudy) -> pd.DataFrame:
    """Records of the models that most methods go on from, those of notebook 03, by source and seed."""
    starts = [study.study.condition(source, seed) for seed in study.study.profile.seeds for source in MODALITIES]
    parts = [study.study.run(c).records.assign(source=c.source, seed=c.seed) for c in starts]
    return pd.concat(parts, ignore_index=True)
