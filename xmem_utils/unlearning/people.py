"""Who is forgotten, who looks like them, and who was never there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import DatasetDict

from xmem_utils.personas.attributes import AXIS_NAMES

HELD_OUT_SEED = 5000  # added to a seed: people of the same distribution whom no model of the study has met


def forget_set(people: int, share: float, seed: int, which: int = 0) -> tuple[int, ...]:
    """A random `share` of the personas, by number: `which` of the disjoint sets of so many.

    Smaller first sets are part of larger ones of the same seed. Raises ValueError where there are not so many sets.
    """
    count = round(share * people)
    order = np.random.default_rng([seed, 20]).permutation(people)[which * count :]
    if which and len(order) < count:
        raise ValueError(f"of {people} people there are no {which + 1} disjoint sets of {count} to forget")
    return check_forget(order[:count].tolist(), people)


def check_forget(forget: Sequence[int], people: int) -> tuple[int, ...]:
    """The forget set, sorted. Raises ValueError when it is empty, or everybody."""
    chosen = tuple(sorted(set(forget)))
    if not chosen:
        raise ValueError(
            f"the forget set is empty: of {people} personas at least one must be forgotten; name somebody (forget), or "
            "raise forget_share"
        )
    if len(chosen) == people:
        raise ValueError(f"the forget set is all {people} personas: nobody would be left to retain")
    return chosen


def by_name(forget: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of personas given by name. Raises ValueError for a name that nobody has."""
    if unknown := sorted(set(forget) - set(names)):
        raise ValueError(f"the forget set names unknown personas: {', '.join(unknown)}")
    return check_forget([names.index(name) for name in forget], len(names))


def lookalikes(dataset: DatasetDict, forget: Sequence[int]) -> tuple[int, ...]:
    """For every forgotten persona the retained one that shares most attributes with them.

    Empty for people whose attributes are not known (a user's own).
    """
    test = dataset["test"]
    if not set(AXIS_NAMES) <= set(test.column_names):
        return ()
    columns = [test[axis] for axis in AXIS_NAMES]
    looks = {person: values for person, *values in zip(test["persona"], *columns, strict=True)}
    if any(value is None for values in looks.values() for value in values):
        return ()
    others = [i for i in sorted(looks) if i not in set(forget)]
    matrix = np.array([looks[i] for i in others])
    return tuple(sorted({others[int((matrix == np.array(looks[i])).sum(1).argmax())] for i in forget}))
