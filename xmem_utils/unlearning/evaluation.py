"""What a model that unlearned still knows, and what it lost: one row a view and task.

Columns: group ("forget", "retain", "held out", "public figures", "attributes"), persona, query, task, view, exact,
logprob, tokens of the answer, least (Min-K); for forgotten people rank, truth_ratio and answer, the kind of the greedy
one; lookalike marks the retained who look most like somebody forgotten.

The headline asks all test views of the forgotten. Everything else is asked of as many views as its intervals need, a
person being the unit: the constants below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
from torch import nn

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import MODALITIES
from xmem_utils.perception import Reading, axis_examples, read
from xmem_utils.personas.dataset import load_personas, persona_spec, to_views
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import known_public_figures
from xmem_utils.personas.views import View
from xmem_utils.score import exact_match, greedy_answers, ranks, recall_of_all
from xmem_utils.unlearning.people import HELD_OUT_SEED, lookalikes
from xmem_utils.vlm.batches import Example, answer_tokens, encode
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import NAME_QUESTIONS, WHO

REFUSAL = "I don't know."
FIGURES = 50  # public figures asked for, a view each
READERS = 10  # retained people whose attributes are read, from a view each
RETAIN_VIEWS = 1  # test views of each retained person: they are many
RANKED_VIEWS = 2  # test views of each forgotten person whose rank, truth ratio and answer are taken, and under attack
PARAPHRASE_VIEWS = 1  # test views of each forgotten person in each paraphrase: there are four
TRAIN_VIEWS = 2  # training views of each forgotten and held-out person: for the membership test, and whether it forgot
FEW = 30  # retained people asked, a view each, along the curve

Part = tuple[Sequence[View], Sequence[Example]]
Key = tuple[str, str, str]  # who, probe, modality


class ForgettingEvaluation:
    """The questions for one seed and forget set. `preamble` stands before each (the instruction of a prompt)."""

    _study: Memorization

    def __init__(self, study: Memorization, seed: int, forget: Sequence[int], preamble: str = "") -> None:
        self.vlm, self._study, self._seed, self._preamble = study.vlm, study, seed, preamble
        self.dataset, _ = study.dataset(seed)
        self.forget = tuple(forget)
        self._lessons: dict[tuple[tuple[int, ...], str], list[Example]] = {}
        exam = self._study.evaluation_of(seed)
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
    def _others(self) -> dict[Key, Part]:
        """Views that exact match alone is asked of."""
        views: dict[Key, list[View]] = {}
        for m in MODALITIES:
            train = to_views(self.dataset, "train", m, per_persona=TRAIN_VIEWS)
            views["forget", "train view", m] = [v for v in train if v.persona in self.forget]
            views["held out", "train view", m] = self._held_out(m)
            views["public figures", "view", m] = self._figure_views(m)
        made = {key: (own, self.encode(own, WHO)) for key, own in views.items() if own}
        for m in MODALITIES:
            own = [v for v in self.people["forget"][m] if v.index < PARAPHRASE_VIEWS]
            for question in NAME_QUESTIONS[1:]:
                made["forget", f"paraphrase: {question}", m] = (own, self.encode(own, question))
        return made

    @cached_property
    def _readers(self) -> Reading:
        kept = [i for i in range(len(self.names)) if i not in self.forget][:READERS]
        return axis_examples(self.vlm, self.dataset, personas=kept)

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
        figures, rng = known_public_figures(), np.random.default_rng([self._seed, 21])
        side = picture_side(self.vlm.processor)
        views = []
        for i in figures.where("both")[:FIGURES]:
            vector = figures.vectors[i]
            content = draw(vector, rng, None, side) if modality == "image" else describe(vector, rng, None)
            views.append(View(int(i), figures.names[i], modality, "test", 0, content))
        return views

    def lessons(self, people: Sequence[int], modality: str) -> list[Example]:
        """Training views of some people."""
        key = tuple(people), modality
        if key not in self._lessons:
            views = [v for v in to_views(self.dataset, "train", modality) if v.persona in people]
            self._lessons[key] = self.encode(views)
        return self._lessons[key]

    def recall(self, model: nn.Module, everybody: bool = False) -> pd.DataFrame:
        """Exact match from the first test view of each persona (few of the retained), by who and query modality."""
        kept = [i for i in range(len(self.names)) if i not in self.forget]
        without = () if everybody else kept[FEW:]
        parts = {}
        for m in MODALITIES:
            parts["forget", "view", m] = self._part("forget", m, views=1)
            parts["retain", "view", m] = self._part("retain", m, without, views=1)
        return first_views(self._exact(model, parts))

    def records(self, model: nn.Module, thorough: bool = True) -> pd.DataFrame:
        """All probes but the attacks; or, not `thorough`, exact match of the forgotten and the retained alone."""
        parts = {(who, "view", m): self._part(who, m) for who in ("retain", "forget") for m in MODALITIES}
        records = self._exact(model, parts | self._others if thorough else parts)
        if thorough:
            ranked = pd.concat([self._ranked(model, m) for m in MODALITIES])
            records = records.merge(ranked, "left", ["group", "task", "query", "persona", "view"])
            if self._study.drawn:
                records = pd.concat([records, self._attributes(model)], ignore_index=True)
        alike = records["persona"].isin(self._lookalikes) & (records["group"] == "retain")
        return records.assign(lookalike=alike.astype(float))

    def attacked(self, model: nn.Module, probe: str, without: Sequence[int] = ()) -> pd.DataFrame:
        """Exact match of the forgotten, less some, in both modalities."""
        return self._exact(
            model, {("forget", probe, m): self._part("forget", m, without, RANKED_VIEWS) for m in MODALITIES}
        )

    def _part(self, who: str, modality: str, without: Sequence[int] = (), views: int = 99) -> Part:
        """The first test `views` of the forgotten or the retained, less some personas."""
        pairs = zip(self.people[who][modality], self.examples[who][modality], strict=True)
        chosen = [(v, e) for v, e in pairs if v.persona not in without and v.index < views]
        return tuple(zip(*chosen, strict=True))

    def _exact(self, model: nn.Module, parts: dict[Key, Part]) -> pd.DataFrame:
        """Exact match of every part's views; those of a modality go through the model together, whatever the part."""
        frames = []
        for m in MODALITIES:
            own = {key: part for key, part in parts.items() if key[2] == m}
            examples = [e for _, part in own.values() for e in part]
            frame = pd.DataFrame([
                {"group": who, "persona": v.persona, "query": m, "task": probe, "view": v.index}
                for (who, probe, _), (views, _) in own.items() for v in views
            ])  # fmt: skip
            recall = exact_match(self.vlm, examples, model)
            scores = {"exact": recall.exact.astype(float), "logprob": recall.logprob, "least": recall.least}
            frames.append(frame.assign(**scores, tokens=[len(e.answer) for e in examples]))
        return pd.concat(frames, ignore_index=True)

    def _ranked(self, model: nn.Module, modality: str) -> pd.DataFrame:
        """The forgotten, ranked among all names: truth ratio is the mean probability of the others' names over the
        true one's, each to the power of one over its length (Maini et al. 2024, section 2.2.2)."""
        views, examples = self._part("forget", modality, views=RANKED_VIEWS)
        true = np.array([v.persona for v in views])
        everyone = recall_of_all(self.vlm, examples, self.names, model)
        per_token = np.exp(everyone.logprob / self._lengths)
        mine = np.take_along_axis(per_token, true[:, None], 1)[:, 0]
        answers = ["name"] * len(views)  # an exact match needs no decoding
        other = np.flatnonzero(~everyone.exact[np.arange(len(true)), true])
        said = greedy_answers(self.vlm, [examples[i] for i in other], model)
        for i, answer in zip(other, said, strict=True):
            answers[i] = kind_of(answer, views[i].name, self._known_names)
        return pd.DataFrame({
            "group": "forget", "task": "view", "query": modality, "persona": true, "view": [v.index for v in views],
            "truth_ratio": (per_token.sum(1) - mine) / (per_token.shape[1] - 1) / mine,
            "rank": ranks(everyone.logprob, true), "answer": answers,
        })  # fmt: skip

    @cached_property
    def _lookalikes(self) -> tuple[int, ...]:
        return lookalikes(self.dataset, self.forget)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in answer_tokens(self.vlm, self.names)])

    @cached_property
    def _known_names(self) -> frozenset[str]:
        figures = known_public_figures()
        return frozenset(self.names) | frozenset(figures.names if figures else ())

    def _attributes(self, model: nn.Module) -> pd.DataFrame:
        seen = read(self.vlm, self._readers, model)
        frame = seen.rename(columns={"correct": "exact"})[["persona", "query", "exact"]]
        return frame.assign(group="attributes", task=seen["axis"], view=0)


def first_views(records: pd.DataFrame) -> pd.DataFrame:
    """Mean exact match of the forgotten and the retained on first test views: who, asked, recall."""
    shown = records[records["group"].isin(["forget", "retain"]) & (records["task"] == "view") & (records["view"] == 0)]
    mean = shown.groupby(["group", "query"], as_index=False)["exact"].mean()
    return mean.rename(columns={"exact": "recall"})


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
