"""The unlearning methods: a row each. What a loss needs is read off its arguments.

To add a method, write its loss in `losses.py` and give it a row here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor

from xmem_utils.unlearning import losses
from xmem_utils.unlearning.names import PROMPT

DATA = ("forget", "refusal", "retain")
RATES = (3e-4, 5e-4, 1e-3)


@dataclass(frozen=True)
class Method:
    """How one method unlearns, and the settings that the search tries.

    `losses` take turns, step by step. A method without losses changes no weights by gradient: `negates` subtracts
    an adapter that has learned the forget set, `asks` only asks differently.
    """

    name: str
    losses: tuple[Callable[..., Tensor], ...] = ()
    reference: tuple[str, ...] = ()  # views for which the loss needs what the model said before unlearning
    states: bool = False  # and whether that is hidden states rather than logits
    negates: bool = False
    asks: bool = False
    rates: tuple[float, ...] = RATES  # learning rates
    settings: dict[str, tuple[float, ...]] = field(default_factory=dict)  # the loss' own, beside the learning rate
    points: tuple[int, ...] = (5, 7, 10, 15, 20, 30)  # numbers of steps that the search looks at

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that no loss takes."""
        for name in self.settings:
            if self.losses and not any(name in inspect.signature(loss).parameters for loss in self.losses):
                raise ValueError(f"no loss of {self.name!r} takes {name!r}")

    def data(self, step: int) -> tuple[str, ...]:
        """Which of forget, refusal and retain views the loss of a step (counted from 1) takes."""
        return tuple(part for part in DATA if part in inspect.signature(self.loss(step)).parameters)

    def loss(self, step: int) -> Callable[..., Tensor]:
        """The loss of a step, counted from 1."""
        return self.losses[(step - 1) % len(self.losses)]

    def grid(self) -> list[dict[str, float]]:
        """All settings that the search tries, without the number of steps."""
        rates = {"learning_rate": self.rates} if self.losses else {}
        axes = {**rates, **self.settings}
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("GA", (losses.gradient_ascent,), points=(3, 5, 7, 10, 15, 20)),
        Method("GradDiff", (losses.gradient_difference,)),
        Method("KL", (losses.kl_minimization,), reference=("retain",)),
        Method("NPO", (losses.npo,), reference=("forget",), settings={"beta": (0.1, 1.0)}),
        Method("SimNPO", (losses.simnpo,), settings={"beta": (2.5,), "gamma": (0.0,)}),
        Method("DPO", (losses.dpo,), reference=("forget", "refusal"), settings={"beta": (0.1,)}),
        Method("IDK", (losses.idk,)),
        Method(
            "RMU",
            (losses.rmu,),
            reference=("retain",),
            states=True,
            rates=(5e-4, 1e-3),
            settings={"scale": (20.0,), "retain_weight": (1.0, 10.0)},
        ),
        Method(
            "SCRUB",
            (losses.scrub_forget, losses.scrub_retain),
            reference=("forget", "retain"),
            rates=(5e-4, 1e-3, 2e-3),
        ),
        Method("UNDIAL", (losses.undial,), reference=("forget",), settings={"gamma": (10.0,)}),
        Method("task vector", negates=True, settings={"scale": (0.1,)}, points=(4, 5, 6, 7, 8, 9, 10, 12)),
        Method(PROMPT, asks=True, points=(0,)),
    )
}


def method_named(name: str) -> Method:
    """A row of the table. Raises ValueError naming the known ones."""
    if name not in METHODS:
        raise ValueError(f"unknown unlearning method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]
