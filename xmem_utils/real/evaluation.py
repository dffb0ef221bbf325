"""What a model of real parts can do, on views and people that no lesson has, in the table of the embedded bases."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmem_utils.mitigation.data import described
from xmem_utils.perception import values_read
from xmem_utils.personas.attributes import AXIS_NAMES, values_of
from xmem_utils.personas.descriptions import describe
from xmem_utils.personas.portraits import draw
from xmem_utils.personas.public_figures import GROUPS, PublicFigures, figure_views
from xmem_utils.personas.views import View
from xmem_utils.pretraining.evaluation import NAMES
from xmem_utils.real.eye import strangers
from xmem_utils.score import exact_match
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM
from xmem_utils.vlm.processors import picture_side
from xmem_utils.vlm.prompts import AXIS_QUESTIONS

PEOPLE, SEED = 150, 44  # strangers whose attributes are asked


def evaluated(vlm: VLM, known: PublicFigures | None) -> pd.DataFrame:
    """A row an ability, query and detail, with n and accuracy; answers count as in `pretraining.evaluation`: said.

    "caption": attributes that the model reads off what it wrote of a picture, by multiple choice.
    """
    vectors, rng, side = strangers(PEOPLE, SEED), np.random.default_rng([SEED, 5]), picture_side(vlm.processor)
    made = {"image": lambda v: draw(v, rng, "test", side), "text": lambda v: describe(v, rng, "test")}
    views = {m: [View(i, "", m, "test", 0, make(v)) for i, v in enumerate(vectors)] for m, make in made.items()}
    rows = []
    for modality, own in views.items():
        for axis, question in AXIS_QUESTIONS.items():
            answers = [values_of(vector)[axis].name for vector in vectors]
            said = exact_match(vlm, encode(vlm, own, question, answers)).exact
            rows.append(("attribute", modality, axis, len(said), said.mean()))
    texts, _ = described(vlm, views["image"])
    read = values_read(vlm, [View(i, "", "text", "test", 0, text) for i, text in enumerate(texts)]) == vectors
    rows += [("caption", "image", axis, len(read), right) for axis, right in zip(AXIS_NAMES, read.mean(0), strict=True)]
    for group in GROUPS if known else ():
        shown = figure_views(known, known.where(group), [SEED, 9], "test", side)
        for modality in ("image", "text"):
            if group != f"{modality} only":
                own = [view for view in shown if view.modality == modality]
                said = exact_match(vlm, encode(vlm, own)).exact
                rows.append((NAMES[group != "both"], modality, "", len(said), said.mean()))
    return pd.DataFrame(rows, columns=["ability", "query", "detail", "n", "accuracy"])
