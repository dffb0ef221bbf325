"""What a model that was to recall across modalities is asked: both modalities, its perception ceiling, who it knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from peft.tuners.lora import LoraLayer
from torch import nn

from xmem_utils.memorization.experiment import Memorization
from xmem_utils.mitigation.data import ASKED_FIGURES, described
from xmem_utils.mitigation.names import CEILING, PUBLIC, STUDY, VIEW
from xmem_utils.params import other
from xmem_utils.perception import values_read
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import figure_views
from xmem_utils.personas.views import View
from xmem_utils.score import exact_match, ranked
from xmem_utils.vlm.batches import Example, encode
from xmem_utils.vlm.processors import picture_side


class MitigationEvaluation:
    """The test views of one replicate's people, learned from `source`.

    The base model perceives the target views when this is made: raises RuntimeError while an adapter is on it.
    """

    study: Memorization

    def __init__(self, study: Memorization, replicate: int, source: str) -> None:
        if any(isinstance(module, LoraLayer) for module in study.vlm(replicate).model.modules()):
            raise RuntimeError("an adapter is on the base model, which is to say what it perceives: unload it first")
        self.vlm, self.study, self.replicate, self.source = study.vlm(replicate), study, replicate, source
        self._names = study.evaluation_of(replicate).names
        self._asked = self._encoded()

    def records(self, model: nn.Module | None = None) -> pd.DataFrame:
        """One row a view and task: group, task, persona (its number in the group), query, view, exact, logprob; of the
        study's people also the rank of the name among so many names, whether it is written where nothing but those may
        be, and what kind of answer there is to a view (`kind_of`).

        Task "ceiling" asks with the target view as the base model perceives it, put into the source modality.
        """
        parts = []
        for group, task, query, views, examples in self._asked:
            frame = pd.DataFrame({"persona": v.persona, "view": v.index} for v in views)
            labels = {"group": group, "task": task, "query": query}
            if group == STUDY:
                found = ranked(self.vlm, examples, self._names, frame[["persona"]].to_numpy(), model)
                scores = {"exact": found.exact[:, 0], "logprob": found.logprob[:, 0], "rank": found.rank}
                scores |= {"among": None if found.among is None else found.among[:, 0].astype(float)}
                scores["names"] = len(self._names)
                if task == VIEW:
                    own = self.study.evaluation_of(self.replicate)
                    scores["answer"] = own.kinds(query, found.exact[:, 0], model)
            else:
                recall = exact_match(self.vlm, examples, model)
                scores = {"exact": recall.exact, "logprob": recall.logprob}
            parts.append(frame.assign(**labels, **scores).astype({"exact": float}))
        return pd.concat(parts, ignore_index=True)

    def _encoded(self) -> list[tuple[str, str, str, list[View], list[Example]]]:
        vlm, target, own = self.vlm, other(self.source), self.study.evaluation_of(self.replicate)
        made = [(STUDY, VIEW, m, own.views[m], own.examples[m]) for m in (self.source, target)]
        shown = own.views[target]
        made.append((STUDY, CEILING, target, shown, encode(vlm, self.perceived(shown))))
        if (figures := own.figures) is not None:
            chosen = figures.where("both")[-ASKED_FIGURES:]
            views = figure_views(figures, chosen, [self.replicate, 71], None, picture_side(vlm.processor))
            for m in (self.source, target):
                shown = [v for v in views if v.modality == m]
                made.append((PUBLIC, VIEW, m, shown, encode(vlm, shown)))
        return made

    def perceived(self, views: Sequence[View]) -> list[View]:
        """Target views as the base model perceives them, in the source modality.

        A picture becomes the description that the base model writes of it. No model here draws, so a description
        becomes a portrait that our generator draws of the attributes that the base model reads off it.
        """
        if self.source == "text":
            texts, _ = described(self.vlm, views)
            return [replace(v, modality="text", content=text) for v, text in zip(views, texts, strict=True)]
        rng, side = np.random.default_rng([self.replicate, 72]), picture_side(self.vlm.processor)
        vectors = values_read(self.vlm, views)
        return [replace(v, modality="image", content=draw(vector, rng, "test", side))
                for v, vector in zip(views, vectors, strict=True)]  # fmt: skip
