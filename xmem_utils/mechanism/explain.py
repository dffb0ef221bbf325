"""Where in a fixed model the name is, or is lost: four questions asked of every layer, one row a person.

Columns: measure, given, asked, layer (from 1; 0: nothing patched), persona, value, chance (NaN where there is none).
`asked` is the modality of the views that the model sees; `given` that of what their states are compared with, learned
from or replaced by ("" where nothing is). Values are means over a person's views, so that `tables.estimates` can
resample people.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from peft import PeftModel, PeftType
from torch import nn

from xmem_utils.mechanism import probe
from xmem_utils.mechanism.lens import blind_reciprocal_rank, lens_ranks
from xmem_utils.mechanism.patching import patched_recall
from xmem_utils.mechanism.people import People
from xmem_utils.mechanism.retrieval import person_means, retrieval_ranks
from xmem_utils.mechanism.states import answer_states, layers_of, name_states
from xmem_utils.params import MODALITIES, other
from xmem_utils.personas.dataset import SPLITS
from xmem_utils.vlm.adapters import merged
from xmem_utils.vlm.batches import with_answer
from xmem_utils.vlm.load import VLM

LENS, LENS_RANK = "lens reciprocal rank", "lens rank"
RETRIEVED, RETRIEVED_RANK = "retrieved", "retrieval reciprocal rank"
PROBE = "probe"
# target run with the states of the person's own source run, at every position that predicts the name
OWN, OWN_FIRST, OWN_GAIN = "patched: name", "patched: first token", "patched: gain"
# control: with those of another person's source run
OTHERS, OTHERS_FIRST = "another's: that name", "another's: that first token"
OTHERS_GAIN = "another's: gain of that name"
OTHERS_OWN = "another's: own first token"  # bounds from above how often the own name is still said
# at the answer position alone
OWN_ALONE = "patched at the answer position alone: name"
OTHERS_ALONE = "another's at the answer position alone: that name"
RECALLED = "recalled"  # nothing patched
PATCHED_VIEWS = 1  # patching runs each four times a layer

States = dict[tuple[str, str], torch.Tensor]  # by split and modality: [views, layers, hidden]


def explain(
    vlm: VLM,
    model: nn.Module | None,
    people: People,
    source: str,
    layers: Sequence[int] | None = None,
    patched_views: int = PATCHED_VIEWS,
) -> pd.DataFrame:
    """All four questions of one model, with `source` ("image" or "text") the modality that names come from.

    `model` is a PEFT model around the VLM's own, or None for the VLM's; both are left as they were. For people known
    in both modalities either is a source. `layers` are those patched (default: all); on a deep model a few suffice.
    Without `patched_views` nothing is patched.
    Raises ValueError for an unknown modality and for classes whose layers cannot be looked into (`states.layers_of`).
    """
    if source not in MODALITIES:
        raise ValueError(f"unknown source {source!r}: expected one of {', '.join(MODALITIES)}")
    with _fast(model):
        states: States = {(s, m): answer_states(vlm, people.examples[s, m], model) for s in SPLITS for m in MODALITIES}
        parts = [
            lens_rows(vlm, model, people, states),
            retrieval_rows(people, states),
            probe_rows(people, states),
        ]
        if patched_views:
            parts.append(patching_rows(vlm, model, people, source, layers, patched_views))
    rows = pd.concat(parts, ignore_index=True)
    number = np.array(people.numbers)[rows["persona"]]
    return rows.assign(persona=number, chance=rows["measure"].map(chance(people)))


def chance(people: People) -> dict[str, float]:
    """Chance levels by measure, for the measures that have one."""
    n = len(people)
    return {
        LENS: blind_reciprocal_rank(people.answers),
        RETRIEVED_RANK: sum(1 / rank for rank in range(1, n + 1)) / n,
        **dict.fromkeys((RETRIEVED, PROBE, OWN, OWN_ALONE, OTHERS, OTHERS_ALONE, RECALLED), 1 / n),
    }


def _fast(model: nn.Module | None) -> contextlib.AbstractContextManager:
    """LoRA merged into the weights meanwhile: a third less to compute, and to the bit as before afterwards."""
    lora = isinstance(model, PeftModel) and {c.peft_type for c in model.peft_config.values()} == {PeftType.LORA}
    return merged(model) if lora and list(model.peft_config) == ["default"] else contextlib.nullcontext()


def _rows(measure: str, given: str, asked: str, layer: int, values: np.ndarray) -> pd.DataFrame:
    """Rows of one measure at one layer, from a value for each person."""
    return pd.DataFrame({
        "measure": measure, "given": given, "asked": asked, "layer": layer,
        "persona": np.arange(len(values)), "value": np.asarray(values, float),
    })  # fmt: skip


def _mean(values: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Values `[views]` averaged over each person's views `[people]`."""
    return np.bincount(who, np.asarray(values, float)) / np.bincount(who)


def lens_rows(vlm: VLM, model: nn.Module | None, people: People, states: States) -> pd.DataFrame:
    """The true name under the logit lens, from test views of either modality."""
    carrier, parts = people.examples["test", "text"][0], []
    for asked in MODALITIES:
        who = people.who["test", asked]
        found = lens_ranks(vlm, states["test", asked], people.answers, who, carrier, model)
        for layer, column in enumerate(found.T, 1):
            parts.append(_rows(LENS_RANK, "", asked, layer, _mean(column, who)))
            parts.append(_rows(LENS, "", asked, layer, _mean(1 / column, who)))
    return pd.concat(parts)


def retrieval_rows(people: People, states: States) -> pd.DataFrame:
    """Is a person's mean test state nearest to their own in the other modality, and, to compare, in the same one?

    Across modalities candidates are means over test views; within one, where query and candidate must not be the same
    views, over training views.
    """
    means = {(s, m): person_means(states[s, m], people.who[s, m], len(people)) for s in SPLITS for m in MODALITIES}
    parts = []
    for asked in MODALITIES:
        for given in MODALITIES:
            queries, candidates = means["test", asked], means["train" if given == asked else "test", given]
            for layer in range(1, queries.shape[1] + 1):
                found = retrieval_ranks(queries[:, layer - 1], candidates[:, layer - 1])
                parts.append(_rows(RETRIEVED, given, asked, layer, found == 1))
                parts.append(_rows(RETRIEVED_RANK, given, asked, layer, 1 / found))
    return pd.concat(parts)


def probe_rows(people: People, states: States) -> pd.DataFrame:
    """Share of test views, of either modality, whose person a probe names that saw training views of one."""
    parts = []
    for given in MODALITIES:
        train = states["train", given]
        for layer in range(1, train.shape[1] + 1):
            learned = probe.fit(train[:, layer - 1], people.who["train", given], len(people))
            for asked in MODALITIES:
                centre = states["train", asked][:, layer - 1].double().mean(0)
                who = people.who["test", asked]
                right = learned.guesses(states["test", asked][:, layer - 1], centre) == who
                parts.append(_rows(PROBE, given, asked, layer, _mean(right, who)))
    return pd.concat(parts)


def patching_rows(
    vlm: VLM,
    model: nn.Module | None,
    people: People,
    source: str,
    layers: Sequence[int] | None = None,
    views: int = PATCHED_VIEWS,
) -> pd.DataFrame:
    """Target test views run with states of source test views, of the same and of another person.

    The other is the next whose name begins with another token. Gains are in nats over the target run as it is. At
    layer 0 stand the runs without a patch, of the target and, as `RECALLED`, of both modalities.
    """
    target, n = other(source), len(people)
    depth = len(layers_of(vlm.model if model is None else model))
    begins = np.array([int(answer[0]) for answer in people.answers])
    following = np.array([next_other(person, begins) for person in range(n)])
    who = np.tile(np.arange(n), views)
    shown, donors = (np.concatenate([people.rows("test", m, k) for k in range(views)]) for m in (target, source))
    targets = [people.examples["test", target][i] for i in shown]
    renamed = [with_answer(e, people.answers[following[i]]) for e, i in zip(targets, who, strict=True)]
    sources = [people.examples["test", source][i] for i in donors]
    own = name_states(vlm, sources, model)  # [examples, layers, places, hidden]
    others = own.reshape(views, n, *own.shape[1:])[:, following].flatten(0, 1)
    mine, theirs = begins[who], begins[following[who]]
    plain, plain_other = patched_recall(vlm, targets, model=model), patched_recall(vlm, renamed, model=model)

    def rows(measure: str, layer: int, values: np.ndarray) -> pd.DataFrame:
        return _rows(measure, source, target, layer, _mean(values, who))

    parts = [
        _rows(RECALLED, "", source, 0, _mean(patched_recall(vlm, sources, model=model).exact, who)),
        _rows(RECALLED, "", target, 0, _mean(plain.exact, who)),
        *(rows(measure, 0, plain.exact) for measure in (OWN, OWN_ALONE)),
        *(rows(measure, 0, plain_other.exact) for measure in (OTHERS, OTHERS_ALONE)),
        *(rows(measure, 0, plain.first == mine) for measure in (OWN_FIRST, OTHERS_OWN)),
        rows(OTHERS_FIRST, 0, plain.first == theirs),
    ]
    for layer in layers or range(1, depth + 1):
        same = patched_recall(vlm, targets, layer, own[:, layer - 1], model)
        swapped = patched_recall(vlm, renamed, layer, others[:, layer - 1], model)
        alone = patched_recall(vlm, targets, layer, own[:, layer - 1, :1], model)
        swapped_alone = patched_recall(vlm, renamed, layer, others[:, layer - 1, :1], model)
        values = {
            OWN: same.exact, OWN_FIRST: same.first == mine, OWN_GAIN: same.logprob - plain.logprob,
            OTHERS: swapped.exact, OTHERS_FIRST: swapped.first == theirs, OTHERS_OWN: swapped.first == mine,
            OTHERS_GAIN: swapped.logprob - plain_other.logprob,
            OWN_ALONE: alone.exact, OTHERS_ALONE: swapped_alone.exact,
        }  # fmt: skip
        parts += [rows(measure, layer, value) for measure, value in values.items()]
    return pd.concat(parts)


def next_other(person: int, begins: np.ndarray) -> int:
    """The next person whose name begins with another token `[people]`; the next one where all begin alike."""
    n = len(begins)
    others = [(person + step) % n for step in range(1, n)]
    return next((i for i in others if begins[i] != begins[person]), others[0])
