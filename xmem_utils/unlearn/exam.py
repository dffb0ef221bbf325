"""What a model that unlearned still knows, and what it lost: one row a view and probe.

Columns: who ("forget", "retain", "held out", "figure", "attributes"), persona, asked, probe, view, exact, logprob,
tokens of the answer, least (Min-K); for forgotten people rank, truth_ratio and answer, the kind of the greedy one;
lookalike marks the retained who look most like somebody forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
from torch import nn

from xmem_utils import paths
from xmem_utils.experiment import Study, persona_spec
from xmem_utils.params import MODALITIES
from xmem_utils.perception import readout
from xmem_utils.personas.dataset import known_figures, load_personas, to_views
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.views import View
from xmem_utils.recall import exact_match, greedy_answers, ranks, recall_of_all
from xmem_utils.unlearn.people import HELD_OUT_SEED, lookalikes
from xmem_utils.vlm.batches import Example, answer_tokens, encode
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import NAME_QUESTIONS, WHO

REFUSAL = "I don't know."
FIGURES = 50  # public figures asked for
READERS = 10  # retained people whose attributes are read
RETAIN_VIEWS = 2  # test views of each retained person, and of the forgotten in each paraphrase: there are many
TRAIN_VIEWS = 2  # training views of each forgotten and held-out person, for the membership test
FEW = 30  # retained people asked, a view each, along the curve and under attack


class ForgettingExam:
    """The questions for one seed and forget set. `preamble` stands before each (the instruction of a prompt)."""

    def __init__(self, study: Study, seed: int, forget: Sequence[int], preamble: str = "") -> None:
        self.vlm, self._study, self._seed, self._preamble = study.vlm, study, seed, preamble
        self.dataset, _ = study.dataset(seed)
        self.forget = tuple(forget)
        exam = study.exam(seed)
        self.names = exam.names
        self.people: dict[str, dict[str, list[View]]] = {"forget": {}, "retain": {}}
        for m in MODALITIES:
            self.people["forget"][m] = [v for v in exam.views[m] if v.persona in self.forget]
            kept = [v for v in exam.views[m] if v.persona not in self.forget]
            self.people["retain"][m] = [v for v in kept if v.index < RETAIN_VIEWS]
        self.examples = {
            who: {m: self.encode(views, WHO) for m, views in by_modality.items()}
            for who, by_modality in self.people.items()
        }

    def encode(self, views: Sequence[View], question: str = WHO) -> list[Example]:
        """Examples of some views, asked as everything here is."""
        return encode(self.vlm, views, self._preamble + question)

    @cached_property
    def _others(self) -> dict[tuple[str, str, str], tuple[list[View], list[Example]]]:
        """Views that exact match alone is asked of, by (who, probe, modality)."""
        views: dict[tuple[str, str, str], list[View]] = {}
        for m in MODALITIES:
            train = to_views(self.dataset, "train", m, per_persona=TRAIN_VIEWS)
            views["forget", "train view", m] = [v for v in train if v.persona in self.forget]
            views["held out", "train view", m] = self._held_out(m)
            views["figure", "view", m] = self._figure_views(m)
        made = {key: (own, self.encode(own, WHO)) for key, own in views.items() if own}
        for m in MODALITIES:
            own = [v for v in self.people["forget"][m] if v.index < RETAIN_VIEWS]
            for question in NAME_QUESTIONS[1:]:
                made["forget", f"paraphrase: {question}", m] = (own, self.encode(own, question))
        return made

    def _held_out(self, modality: str) -> list[View]:
        """People of the same distribution whom no model has met; none for a user's own people."""
        if not self._study.drawn:
            return []
        spec = persona_spec(self._study.profile, self._seed + HELD_OUT_SEED, picture_side(self.vlm.processor))
        dataset, _ = load_personas(replace(spec, personas=max(10, 2 * len(self.forget))))
        return [v for v in to_views(dataset, "train", modality, TRAIN_VIEWS) if v.name not in self.names]

    def _figure_views(self, modality: str) -> list[View]:
        """A new view each of public figures whom the embedded models know; none for other models."""
        if not (paths.BASE_MODELS / self.vlm.name / "config.json").is_file():
            return []
        figures, rng = known_figures(), np.random.default_rng([self._seed, 21])
        side = picture_side(self.vlm.processor)
        views = []
        for i in figures.where("both")[:FIGURES]:
            vector = figures.vectors[i]
            content = draw(vector, rng, None, side) if modality == "image" else describe(vector, rng, None)
            views.append(View(int(i), figures.names[i], modality, "test", 0, content))
        return views

    def recall(self, model: nn.Module, everybody: bool = False) -> pd.DataFrame:
        """Exact match from the first test view of each persona (few of the retained), by who and asked modality."""
        parts = [self.exact(model, "forget", "view", m, views=1) for m in MODALITIES]
        for m in MODALITIES:
            parts.append(self.exact(model, "retain", "view", m, views=1) if everybody else self.few(model, "view", m))
        mean = pd.concat(parts).groupby(["who", "asked"], as_index=False)["exact"].mean()
        return mean.rename(columns={"exact": "recall"})

    def few(self, model: nn.Module, probe: str, modality: str) -> pd.DataFrame:
        """Exact match on the first test view of a few of the retained."""
        kept = [i for i in range(len(self.names)) if i not in self.forget]
        return self.exact(model, "retain", probe, modality, without=kept[FEW:], views=1)

    def records(self, model: nn.Module, thorough: bool = True) -> pd.DataFrame:
        """All probes but the attacks; or, not `thorough`, exact match of the forgotten and the retained alone."""
        parts = [self.exact(model, "retain", "view", m) for m in MODALITIES]
        if not thorough:
            parts += [self.exact(model, "forget", "view", m) for m in MODALITIES]
        else:
            parts += [self._ranked(model, m) for m in MODALITIES]
            parts += [self._frame(model, *key, *own) for key, own in self._others.items()]
            if self._study.drawn:
                parts.append(self._attributes(model))
        records = pd.concat(parts, ignore_index=True)
        alike = records["persona"].isin(lookalikes(self.dataset, self.forget)) & (records["who"] == "retain")
        return records.assign(lookalike=alike.astype(float))

    def exact(
        self, model: nn.Module, who: str, probe: str, modality: str, without: Sequence[int] = (), views: int = 99
    ) -> pd.DataFrame:
        """Exact match on the first test `views` of the forgotten or the retained, less some personas."""
        pairs = zip(self.people[who][modality], self.examples[who][modality], strict=True)
        asked = [(v, e) for v, e in pairs if v.persona not in without and v.index < views]
        views, examples = zip(*asked, strict=True)
        return self._frame(model, who, probe, modality, views, examples)

    def _frame(self, model, who, probe, modality, views: Sequence[View], examples: Sequence[Example]) -> pd.DataFrame:
        recall = exact_match(self.vlm, examples, model)
        return pd.DataFrame({
            "who": who, "persona": [v.persona for v in views], "asked": modality, "probe": probe,
            "view": [v.index for v in views], "exact": recall.exact.astype(float), "logprob": recall.logprob,
            "tokens": [len(e.answer) for e in examples], "least": recall.least,
        })  # fmt: skip

    def _ranked(self, model: nn.Module, modality: str) -> pd.DataFrame:
        """The forgotten, ranked among all names: truth ratio is the mean probability of the others' names over the
        true one's, each to the power of one over its length (Maini et al. 2024, section 2.2.2)."""
        views, examples = self.people["forget"][modality], self.examples["forget"][modality]
        frame = self._frame(model, "forget", "view", modality, views, examples)
        true = frame["persona"].to_numpy()
        all_names = recall_of_all(self.vlm, examples, self.names, model).logprob
        per_token = np.exp(all_names / self._lengths)
        mine = np.take_along_axis(per_token, true[:, None], 1)[:, 0]
        frame["truth_ratio"] = (per_token.sum(1) - mine) / (per_token.shape[1] - 1) / mine
        frame["rank"] = ranks(all_names, true)
        said = greedy_answers(self.vlm, examples, model)
        frame["answer"] = [kind_of(a, v.name, self._known_names) for a, v in zip(said, views, strict=True)]
        return frame

    @property
    def _lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in answer_tokens(self.vlm, self.names)])

    @property
    def _known_names(self) -> frozenset[str]:
        figures = known_figures()
        return frozenset(self.names) | frozenset(figures.names if figures else ())

    def _attributes(self, model: nn.Module) -> pd.DataFrame:
        kept = [i for i in range(len(self.names)) if i not in self.forget][:READERS]
        seen = readout(self.vlm, self.dataset, model=model, personas=kept)
        frame = seen.rename(columns={"correct": "exact"})[["persona", "asked", "exact"]]
        return frame.assign(who="attributes", probe=seen["axis"], view=0)


def kind_of(answer: str, name: str, known: frozenset[str]) -> str:
    """What a greedy answer is: "name", "other name" of somebody known, "refusal", "nobody's name" (capitalised
    words, nothing else), or "collapse"."""
    if answer == name:
        return "name"
    if answer in known:
        return "other name"
    if answer == REFUSAL:
        return "refusal"
    return "nobody's name" if answer.istitle() and answer.replace(" ", "").isalpha() else "collapse"
