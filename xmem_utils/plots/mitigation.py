"""Figures of the mitigation analysis: a panel a source modality, colour for what is asked."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils.mitigate.methods import PLAIN
from xmem_utils.mitigate.tables import BEFORE, FIGURES, FORGOT, HELPS, HURTS, SOURCE, SPLIT, TARGET
from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, interval, recall_axis

PART_COLOURS = {SPLIT[0]: "#C9C9C9", SPLIT[1]: "#555555"}
SIGNS = {HELPS: "▲", HURTS: "▼", FORGOT: "×"}


def mitigation(table: pd.DataFrame, compared: pd.DataFrame) -> Figure:
    """Source recall, target recall, perception ceiling and public figures still known, a row a method.

    A triangle beside the method: target recall differs from that of plain (Holm), up or down; a cross: it did not
    memorize. The first row is the base model, before anything is memorized.
    """
    methods = sorted(dict.fromkeys(table["method"]), key=lambda m: m != BEFORE)  # that one first
    figure, panels = plt.subplots(1, 2, figsize=(11.5, 0.31 * len(methods) + 1.6), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        own, target = table[table["source"] == source], other(source)
        verdicts = compared[compared["source"] == source].set_index("method")["verdict"]
        plain = own[(own["method"] == PLAIN) & (own["quantity"] == TARGET)]["estimate"]
        axes.axvline(float(plain.iloc[0]), color=COLOURS[target], ls=":", lw=1.2, zorder=1)
        for y, method in enumerate(methods):
            rows = own[own["method"] == method].set_index("quantity")
            known = rows[rows.index.str.startswith(FIGURES)]
            shift = [0.28, 0.42][: len(known)]
            for down, (_, row) in zip(shift, known.iterrows(), strict=True):
                axes.plot([row["low"], row["high"]], [y + down] * 2, color="0.55", lw=1.2, zorder=2)
                axes.plot([row["estimate"]], [y + down], marker=".", ms=4, color="0.35", zorder=2)
            if method == BEFORE:  # nothing is memorized
                continue
            axes.plot(rows.loc[[TARGET, SOURCE], "estimate"], [y, y], color="0.8", lw=2, zorder=1)
            for quantity, modality, look in (
                ("perception ceiling", target, {"marker": "D", "mfc": "none", "ms": 4.5}),
                (SOURCE, source, {"marker": MARKERS[source], "ms": 5}),
                (TARGET, target, {"marker": MARKERS[target], "ms": 6}),
            ):
                row = rows.loc[quantity]
                error = [[max(0, row["estimate"] - row["low"])], [max(0, row["high"] - row["estimate"])]]
                axes.errorbar([row["estimate"]], [y], xerr=error, color=COLOURS[modality], ls="none", capsize=2.5,
                              zorder=3, **look)  # fmt: skip
            if sign := SIGNS.get(verdicts.get(method, "")):
                axes.annotate(sign, (1.06, y), va="center", ha="center", fontsize=8, color="0.2", annotation_clip=False)
        axes.set_yticks(range(len(methods)), [_label(m) for m in methods], fontsize=8.5)
        axes.set_ylim(len(methods) - 0.4, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(-0.03, 1.09)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("named exactly")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
    line = plt.Line2D
    handles = [line([], [], color=COLOURS[m], marker=MARKERS[m], ls="none", label=f"asked with {MODALITY_WORDS[m]}")
               for m in MODALITIES]  # fmt: skip
    handles += [
        line([], [], color="0.35", marker="D", mfc="none", ls="none", label="perception ceiling"),
        line(
            [],
            [],
            color="0.55",
            marker=".",
            mec="0.35",
            mfc="0.35",
            ls="-",
            label="public figures, both ways",
        ),
        line([], [], color="0.35", ls=":", label="target recall, plain"),
        line(
            [],
            [],
            color="0.2",
            marker="^",
            ls="none",
            ms=5,
            label="above plain (▼ below, × not memorized)",
        ),
    ]
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return figure


def _label(method: str) -> str:
    return "base model" if method == BEFORE else method


def mitigation_pairs(table: pd.DataFrame) -> Figure:
    """Target recall of the paired and of the unpaired people, against how many are paired."""
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.6), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        colour, marker = COLOURS[other(source)], MARKERS[other(source)]
        for who, look in (("paired", {"ls": "-"}), ("not paired", {"ls": "--", "mfc": "white"})):
            rows = table[(table["source"] == source) & (table["who"] == who)].sort_values("paired")
            interval(axes, rows["paired"], rows, color=colour, marker=marker, ms=6, label=who, **look)
        axes.set_xscale("symlog", linthresh=5)
        counts = sorted(table["paired"].unique())
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        axes.set_xlabel("people of whom there are nameless pairs")
        axes.set_title(f"Names from {MODALITY_WORDS[source]}, asked with {MODALITY_WORDS[other(source)]}")
        recall_axis(axes, source == MODALITIES[0])
        axes.legend(title="the people asked about", loc="lower right")
    figure.tight_layout()
    return figure


def decomposition(table: pd.DataFrame) -> Figure:
    """The gap of every method in its perception part and its recall part."""
    methods = list(dict.fromkeys(table["method"]))
    figure, panels = plt.subplots(1, 2, figsize=(11.0, 0.28 * len(methods) + 1.5), sharey=True, sharex=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        own = table[table["source"] == source].set_index(["quantity", "method"])
        for shift, part in ((-0.19, SPLIT[0]), (0.19, SPLIT[1])):
            _bars(axes, own.loc[part].reindex(methods), shift, PART_COLOURS[part])
        gap = own.loc["gap"].reindex(methods)
        error = [(gap["estimate"] - gap["low"]).clip(lower=0), (gap["high"] - gap["estimate"]).clip(lower=0)]
        axes.errorbar(gap["estimate"], range(len(methods)), xerr=error, ls="none", marker="D", ms=4.5, capsize=2,
                      color=COLOURS[other(source)], zorder=4)  # fmt: skip
        axes.axvline(0, color="0.2", lw=0.8)
        axes.set_yticks(range(len(methods)), methods, fontsize=8.5)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("of the gap, in points of recall")
        axes.grid(axis="y", visible=False)
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c, label=p) for p, c in PART_COLOURS.items()]
    handles.append(plt.Line2D([], [], marker="D", ls="none", color="0.2", label="gap: both together"))
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, shift: float, colour: str) -> None:
    at = [y + shift for y in range(len(rows))]
    error = [(rows["estimate"] - rows["low"]).clip(lower=0), (rows["high"] - rows["estimate"]).clip(lower=0)]
    axes.barh(at, rows["estimate"], height=0.36, color=colour, edgecolor="black", linewidth=0.5, zorder=2)
    axes.errorbar(rows["estimate"], at, xerr=error, ls="none", ecolor="black", capsize=2, lw=0.8, zorder=3)
