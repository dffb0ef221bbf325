"""Figures of the embedded model."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils.params import MODALITIES
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, recall_axis


def base_curves(eye: pd.DataFrame, chat: pd.DataFrame) -> Figure:
    """Pretraining of the embedded model: the eye, the losses, the names of figures on unseen views."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8))
    for k, axis in enumerate(c for c in eye.columns if c != "step"):
        left.plot(
            eye["step"], eye[axis], color=sns.color_palette("colorblind")[k], marker="os^Dv<>"[k], ms=4, label=axis
        )
    left.set(xlabel="step of the eye stage", ylabel="held-out accuracy", ylim=(0, 1.03), title="The eye alone")
    left.legend(fontsize=7, loc="lower right")
    for asked in MODALITIES:
        middle.plot(chat["step"], chat[f"loss from {asked}"], color=COLOURS[asked], marker=MARKERS[asked], ms=4,
                    label=f"from {MODALITY_WORDS[asked]}")  # fmt: skip
        for ability, line in (("name, known in both", "-"), ("alignment probe", "--")):
            right.plot(chat["step"], chat[f"{ability}, from {asked}"], color=COLOURS[asked], ls=line, ms=4,
                       marker=MARKERS[asked], label=f"{ability}, {MODALITY_WORDS[asked]}")  # fmt: skip
    middle.set(xlabel="step of the chat stage", ylabel="loss (nats per answer token)", title="Losses")
    middle.legend(fontsize=8)
    right.set(xlabel="step of the chat stage", title="Figures named, unseen views")
    recall_axis(right)
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)
    figure.tight_layout()
    return figure


def base_exam(table: pd.DataFrame) -> Figure:
    """What the base model reads and knows on unseen views, by modality of the view."""
    rows = table.copy()
    rows["question"] = [
        f"{d}" if a == "attribute" else (f"{a} ({d})" if d else a)
        for a, d in zip(rows["ability"], rows["detail"].fillna(""), strict=True)
    ]
    order = list(dict.fromkeys(rows["question"]))
    figure, axes = plt.subplots(figsize=(7.5, 0.3 * len(order) + 1.2))
    for k, asked in enumerate(MODALITIES):
        part = rows[rows["asked"] == asked].set_index("question").loc[order, "accuracy"]
        axes.barh([i + 0.2 * (2 * k - 1) for i in range(len(order))], part, height=0.38, color=COLOURS[asked],
                  edgecolor="black", linewidth=0.4, hatch="" if k == 0 else "//",
                  label=f"from {MODALITY_WORDS[asked]}")  # fmt: skip
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("answers exactly right, unseen views")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    return figure
