"""Where in a fixed model the name is, or is lost: four questions asked of every layer, one row a person, and a fifth
of the last.

Columns: source, measure, given, query, layer (from 1; 0: nothing patched), persona, value, chance (NaN where there is
none). `query` is the modality of the views that the model sees; `given` that of what their states are compared with,
learned from or replaced by ("" where nothing is). Values are means over a person's views, so that `tables.estimates`
can resample people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from xmem_utils.mechanism import measures as m
from xmem_utils.mechanism import probe
from xmem_utils.mechanism.first_token import first_token
from xmem_utils.mechanism.lens import blind_reciprocal_rank, lens_ranks
from xmem_utils.mechanism.patching import patched_recall
from xmem_utils.mechanism.people import People, public_figure_people, study_people
from xmem_utils.mechanism.states import answer_states, name_states
from xmem_utils.mitigation.names import BASELINE
from xmem_utils.params import MODALITIES, other
from xmem_utils.score import ranks
from xmem_utils.vlm.adapters import load_adapter, merged
from xmem_utils.vlm.batches import with_answer
from xmem_utils.vlm.load import VLM

if TYPE_CHECKING:
    from xmem_utils.mitigation.experiment import Mitigation
    from xmem_utils.store import Run

States = dict[tuple[str, str], torch.Tensor]  # by split and modality: [views, layers, hidden]
Values = dict[tuple[str, str, str, int], np.ndarray]  # by measure, given, query, layer: one of each person [people]


def explain_study(study: Mitigation, runs: Iterable[Run], best: Mapping[str, str], people: int) -> pd.DataFrame:
    """The rows of `explain_models` for the side replicates of a study, with a column `replicate`.

    Of `runs` the baseline and the `best` method of each source; public figures are as many as there are `people`.
    """
    parts, runs = [], list(runs)
    for replicate in study.side_replicates:
        vlm, adapters = study.vlm(replicate), {}
        for run in runs:
            start, method = run.condition.start, run.condition.method
            if start.replicate == replicate and method in (BASELINE, best[start.source]):
                adapters[method, start.source] = run.adapter
        figures = study.memorization.evaluation_of(replicate).figures
        known = None if figures is None else public_figure_people(vlm, figures, n=people)
        shown = study_people(vlm, study.memorization.dataset(replicate)[0])
        parts.append(explain_models(vlm, adapters, shown, known).assign(replicate=replicate))
    return pd.concat(parts)


def explain_models(
    vlm: VLM, adapters: Mapping[tuple[str, str], Path], people: People, public_figures: People | None = None
) -> pd.DataFrame:
    """The rows of `explain` for models side by side, with a column `model`.

    `adapters` are folders of stored LoRA adapters by the model's name and source modality. Beside them stands the VLM
    itself: on the same `people` before anything was memorized, unpatched, and on `public_figures` where they are given.
    """
    parts = []
    for (name, source), folder in adapters.items():
        model = load_adapter(vlm.model, folder)
        try:
            with merged(model):  # a third less to compute
                parts.append(explain(replace(vlm, model=model), people, [source]).assign(model=name))
        finally:
            model.unload()
    parts.append(explain(vlm, people, patched=False).assign(model=m.BEFORE))
    if public_figures is not None:
        parts.append(explain(vlm, public_figures).assign(model=m.PUBLIC_FIGURES))
    return pd.concat(parts, ignore_index=True)


def explain(vlm: VLM, people: People, sources: Sequence[str] = MODALITIES, patched: bool = True) -> pd.DataFrame:
    """All questions of one model, which is left as it was; states are read once for all of them.

    `sources` ("image", "text") are the modalities that names come from; for people known in both modalities either is
    one. Unless `patched`, nothing is. Raises ValueError for classes whose layers cannot be looked into
    (`states.layers_of`).
    """
    states = {key: answer_states(vlm, examples) for key, examples in people.examples.items()}
    shared = lens(vlm, people, states) | retrieval(people, states) | probing(people, states)
    parts = []
    for source in sources:
        values = shared | first_token(vlm, people, source) | (patching(vlm, people, source) if patched else {})
        wide = pd.DataFrame(values, index=people.numbers).astype(float)
        long = wide.rename_axis(["measure", "given", "query", "layer"], axis=1).rename_axis("persona").unstack()
        parts.append(long.rename("value").reset_index().assign(source=source))
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(chance=rows["measure"].map(chance(people)))


def chance(people: People) -> dict[str, float]:
    """Chance levels by measure, for the measures that have one."""
    n = len(people)
    one_of_all = (m.RETRIEVED, m.PROBE, m.OWN, m.OWN_ALONE, m.OTHERS, m.OTHERS_ALONE, m.RECALLED)
    return {
        m.LENS: blind_reciprocal_rank(people.answers),
        m.RETRIEVED_RANK: sum(1 / rank for rank in range(1, n + 1)) / n,
        **dict.fromkeys(one_of_all, 1 / n),
    }


def lens(vlm: VLM, people: People, states: States) -> Values:
    """The true name under the logit lens, from test views of either modality."""
    carrier, out = people.examples["test", "text"][0], {}
    for query in MODALITIES:
        key = "test", query
        for layer, found in enumerate(lens_ranks(vlm, states[key], people.answers, people.who[key], carrier).T, 1):
            out[m.LENS_RANK, "", query, layer] = people.mean(found, *key)
            out[m.LENS, "", query, layer] = people.mean(1 / found, *key)
    return out


def retrieval(people: People, states: States) -> Values:
    """Is a person's mean test state nearest to their own in the other modality, and, to compare, in the same one?

    Across modalities candidates are means over test views; within one, where query and candidate must not be the same
    views, over training views.
    """
    means = {key: person_means(part, people.who[key], len(people)) for key, part in states.items()}
    out = {}
    for query, given in product(MODALITIES, MODALITIES):
        queries, candidates = means["test", query], means["train" if given == query else "test", given]
        for layer in range(queries.shape[1]):
            found = retrieval_ranks(queries[:, layer], candidates[:, layer])
            out[m.RETRIEVED, given, query, layer + 1] = found == 1
            out[m.RETRIEVED_RANK, given, query, layer + 1] = 1 / found
    return out


def person_means(states: torch.Tensor, who: np.ndarray, people: int) -> torch.Tensor:
    """States `[views, ..., hidden]` averaged over each person's views: `[people, ..., hidden]`."""
    return torch.stack([states[torch.from_numpy(who == person)].mean(0) for person in range(people)])


def retrieval_ranks(queries: torch.Tensor, candidates: torch.Tensor) -> np.ndarray:
    """1-based rank of everybody's own candidate for their query `[people]`, by cosine; both are `[people, hidden]`.

    Each side is centred on its own mean first: what all pictures, or all descriptions, have in common would drown
    what tells people apart. Ties count against the person. Chance: 1 / people come first, and the mean reciprocal
    rank is (1 + 1/2 + ... + 1/people) / people.
    """
    a, b = (torch.nn.functional.normalize(x - x.mean(0), dim=-1) for x in (queries, candidates))
    return ranks((a @ b.T).numpy(), np.arange(len(a)))


def probing(people: People, states: States) -> Values:
    """Share of test views, of either modality, whose person a probe names that saw training views of one."""
    out = {}
    for given in MODALITIES:
        for layer in range(states["train", given].shape[1]):
            learned = probe.fit(states["train", given][:, layer], people.who["train", given], len(people))
            for query in MODALITIES:
                centre = states["train", query][:, layer].double().mean(0)
                right = learned.guesses(states["test", query][:, layer], centre) == people.who["test", query]
                out[m.PROBE, given, query, layer + 1] = people.mean(right, "test", query)
    return out


def patching(vlm: VLM, people: People, source: str) -> Values:
    """Everybody's first target test view run with states of their first source test view, and of another person's.

    The other is the next whose name begins with another token. Gains are in nats over the target run as it is. At
    layer 0 stand the runs without a patch, of the target and, as `RECALLED`, of both modalities.
    """
    target = other(source)
    sources, targets = people.first("test", source), people.first("test", target)
    begins = np.array([int(answer[0]) for answer in people.answers])
    following = np.array([next_other(person, begins) for person in range(len(people))])
    renamed = [with_answer(e, people.answers[i]) for e, i in zip(targets, following, strict=True)]
    states = name_states(vlm, sources)  # [people, layers, places, hidden]
    layers = range(1, states.shape[1] + 1)
    extents = [(layer, places) for places in (slice(None), slice(1)) for layer in layers]
    same = patched_recall(vlm, targets, [(layer, states[:, layer - 1, places]) for layer, places in extents])
    swapped = patched_recall(vlm, renamed, [(layer, states[following, layer - 1, places]) for layer, places in extents])
    out: Values = {
        (m.RECALLED, "", source, 0): patched_recall(vlm, sources)[0].exact,
        (m.RECALLED, "", target, 0): same[0].exact,
    }
    for layer in (0, *layers):
        own, others = same[layer], swapped[layer]
        alone = len(layers) + layer if layer else 0  # the place of the run patched at the answer position alone
        values = {
            m.OWN: own.exact, m.OWN_FIRST: own.first == begins, m.OWN_ALONE: same[alone].exact,
            m.OTHERS: others.exact, m.OTHERS_FIRST: others.first == begins[following],
            m.OTHERS_OWN: others.first == begins, m.OTHERS_ALONE: swapped[alone].exact,
        }  # fmt: skip
        if layer:
            values[m.OWN_GAIN] = own.logprob - same[0].logprob
            values[m.OTHERS_GAIN] = others.logprob - swapped[0].logprob
        out |= {(measure, source, target, layer): value for measure, value in values.items()}
    return out


def next_other(person: int, begins: np.ndarray) -> int:
    """The next person whose name begins with another token `[people]`; the next one where all begin alike."""
    n = len(begins)
    others = [(person + step) % n for step in range(1, n)]
    return next((i for i in others if begins[i] != begins[person]), others[0])
