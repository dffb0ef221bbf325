"""Which conditions the unlearning notebook compares, from its parameters."""

from __future__ import annotations

from xmem_utils.memorization.experiment import Study
from xmem_utils.params import MODALITIES, Parameters, UnlearningCondition, profile_named, scaled
from xmem_utils.personas.dataset import names_of
from xmem_utils.unlearning.experiment import BEFORE, GOLD, UnlearningStudy
from xmem_utils.unlearning.methods import METHODS, method_named
from xmem_utils.unlearning.people import by_name
from xmem_utils.unlearning.search import chosen_settings
from xmem_utils.vlm.load import load_vlm

BOTH = "image+text"
FURTHER_METHODS = ("GradDiff", "IDK")  # what the further arms are asked of
FURTHER_SHARES = (0.05, 0.2)  # of people forgotten


def study_of(p: Parameters) -> UnlearningStudy:
    """The study that a notebook's parameters describe, its model loaded."""
    profile = scaled(profile_named(p.profile), p)
    return UnlearningStudy(Study(load_vlm(p.model), profile, p.rank, p.learning_rate, p.people, epochs=p.epochs))


def methods_of(p: Parameters) -> list[str]:
    """The methods asked for. Raises ValueError naming the known ones."""
    wanted = list(METHODS) if p.methods == "all" else [name.strip() for name in p.methods.split(",")]
    return list(dict.fromkeys(method_named(name).name for name in wanted))


def conditions(study: UnlearningStudy, p: Parameters) -> list[UnlearningCondition]:
    """All conditions, seed by seed.

    The main arm: who was memorized in both modalities is unlearned in either by every method, with both references,
    the whole exam and all attacks. With `arms`, further ones, asked for exact match alone: unlearning both modalities
    at once; and, for two methods, other shares, both modalities rehearsed, and people memorized in one modality alone,
    which is then unlearned.
    """
    methods = methods_of(p)
    settings = chosen_settings(p.model, methods) | {BEFORE: {}, GOLD: {}}
    out = []
    for seed in study.study.profile.seeds:
        names = names_of(study.study.dataset(seed)[0])
        wanted = [name.strip() for name in p.forget.split(",")] if p.forget else []
        forget = by_name(wanted, names) if wanted else study.forget_set(seed, p.forget_share)

        def made(method: str, unlearned: str, seed=seed, forget=forget, **more) -> UnlearningCondition:
            return study.condition(method, settings[method], unlearned, seed, forget=forget, **more)

        for unlearned in MODALITIES:
            out += [made(m, unlearned, thorough=True) for m in (BEFORE, GOLD, *methods)]
        if not p.arms:
            continue
        out += [made(m, BOTH) for m in methods]
        further = [m for m in FURTHER_METHODS if m in methods]
        for unlearned in MODALITIES:
            out += [made(m, unlearned, retained=BOTH) for m in further]
            out += [made(m, unlearned, source=unlearned) for m in (BEFORE, *further)]
            # nobody, or as many as in the main arm, is no further arm
            for share in (s for s in FURTHER_SHARES if round(s * len(names)) not in (0, len(forget))):
                out += [made(m, unlearned, forget=study.forget_set(seed, share)) for m in further]
    return out
