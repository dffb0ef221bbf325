"""Figures of the capability analysis: one panel a source modality, colour for what is asked."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, asked_handles, interval, recall_axis

OF_FIGURES = {"alignment probe": ("D", ":"), "name, known in both": ("P", (0, (1, 3)))}  # marker, line


def _legend(figure: Figure, more: list[plt.Line2D], y: float) -> None:
    """What colour, marker and dashes mean, below the panels."""
    handles = asked_handles("names, asked as learned", "names, asked in the other modality")
    figure.legend(handles=[*handles, *more], loc="upper center", bbox_to_anchor=(0.5, y), ncols=4, fontsize=8,
                  handlelength=3)  # fmt: skip


def capability(table: pd.DataFrame, chance: float) -> Figure:
    """Above: recall in source and target, and attributes read, by model; below: gap and transfer ratio."""
    models = table.drop_duplicates("model").sort_values("parameters")
    order, x = list(models["model"]), np.arange(len(models), dtype=float)
    figure, panels = plt.subplots(2, 2, figsize=(9.6, 6.6), sharey="row", sharex=True)
    for column, source in enumerate(MODALITIES):
        part = table[table["source"] == source].set_index("model")
        above, below = panels[:, column]
        for role, asked in (("source", source), ("target", other(source))):
            style = "-" if role == "source" else "--"
            seen = part[part["quantity"] == f"attributes from {role}"].reindex(order)
            interval(above, x + 0.06, seen, color="0.6", marker=MARKERS[asked], ms=5, ls=":", lw=1)
            rows = part[part["quantity"] == f"{role} recall"].loc[order]
            interval(above, x, rows, color=COLOURS[asked], marker=MARKERS[asked], ms=5, ls=style, zorder=3)
        above.axhline(chance, color="0.4", ls="-.", lw=1)
        for quantity, shift, colour, marker, style in (
            ("gap", -0.04, "#222222", "v", "-"),
            ("transfer ratio", 0.04, "#009E73", "^", "--"),
        ):
            rows = part[part["quantity"] == quantity].loc[order]
            interval(below, x + shift, rows, color=colour, marker=marker, ms=5, ls=style, label=quantity)
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
    panels[1, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    _legend(figure, [plt.Line2D([], [], color="0.6", marker="o", ms=5, ls=":", label="attributes read (grey)"),
                     plt.Line2D([], [], color="0.4", ls="-.", label="chance for a name")], 0.0)  # fmt: skip
    return figure


def size(parameters: float) -> str:
    """A number of parameters in words: 1.9 M."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def capability_slope(points: pd.DataFrame, slopes: pd.DataFrame) -> Figure:
    """Target against source recall over checkpoints, one colour a model; thin lines follow the runs."""
    models = list(dict.fromkeys(points["model"]))
    colours = sns.color_palette("viridis", len(models) + 1)
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.4), sharey=True)
    wide = points.pivot_table(index=["model", "source", "seed", "epoch"], columns="asked", values="recall")
    fit = slopes.set_index(["model", "source"])
    for axes, source in zip(panels, MODALITIES, strict=True):
        axes.plot([0, 1], [0, 1], color="0.4", ls=":", lw=1.2, label="no gap")
        for model, colour, marker in zip(models, colours, "os^Dv<>" * len(models), strict=False):
            line = fit.loc[(model, source)]
            spread = f" [{line['lowest']:.2f}, {line['highest']:.2f}]" if line["runs"] > 1 else ""
            for k, (_, run) in enumerate(wide.loc[(model, source)].groupby(level="seed")):
                axes.plot(run[source], run[other(source)], color=colour, marker=marker, ms=5, lw=0.8, mec="black",
                          mew=0.3, label=f"{model}: slope {line['slope']:.2f}{spread}" if k == 0 else None,
                          )  # fmt: skip
        axes.set(xlabel=f"recall asked with {MODALITY_WORDS[source]} (source)", xlim=(-0.03, 1.05),
                 title=f"Names learned from {MODALITY_WORDS[source]}")  # fmt: skip
        recall_axis(axes)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("recall in the other modality (target)" if source == MODALITIES[0] else "")
        axes.legend(fontsize=7.5, loc="upper left")
    figure.tight_layout()
    return figure


def capability_knowledge(table: pd.DataFrame, chance: float) -> Figure:
    """Recall against the number of public figures the base model knows in both modalities."""
    known = sorted(table["known"].unique())
    x = np.arange(len(known), dtype=float)  # evenly spaced: 0 has no place on a logarithmic axis
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.0), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        part = table[table["source"] == source].set_index("known")
        for role, asked, style in (("source", source, "-"), ("target", other(source), "--")):
            rows = part[part["quantity"] == f"{role} recall"].loc[known]
            interval(axes, x, rows, color=COLOURS[asked], marker=MARKERS[asked], ms=5, ls=style, zorder=3)
        for quantity, (marker, style) in OF_FIGURES.items():
            rows = part[part["quantity"] == quantity].loc[known]
            axes.plot(x, rows["estimate"], color="0.5", marker=marker, ms=5, ls=style, lw=1)
        axes.axhline(chance, color="0.4", ls="-.", lw=1)
        axes.set_xticks(x, [f"{k:,}" for k in known])
        axes.set_xlabel("public figures named in both modalities")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        recall_axis(axes, source == MODALITIES[0])
    figure.tight_layout()
    words = (
        "figures known in this panel's source alone, asked in the other (probe)",
        "figures known in both, likewise",
    )
    more = [plt.Line2D([], [], color="0.5", marker=marker, ms=5, ls=style, lw=1, label=label)
            for label, (marker, style) in zip(words, OF_FIGURES.values(), strict=True)]  # fmt: skip
    _legend(figure, [*more, plt.Line2D([], [], color="0.4", ls="-.", label="chance for a study name")], 0.0)
    return figure
