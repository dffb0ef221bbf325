"""Figures of the personas."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure


def contact_sheet(rows: pd.DataFrame, zoom: float = 0.95) -> Figure:
    """Portraits of some personas, a row each, with name and attributes beside them."""
    columns = max(map(len, rows["portraits"]))
    figure, grid = plt.subplots(
        len(rows), columns + 1, figsize=(zoom * (columns + 4), zoom * len(rows)), squeeze=False,
        gridspec_kw={"width_ratios": [*[1] * columns, 4], "wspace": 0.04, "hspace": 0.08},
    )  # fmt: skip
    for cells, (_, row) in zip(grid, rows.iterrows(), strict=True):
        for axes in cells:
            axes.set_axis_off()
        for axes, image in zip(cells, row["portraits"], strict=False):
            axes.imshow(image)
        caption = (
            f"{row['name']}\n{row['hair colour']} {row['hair style']}, {row['skin']} skin\n"
            f"{row['garment colour']} {row['garment']}\neyewear: {row['eyewear']}, facial hair: {row['facial hair']}"
        )
        cells[-1].text(  # a name may hold $, which is no formula
            0.03, 0.5, caption, va="center", fontsize=7.5, transform=cells[-1].transAxes, parse_math=False
        )
    return figure


def attribute_counts(table: pd.DataFrame) -> Figure:
    """How many personas have each value of each axis; the line is a uniform draw."""
    axes_names = list(dict.fromkeys(table["axis"]))
    figure, panels = plt.subplots(2, 4, figsize=(11, 5.4), squeeze=False)
    for panel in panels.flat[len(axes_names) :]:
        panel.set_axis_off()
    for panel, axis in zip(panels.flat, axes_names, strict=False):
        rows = table[table["axis"] == axis]
        panel.barh(rows["value"], rows["personas"], color="#009E73", edgecolor="black", linewidth=0.5)
        panel.axvline(rows["expected"].iloc[0], color="0.2", ls=":", lw=1.4)
        panel.invert_yaxis()
        panel.set(title=axis, xlabel="personas")
        panel.grid(axis="y", visible=False)
    figure.tight_layout()
    return figure
