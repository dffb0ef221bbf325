"""Is the person found, and only the name not begun? What the first token of the name decides, all else being equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xmem_utils.mechanism import measures as m
from xmem_utils.mechanism.lens import first_tokens
from xmem_utils.mechanism.people import People
from xmem_utils.params import MODALITIES, other
from xmem_utils.score import evaluating, in_batches
from xmem_utils.vlm.batches import Example
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import VLM


def first_token(vlm: VLM, people: People, source: str) -> dict[tuple[str, str, str, int], np.ndarray]:
    """How test views are answered if only the choice of the name's first token were another: by measure, given "",
    query and layer 0, one value of each person `[people]`.

    As it is; the first token alone; the rest of the name once that is given; the first token chosen among those of the
    names; and calibrated: the names' first tokens raised by what they lack in the target modality against the source,
    mean over views that the model was not trained on: of the source test views, of the target the others (whom they
    show plays no part). How high a token is, is its logit less the mean of all that begin no name.
    """
    begins, _ = first_tokens(people.answers)
    means = {}
    for split, query in (("test", source), ("train", other(source))):
        logits, _ = _read(vlm, people.examples[split, query])
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[begins] = False
        means[query] = (logits[:, begins] - logits[:, others].mean(1, keepdim=True)).mean(0)
    lacking = means[source] - means[other(source)]
    out = {}
    for query in MODALITIES:
        key = "test", query
        first, rest = _read(vlm, people.examples[key])
        raised = first.clone()
        raised[:, begins] += lacking if query != source else 0
        among = torch.full_like(first, -torch.inf)
        among[:, begins] = first[:, begins]
        true = torch.stack([people.answers[person][0] for person in people.who[key]])
        begun = {m.FIRST: first, m.FIRST_AMONG: among, m.FIRST_CALIBRATED: raised}
        right = {name: logits.argmax(-1) == true for name, logits in begun.items()}
        shares = {m.AS_IT_IS: right[m.FIRST] & rest, m.FIRST: right[m.FIRST], m.REST: rest}
        shares |= {name: right[name] & rest for name in (m.FIRST_AMONG, m.FIRST_CALIBRATED)}
        out |= {(name, "", query, 0): people.mean(value.numpy(), *key) for name, value in shares.items()}
    return out


def _read(vlm: VLM, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the answers' first tokens `[examples, vocabulary]`, and whether all later tokens are said once those
    before are given `[examples]`."""
    logits, rest = [torch.empty(0)] * len(examples), torch.zeros(len(examples), dtype=torch.bool)
    with evaluating(vlm.model):
        for rows, batch in in_batches(vlm, examples):
            said = forward(vlm.model, batch, max(len(examples[i].answer) for i in rows))
            for i, own, labels in zip(rows, said.logits, said.labels, strict=True):
                own, labels = own[labels != -100], labels[labels != -100]
                logits[i] = own[0].float().cpu()
                rest[i] = bool((own[1:].argmax(-1) == labels[1:]).all())
    return torch.stack(logits), rest
