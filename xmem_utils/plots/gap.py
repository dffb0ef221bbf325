"""Figures of the gap analysis."""

from __future__ import annotations

from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmem_utils.params import MODALITIES
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, asked_handles, interval, recall_axis

CONTROL_MARKERS = {"base model": "D", "shuffled views": "X", "blank image": "P"}


def gap_matrix(table: pd.DataFrame, subtitle: str) -> Figure:
    """Source x asked recall as bars with intervals; controls as marks, chance as a line."""
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True)
    base = table[table["source"] == "none"]
    for axes, source in zip(panels, MODALITIES, strict=True):
        rows = table[table["source"] == source]
        for x, asked in enumerate(MODALITIES):
            bar = rows[(rows["asked"] == asked) & (rows["probe"] == "view")]
            axes.bar(x, bar["estimate"], width=0.5, color=COLOURS[asked], edgecolor="black", linewidth=0.6,
                     hatch="" if asked == source else "//", alpha=0.9, zorder=2)  # fmt: skip
            interval(axes, [x], bar, fmt="none", ecolor="black", zorder=3)
            top = float(bar["high"].iloc[0])
            share = float(bar["estimate"].iloc[0])
            label = f"{share:.1%}" if 0.99 < share < 1 else f"{share:.0%}"
            axes.annotate(label, (x, top), (0, 4), textcoords="offset points", ha="center")
            controls = [("base model", base[(base["asked"] == asked) & (base["probe"] == "view")])]
            controls += [(p, rows[(rows["asked"] == asked) & (rows["probe"] == p)])
                         for p in ("shuffled views", "blank image")]  # fmt: skip
            for k, (name, control) in enumerate(controls):
                if len(control):
                    interval(axes, [x + 0.33 + 0.08 * k], control, marker=CONTROL_MARKERS[name], ms=5,
                              color="0.25", lw=1, ls="none", zorder=4)  # fmt: skip
        chance = float(rows["chance"].iloc[0])
        axes.axhline(chance, color="0.4", ls=":", lw=1.2, zorder=1)
        axes.set_xticks(range(2), [f"asked with\n{MODALITY_WORDS[m]}" for m in MODALITIES])
        axes.set_xlim(-0.45, 1.7)
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}", pad=14)
        axes.grid(axis="x", visible=False)
        recall_axis(axes, source == MODALITIES[0])
    handles = [plt.Line2D([], [], marker=m, color="0.25", ls="none", label=n) for n, m in CONTROL_MARKERS.items()]
    handles.append(plt.Line2D([], [], color="0.4", ls=":", label=f"chance ({chance:.0%})"))
    figure.legend(handles=handles, loc="lower center", ncols=4, bbox_to_anchor=(0.5, -0.07))
    figure.suptitle(f"Recall of names by the modality they were learned from and asked in\n{subtitle}", fontsize=11)
    figure.tight_layout()
    return figure


def line_legend(axes: Axes, more: list[tuple[str, str]]) -> None:
    """What colour (asked modality), dashes (learned from or other) and the horizontal lines mean."""
    line = partial(plt.Line2D, [], [])
    handles = asked_handles("asked as learned", "asked in the other")
    handles += [line(color="0.5", lw=0.8, ls=style, label=label) for style, label in more]
    handles.append(line(color="0.4", ls=":", label="chance"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)


def gap_curves(table: pd.DataFrame, chance: float) -> Figure:
    """Recall in both modalities along training; thin lines are seeds, thick ones their mean."""
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.6), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        for asked in MODALITIES:
            rows = table[(table["source"] == source) & (table["asked"] == asked)]
            line = "-" if asked == source else "--"
            for _, seed in rows.groupby("seed"):
                axes.plot(seed["epoch"], seed["recall"], color=COLOURS[asked], lw=0.8, alpha=0.5, ls=line)
            mean = rows.groupby("epoch")["recall"].mean()
            axes.plot(mean.index, mean, color=COLOURS[asked], lw=2.2, ls=line, marker=MARKERS[asked], ms=5,
                      )  # fmt: skip
        axes.axhline(chance, color="0.4", ls=":", lw=1.2)
        axes.set_xlabel("epochs of memorizing")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        recall_axis(axes, source == MODALITIES[0])
    line_legend(panels[1], [("-", "one seed")])
    figure.tight_layout()
    return figure


def dose_response(table: pd.DataFrame, chance: float, gate: float) -> Figure:
    """Recall in source and target modality against the number of training views a persona."""
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.6), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        for asked in MODALITIES:
            rows = table[(table["source"] == source) & (table["asked"] == asked)].sort_values("train_views")
            interval(axes, rows["train_views"], rows, color=COLOURS[asked], marker=MARKERS[asked], ms=5,
                      ls="-" if asked == source else "--")  # fmt: skip
        views = sorted(table["train_views"].unique())
        axes.set_xscale("log", base=2)
        axes.set_xticks(views, [str(v) for v in views])
        axes.axhline(chance, color="0.4", ls=":", lw=1.2)
        axes.axhline(gate, color="0.6", ls="-.", lw=1)
        axes.set_xlabel("training views per persona")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        recall_axis(axes, source == MODALITIES[0])
    line_legend(panels[1], [("-.", f"memorized: source above {gate:.0%}")])
    figure.tight_layout()
    return figure
