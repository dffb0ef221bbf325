"""The unlearning methods: a row each. What a loss needs is read off its arguments.

To add a method, write its loss in `losses.py` and give it a row here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xmem_utils.experiment import Method as AnyMethod
from xmem_utils.experiment import Settings
from xmem_utils.fingerprint import Table
from xmem_utils.train import Objective
from xmem_utils.unlearning import losses
from xmem_utils.unlearning.names import PROMPT

PARTS = ("forget", "refusal", "retain")
RATES = (1e-3, 3e-4, 3e-3)
POINTS = (5, 7, 10, 15, 20, 30, 45, 60, 90, 120)  # steps that the search looks at
RETAIN = {"retain_weight": (3.0, 1.0, 10.0)}
# The layer that RMU steers, as a share of the depth. The paper steers an early one; in the embedded model the states at
# half of the depth hardly tell people apart yet, and on a tuning seed the retained went with the forgotten.
STATES_AT = 0.8


@dataclass(frozen=True)
class Method(AnyMethod):
    """How one method unlearns, and the settings that the search tries.

    `losses` take turns, step by step; with a setting `forget_turns`, after so many turns of the first the last goes on
    alone. A method without losses changes no weights by gradient: `negates` subtracts an adapter that has learned the
    forget set, `asks` only asks differently.
    """

    losses: tuple[Callable[..., Tensor], ...] = ()
    reference: tuple[str, ...] = ()  # views for which the loss needs what the model said before unlearning
    states: bool = False  # and whether that is hidden states rather than logits
    negates: bool = False
    asks: bool = False
    rates: tuple[float, ...] = field(default=RATES, compare=False)  # learning rates that the search tries
    points: tuple[int, ...] = field(default=POINTS, compare=False)  # steps it looks at

    def __post_init__(self) -> None:
        """Learning rates join the grid. Raise ValueError for a setting that no loss takes."""
        for name in self.grid:
            taken = {"forget_turns"}.union(*(inspect.signature(loss).parameters for loss in self.losses))
            if self.losses and name not in taken:
                raise ValueError(f"no loss of {self.name!r} takes {name!r}")
        rates = {"learning_rate": self.rates} if self.losses else {}
        object.__setattr__(self, "grid", {**rates, **self.grid})

    def objective(self, settings: Mapping[str, object], width: int = 0, seed: int = 0) -> Objective:
        """What is minimised, with some settings; hidden states, `width` wide, are steered in a random direction."""
        losses = self.losses
        if turns := int(settings.get("forget_turns", 0)):
            alone = max(0, int(settings.get("steps", 0)) - 2 * turns)
            losses = losses * turns + losses[-1:] * alone
        if not self.states:
            return Objective(losses, self.reference, settings=settings)
        direction = torch.rand(width, generator=torch.Generator().manual_seed(seed))
        own = {**settings, "direction": direction / direction.norm()}
        return Objective(self.losses, self.reference, depth=STATES_AT, settings=own)

    def parts(self, step: int, settings: Mapping[str, object]) -> tuple[str, ...]:
        """Which of forget, refusal and retain views the loss of a step (counted from 1) takes."""
        return tuple(part for part in PARTS if part in self.objective(settings).takes(step))

    def settings(self) -> list[Settings]:
        """All settings that the search tries: the first value of each, and from there one changed at a time."""
        return [own for own in super().settings() if sum(own[name] != self.grid[name][0] for name in self.grid) < 2]


# What authors or open-unlearning (arXiv 2506.12618) set is among what is tried, but for learning rates: theirs are for
# whole models of billions of weights.
METHODS = Table(
    (method.name, method)
    for method in (
        Method("GA", "ascends the loss of the forgotten names", losses=(losses.gradient_ascent,),
               rates=(*RATES, 1e-4)),
        Method("GradDiff", "ascends it, and descends that of the retained", RETAIN, (losses.gradient_difference,)),
        Method("KL", "ascends it, and holds the retained answers by KL", RETAIN, (losses.kl_minimization,),
               reference=("retain",)),
        Method("NPO", "prefers anything to the forgotten name", {"beta": (0.1, 1.0), **RETAIN}, (losses.npo,),
               ("forget",)),
        Method("SimNPO", "the same without a reference, by length", {"beta": (2.5, 4.5), "gamma": (0.0,), **RETAIN},
               (losses.simnpo,)),
        Method("DPO", "prefers a refusal to the forgotten name", {"beta": (0.1,), **RETAIN}, (losses.dpo,),
               ("forget", "refusal")),
        Method("IDK", "learns a refusal", RETAIN, (losses.idk,)),
        Method("RMU", "steers the hidden states of the forgotten", {"scale": (2.0, 20.0), **RETAIN}, (losses.rmu,),
               ("retain",), states=True),
        Method("SCRUB", "leaves the teacher on the forgotten, stays with it on the retained, in turns",
               {"alpha": (0.5, 1.0), "forget_turns": (0.0, 15.0)}, (losses.scrub_forget, losses.scrub_retain),
               reference=("forget", "retain"), rates=(5e-4, 2e-3)),
        Method("UNDIAL", "distils from itself with the true token lowered",
               {"gamma": (10.0,), "retain_weight": (0.0, *RETAIN["retain_weight"])}, (losses.undial,), ("forget",)),
        Method("task vector", "subtracts what learning the forget set adds", {"scale": (0.1,)}, negates=True,
               points=(4, 5, 6, 7, 8, 9, 10, 12)),
        Method(PROMPT, "is only told not to say", asks=True, points=(0,)),
    )
)  # fmt: skip


def method_named(name: str) -> Method:
    """A row of the table. Raises ValueError naming the known ones."""
    if name not in METHODS:
        raise ValueError(f"unknown unlearning method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]
