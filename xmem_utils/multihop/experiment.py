"""Two hops learned apart: names from views, facts about names in text; then every task is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from peft import PeftModel
from pydantic import Field

from xmem_utils.experiment import remembered
from xmem_utils.memorization.experiment import Memorization, MemorizationCondition
from xmem_utils.multihop.evaluation import MultihopEvaluation, encoded
from xmem_utils.multihop.people import (
    FIGURES,
    KNOWN,
    PRACTISED,
    STUDY,
    TOGETHER,
    Population,
    draw_population,
    further,
    known_population,
    public_population,
)
from xmem_utils.multihop.tasks import ALONE, DIRECT, LINES, STEPWISE, taught, taught_of_known
from xmem_utils.params import MODALITIES, Profile, resolve
from xmem_utils.personas.public_figures import known_in
from xmem_utils.store import Run
from xmem_utils.vlm.adapters import for_evaluation
from xmem_utils.vlm.batches import Example
from xmem_utils.vlm.load import VLM, resolve_model
from xmem_utils.vlm.processors import picture_side

# What the study's people are asked; of the others, whether they compose what was learned together, or practised.
ASKED = {STUDY: ALONE, TOGETHER: (DIRECT, STEPWISE), PRACTISED: (DIRECT, STEPWISE)}
CURVE = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the training at which the hops and two tasks are asked


class MultihopCondition(MemorizationCondition):
    """Everything that determines one model that learned names from views and facts about names."""

    epochs: int = Field(ge=1)
    together: int = Field(ge=0)  # further people whose name and fact are learned together, from one view
    practised: int = Field(ge=1)  # further people on whom composing is practised
    beside: Literal["source", "both"] = "source"  # views of which modalities practice shows

    @property
    def labels(self) -> dict[str, Any]:
        """Source, replicate, epochs, and which views practice shows."""
        return {"source": self.source, "replicate": self.replicate, "epochs": self.epochs, "beside": self.beside}


class Multihop(Memorization):
    """Multi-hop questions. Raises ValueError for too few personas."""

    folder, notebook, bucket = "multihop", "06_multihop", 32  # questions about a name are a third as long as others

    def __init__(self, model: str | VLM, profile: Profile, rank: int, learning_rate: float, *rest: Any) -> None:
        if profile.personas < LINES:
            raise ValueError(
                f"personas={profile.personas}: a prompt tells of {LINES} people, so at least {LINES} are needed"
            )
        super().__init__(model, profile, rank, learning_rate, *rest)

    @remembered(10)
    def population(self, replicate: int) -> Population:
        """Who takes part, by replicate."""
        return draw_population(self.spec(replicate), replicate, self.profile.train_views)

    @remembered(10)
    def evaluation_of(self, replicate: int) -> MultihopEvaluation:
        """All questions of a replicate."""
        return MultihopEvaluation(self.vlm(replicate), self.population(replicate), ASKED)

    def _evaluation(self, condition: MultihopCondition) -> MultihopEvaluation:
        return self.evaluation_of(condition.replicate)

    def conditions(self, p: Any = None, longer: int = 0) -> list[MultihopCondition]:
        """With `longer`, the first replicate that many times as long (which takes longest); then all of them; with
        `p.ablations` the side replicates, practised beside views of both modalities."""
        longer, replicates = getattr(p, "longer", longer), self.replicates
        first = [self.condition(source, replicates[0], longer) for source in MODALITIES] if longer > 1 else []
        both = self.side_replicates if getattr(p, "ablations", False) else ()
        every = [self.condition(source, replicate) for replicate in replicates for source in MODALITIES]
        return first + every + [self.condition(source, r, beside="both") for r in both for source in MODALITIES]

    def condition(self, source: str, replicate: int, longer: int = 1, beside: str = "source") -> MultihopCondition:
        """One condition, trained `longer` times as many epochs as the profile says."""
        more, profile = further(self.profile.personas), self.profile
        return resolve(
            MultihopCondition, **self._common(source, replicate), data=self.population(replicate).fingerprint,
            personas=profile.personas, together=more[TOGETHER], practised=more[PRACTISED],
            train_views=profile.train_views, epochs=profile.epochs * longer, beside=beside,
        )  # fmt: skip

    def train_examples(self, condition: MultihopCondition) -> list[Example]:
        """Both hops, learned apart; for some people together, and some practice."""
        beside = MODALITIES if condition.beside == "both" else ()
        asked = taught(self.population(condition.replicate), condition.source, beside)
        return encoded(self.vlm(condition.replicate), list(asked))

    def looks(self, condition: MultihopCondition, steps: int) -> dict[int, dict[str, float]]:
        """Steps by epoch."""
        an_epoch = steps / condition.epochs
        epochs = [share * condition.epochs for share in CURVE]
        return {max(1, round(epoch * an_epoch)): {"epoch": epoch} for epoch in epochs}

    def look(self, model: PeftModel, condition: MultihopCondition) -> pd.DataFrame:
        """Exact match: task, query, recall."""
        with for_evaluation(model):
            return self._evaluation(condition).curve_point(model)

    def curve(self, run: Run) -> pd.DataFrame:
        """Recall along the training: epoch, task, query, recall."""
        return run.curve

    def evaluate(self, model: PeftModel, condition: MultihopCondition, facts: Mapping[str, float]) -> pd.DataFrame:
        """All tasks; see `MultihopEvaluation.records`."""
        with for_evaluation(model):
            return self._evaluation(condition).records(model)

    def doing(self, condition: MultihopCondition) -> str:
        """What a training does, for its bar."""
        return f"two hops from {condition.source}"

    def before(self) -> pd.DataFrame:
        """All tasks about the first replicate's people, before anything is memorized."""
        replicate = self.replicates[0]
        about = self.population(replicate).fingerprint
        return self.untrained(replicate, about, lambda: self.evaluation_of(replicate).records()).assign(source="none")

    def public_figures(self) -> pd.DataFrame | None:
        """All tasks about whom the first replicate's base knows from pretraining; None where they are not known."""
        replicate = self.replicates[0]
        vlm = self.vlm(replicate)
        if (figures := known_in(resolve_model(vlm.name))) is None:
            return None
        most = min(FIGURES, self.profile.personas)

        def ask() -> pd.DataFrame:
            people = public_population(figures, picture_side(vlm.processor), most)
            return MultihopEvaluation(vlm, people, dict.fromkeys(people.groups, ALONE)).records()

        return self.untrained(replicate, ["public figures", most], ask).assign(source="none")


class KnownPeople(Multihop):
    """New facts about people whom pretraining has named in both modalities: hop 1 is known, hop 2 is learned."""

    folder = "multihop_known"

    @remembered(10)
    def population(self, replicate: int) -> Population:
        """Public figures of the replicate's base."""
        vlm = self.vlm(replicate)
        figures, side = known_in(resolve_model(vlm.name)), picture_side(vlm.processor)
        return known_population(figures, side, replicate, min(FIGURES, self.profile.personas))

    @remembered(10)
    def evaluation_of(self, replicate: int) -> MultihopEvaluation:
        """All questions of a replicate."""
        return MultihopEvaluation(self.vlm(replicate), self.population(replicate), {STUDY: ALONE})

    def conditions(self, p: Any = None, longer: int = 0) -> list[MultihopCondition]:
        """A condition for each replicate; none of a model that is not ours: whom it knows is not known."""
        if known_in(resolve_model(self.vlm.called(self.replicates[0]))) is None:
            return []
        return [self.condition("image+text", replicate, beside="both") for replicate in self.replicates]

    def condition(self, source: str, replicate: int, longer: int = 1, beside: str = "source") -> MultihopCondition:
        """One condition: nobody learns name and fact together, and a view is shown in practice alone."""
        groups = self.population(replicate).groups
        sizes = {"personas": len(groups[STUDY]), "together": 0, "practised": len(groups[PRACTISED]), "train_views": 1}
        return super().condition(source, replicate, longer, beside).model_copy(update=sizes)

    def train_examples(self, condition: MultihopCondition) -> list[Example]:
        """New facts, and some practice."""
        asked = taught_of_known(self.population(condition.replicate))
        return encoded(self.vlm(condition.replicate), list(asked))

    def records(self, p: Any) -> pd.DataFrame | None:
        """All tasks, by replicate; the source is `KNOWN`. None where there are no conditions."""
        runs = self.run_all(self.conditions(p))
        return self.collect(runs).assign(source=KNOWN) if runs else None
