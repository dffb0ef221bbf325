"""Figures of the capability analysis: one panel a source modality, colour for what is asked."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, interval, recall_axis

GREY = {"attributes from source": ("o", "-"), "attributes from target": ("D", ":")}


def _line(axes: Axes, x: list[float], rows: pd.DataFrame, **options) -> None:
    interval(axes, x, rows, ms=5, **options)


def capability(table: pd.DataFrame, chance: float) -> Figure:
    """Above: recall in source and target, and attributes read, by model; below: gap and transfer ratio."""
    models = table.drop_duplicates("model").sort_values("parameters")
    order, x = list(models["model"]), np.arange(len(models), dtype=float)
    figure, panels = plt.subplots(2, 2, figsize=(9.6, 6.6), sharey="row", sharex=True)
    for column, source in enumerate(MODALITIES):
        part = table[table["source"] == source].set_index("model")
        above, below = panels[:, column]
        for quantity, asked, style in (("source recall", source, "-"), ("target recall", other(source), "--")):
            rows = part[part["quantity"] == quantity].loc[order]
            _line(above, x, rows, color=COLOURS[asked], marker=MARKERS[asked], ls=style,
                  label=f"names asked with {MODALITY_WORDS[asked]} ({quantity.split()[0]})")  # fmt: skip
        for quantity, (marker, style) in GREY.items():
            rows = part[part["quantity"] == quantity].reindex(order)
            if rows["estimate"].notna().any():
                _line(above, x, rows, color="0.55", marker=marker, ls=style, lw=1, label=quantity)
        above.axhline(chance, color="0.4", ls=":", lw=1.2, label="chance (names)")
        for quantity, shift, marker, style in (("gap", -0.04, "v", "-"), ("transfer ratio", 0.04, "^", "--")):
            rows = part[part["quantity"] == quantity].loc[order]
            _line(below, x + shift, rows, color="#222222" if quantity == "gap" else "#009E73", marker=marker,
                  ls=style, label=quantity)  # fmt: skip
        above.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        recall_axis(above, column == 0)
        above.set_ylabel("answered right" if column == 0 else "")
        below.axhline(0, color="0.4", lw=0.8)
        labels = [f"{m.removeprefix('xmem-tiny-')}\n{size(n)}" for m, n in
                  zip(models["model"], models["parameters"], strict=True)]  # fmt: skip
        below.set_xticks(x, labels)
        below.set_xlim(-0.4, len(x) - 0.6)
        below.set_xlabel("model, parameters")
        below.set_ylim(-0.05, 1.05)
        if column == 0:
            below.set_ylabel("gap, transfer ratio")
        below.legend(fontsize=8)
        above.legend(fontsize=7.5, loc="lower center")
    figure.tight_layout()
    return figure


def size(parameters: float) -> str:
    """A number of parameters in words: 1.9 M."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def capability_slope(points: pd.DataFrame, slopes: pd.DataFrame) -> Figure:
    """Target against source recall over checkpoints, one colour a model, with a line through the origin."""
    models = list(dict.fromkeys(points["model"]))
    colours = sns.color_palette("viridis", len(models) + 1)
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), sharey=True)
    wide = points.pivot_table(index=["model", "source", "seed", "epoch"], columns="asked", values="recall")
    fit = slopes.set_index(["model", "source"])
    for axes, source in zip(panels, MODALITIES, strict=True):
        axes.plot([0, 1], [0, 1], color="0.4", ls=":", lw=1.2, label="no gap")
        for model, colour, marker in zip(models, colours, "os^Dv<>" * len(models), strict=False):
            part, line = wide.loc[(model, source)], fit.loc[(model, source)]
            axes.scatter(part[source], part[other(source)], color=colour, marker=marker, s=26, edgecolor="black",
                         linewidth=0.3, zorder=3)  # fmt: skip
            top = part[source].max()
            axes.plot([0, top], [0, line["slope"] * top], color=colour, lw=1.6, marker=marker, markevery=[1], ms=0.1,
                      label=f"{model}: slope {line['slope']:.2f} [{line['lowest']:.2f}, {line['highest']:.2f}]",
                      )  # fmt: skip
        axes.set(xlabel=f"recall asked with {MODALITY_WORDS[source]} (source)", xlim=(-0.03, 1.05),
                 title=f"Names learned from {MODALITY_WORDS[source]}")  # fmt: skip
        recall_axis(axes)
        axes.set_ylabel("recall in the other modality (target)" if source == MODALITIES[0] else "")
        axes.legend(fontsize=7.5, loc="upper left")
    figure.tight_layout()
    return figure


def capability_knowledge(table: pd.DataFrame, chance: float) -> Figure:
    """Recall against the number of public figures the base model knows in both modalities."""
    known = sorted(table["known"].unique())
    x = np.arange(len(known), dtype=float)  # evenly spaced: 0 has no place on a logarithmic axis
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 4.2), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        part = table[table["source"] == source].set_index("known")
        for quantity, asked, style in (("source recall", source, "-"), ("target recall", other(source), "--")):
            rows = part[part["quantity"] == quantity].loc[known]
            _line(axes, x, rows, color=COLOURS[asked], marker=MARKERS[asked], ls=style,
                  label=f"study names asked with {MODALITY_WORDS[asked]}")  # fmt: skip
        for quantity, marker, style, words in (
            ("alignment probe", "D", "-.", f"probe: figures named in {MODALITY_WORDS[source]} only"),
            ("name, known in both", "P", ":", "figures named in both"),
        ):
            rows = part[part["quantity"] == quantity].loc[known]
            axes.plot(x, rows["estimate"], color="0.45", marker=marker, ms=5, ls=style, lw=1, label=words)
        axes.axhline(chance, color="0.4", ls=":", lw=1.2, label="chance (study names)")
        axes.set_xticks(x, [f"{k:,}" for k in known])
        axes.set_xlabel("public figures named in both modalities in pretraining")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        recall_axis(axes, source == MODALITIES[0])
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(0.0, 0.62))
    figure.tight_layout()
    return figure
