"""Figures of notebooks 00 and 01: the embedded models, the people."""

import matplotlib.pyplot as plt
import pandas as pd

from xmem_utils.params import MODALITIES
from xmem_utils.plots.parts import (
    BAR,
    COLOURS,
    GREEN,
    RECALLED,
    WORDS,
    facets,
    look,
    percent,
    row_axis,
    with_legend,
)


def contact_sheet(rows: pd.DataFrame) -> plt.Figure:
    """Portraits of some personas, a row each, with name and attributes beside them."""
    columns = max(map(len, rows["portraits"]))
    size = (0.95 * (columns + 4), 0.95 * len(rows))
    space = {"wspace": 0.04, "hspace": 0.08, "width_ratios": [*[1] * columns, 4]}
    figure, grid = plt.subplots(len(rows), columns + 1, figsize=size, squeeze=False, gridspec_kw=space)
    for axes in grid.flat:
        axes.set_axis_off()
    for cells, (_, row) in zip(grid, rows.iterrows(), strict=True):
        for axes, image in zip(cells, row["portraits"], strict=False):
            axes.imshow(image)
        caption = (
            f"{row['name']}\n{row['hair colour']} {row['hair style']}, {row['skin']} skin\n"
            f"{row['garment colour']} {row['garment']}\neyewear: {row['eyewear']}, facial hair: {row['facial hair']}"
        )
        # a name may hold $, which is no formula
        cells[-1].text(0.03, 0.5, caption, va="center", fontsize=7.5, transform=cells[-1].transAxes, parse_math=False)
    return figure


def attribute_counts(table: pd.DataFrame) -> plt.Figure:
    """How many personas have each value of each axis; the line is a uniform draw."""
    figure, grid = plt.subplots(2, 4, figsize=(11, 5.4))
    grid[-1, -1].set_axis_off()  # of eight panels, for seven axes
    for axes, (axis, rows) in zip(grid.flat, table.groupby("axis", sort=False), strict=False):
        axes.barh(rows["value"], rows["personas"], color=GREEN, **BAR)
        axes.axvline(rows["expected"].iloc[0], label="expected of a uniform draw", color="0.2", ls=":", lw=1.4)
        axes.invert_yaxis()
        axes.set(title=axis, xlabel="personas")
        axes.grid(axis="y", visible=False)
    return with_legend(figure)


PRETRAINING = ("The eye alone", "Losses", "Figures named, unseen views")


def base_curves(eye: pd.DataFrame, chat: pd.DataFrame) -> plt.Figure:
    """Pretraining of the embedded models, a line a base: the eye, the losses, names of figures on unseen views."""
    figure, (panels,) = facets((14, 4), PRETRAINING, recall="", sharex=False, sharey=False)
    for _, rows in eye.groupby("base"):
        seen = rows.drop(columns=["base", "step"]).mean(axis=1)
        panels[0].plot(rows["step"], seen, color=GREEN, marker="D", ms=4, label="attributes told apart")
    for _, rows in chat.groupby("base"):
        for asked in MODALITIES:
            panels[1].plot(rows["step"], rows[f"loss from {asked}"], **look(asked, asked, "from {asked}", ms=4))
            for ability, line in {"name, known in both": "-", "alignment probe": "--"}.items():
                label = f"{ability}, {{asked}}"
                panels[2].plot(rows["step"], rows[f"{ability}, from {asked}"], **look(asked, "", label, ls=line, ms=4))
    panels[0].set(xlabel="step of the eye stage", ylabel="held-out accuracy", ylim=(0, 1.03))
    panels[1].set(xlabel="step of the chat stage", ylabel="loss (nats per answer token)")
    panels[2].set(xlabel="step of the chat stage", ylabel=RECALLED)
    percent(panels[2], "y")
    return with_legend(figure, columns=5)


def base_evaluation(table: pd.DataFrame) -> plt.Figure:
    """What the base models read and know on unseen views, by modality of the view; dots are the bases."""
    ability, detail = table["ability"], table["detail"].fillna("")
    question = ability.where(detail == "", ability + " (" + detail + ")").where(ability != "attribute", detail)
    rows = table.assign(question=question)
    labels = list(dict.fromkeys(question))
    figure, ((axes,),) = facets((7.5, 0.3 * len(labels) + 1.2), [""], recall="x")
    y = row_axis(axes, labels)
    for asked, shift, hatch in zip(MODALITIES, (-0.2, 0.2), ("", "//"), strict=True):
        own = rows[rows["query"] == asked]
        mean = own.groupby("question")["accuracy"].mean().reindex(labels)
        bars = {"color": COLOURS[asked], "label": f"from {WORDS[asked]}", **BAR}
        axes.barh(y + shift, mean, 0.38, hatch=hatch, **bars)
        places = own["question"].map(dict(zip(labels, y + shift, strict=True)))
        axes.plot(own["accuracy"], places, ls="none", marker=".", ms=4, color="black", label="one base", zorder=3)
    axes.set(xlabel="answers exactly right, unseen views", xlim=(0, 1.02))
    return with_legend(figure)
