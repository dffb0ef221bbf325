"""Figures of the mitigation analysis: a panel a source modality, colour for what is asked."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils.mitigation.methods import METHODS, PLAIN, PLAIN_START
from xmem_utils.mitigation.tables import BEFORE, FIGURES, FORGOT, HELPS, HURTS, SOURCE, SPLIT, START, TARGET
from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, interval, recall_axis

PART_COLOURS = {SPLIT[0]: "#C9C9C9", SPLIT[1]: "#555555"}
SIGNS = {HELPS: "▲", HURTS: "▼", FORGOT: "×"}
CEILING = "perception ceiling"


def _fresh(method: str) -> bool:
    return method in METHODS and METHODS[method].fresh


def in_order(methods: Iterable[str]) -> list[str]:
    """What was there before first, what trains from the start last, after what it is held against."""
    return sorted(dict.fromkeys(methods), key=lambda m: (m != BEFORE, m != START, _fresh(m)))


def mitigation(table: pd.DataFrame, compared: pd.DataFrame) -> Figure:
    """Source recall, target recall, perception ceiling and public figures still known, a row a method.

    A triangle beside the method: target recall differs from that of the plain training that it is held against (dotted
    line; Holm), up or down; a cross: it did not memorize. The first rows are the base model and what had been memorized
    before.
    """
    methods = in_order(table["method"])
    figure, panels = plt.subplots(1, 2, figsize=(11.5, 0.33 * len(methods) + 1.6), sharey=True)
    first_fresh = next((y for y, method in enumerate(methods) if _fresh(method)), len(methods))
    for axes, source in zip(panels, MODALITIES, strict=True):
        own, target = table[table["source"] == source], other(source)
        verdicts = compared[compared["source"] == source].set_index("method")["verdict"]
        for plain, top, bottom in ((PLAIN, 0.5, first_fresh - 0.4), (PLAIN_START, first_fresh - 0.4, len(methods))):
            for value in own[(own["method"] == plain) & (own["quantity"] == TARGET)]["estimate"]:
                axes.plot([value] * 2, [top, bottom], color=COLOURS[target], ls=":", lw=1.3, zorder=1)
        if 0 < first_fresh < len(methods):
            axes.axhline(first_fresh - 0.4, color="0.75", lw=0.8, zorder=0)
        for y, method in enumerate(methods):
            rows = own[own["method"] == method].set_index("quantity")
            for down, modality in ((0.2, source), (0.36, target)):
                if (quantity := f"{FIGURES}, {modality}") in rows.index:
                    row = rows.loc[quantity]
                    axes.plot([row["low"], row["high"]], [y + down] * 2, color="0.6", lw=1.1, zorder=2)
                    axes.plot([row["estimate"]], [y + down], marker=MARKERS[modality], ms=3, color="0.35", zorder=2)
            if SOURCE not in rows.index:  # nothing is memorized
                continue
            axes.plot(rows.loc[[TARGET, SOURCE], "estimate"], [y, y], color="0.8", lw=2, zorder=1)
            for quantity, modality, look in (
                (CEILING, target, {"marker": "D", "mfc": "none", "ms": 4.5}),
                (SOURCE, source, {"marker": MARKERS[source], "ms": 5}),
                (TARGET, target, {"marker": MARKERS[target], "ms": 6}),
            ):
                if quantity in rows.index:
                    row = rows.loc[quantity]
                    error = [[max(0, row["estimate"] - row["low"])], [max(0, row["high"] - row["estimate"])]]
                    axes.errorbar([row["estimate"]], [y], xerr=error, color=COLOURS[modality], ls="none", capsize=2.5,
                                  zorder=3, **look)  # fmt: skip
            sign = SIGNS.get(verdicts.get(method, ""))
            if sign and method != PLAIN_START:  # which is itself what others are held against
                axes.annotate(sign, (1.06, y), va="center", ha="center", fontsize=8, color="0.2", annotation_clip=False)
        axes.set_yticks(range(len(methods)), [_label(m) for m in methods], fontsize=8.5)
        axes.set_ylim(len(methods) - 0.4, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(-0.03, 1.09)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("named exactly")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
    figure.tight_layout()
    figure.legend(handles=_legend(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return figure


def _legend() -> list[plt.Line2D]:
    def line(label: str, **options) -> plt.Line2D:
        return plt.Line2D([], [], label=label, **{"ls": "none", **options})

    asked = [line(f"asked with {MODALITY_WORDS[m]}", color=COLOURS[m], marker=MARKERS[m]) for m in MODALITIES]
    known = [line(f"public figures, asked with {MODALITY_WORDS[m]}", color="0.35", marker=MARKERS[m], ms=3)
             for m in MODALITIES]  # fmt: skip
    return [
        *asked, line(CEILING, color="0.35", marker="D", mfc="none"), *known,
        line("what a row is held against", color="0.35", ls=":"),
        line("above it (▼ below, × not memorized)", color="0.2", marker="^", ms=5),
    ]  # fmt: skip


def _label(method: str) -> str:
    return {BEFORE: "base model", START: "as memorized (notebook 03)"}.get(method, method)


def mitigation_pairs(table: pd.DataFrame) -> Figure:
    """Target recall of the paired and of the unpaired people, against how many are paired (not to scale)."""
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.8), sharey=True)
    counts = sorted(table["paired"].unique())
    for axes, source in zip(panels, MODALITIES, strict=True):
        colour, marker = COLOURS[other(source)], MARKERS[other(source)]
        own = table[table["source"] == source]
        none = own[(own["paired"] == 0) & (own["who"] == "not paired")]["estimate"]
        axes.axhline(float(none.iloc[0]), color="0.35", ls=":", lw=1.2)
        for who, look in (("paired", {"ls": "-"}), ("not paired", {"ls": "--", "mfc": "white"})):
            rows = own[own["who"] == who].sort_values("paired")
            at = [counts.index(n) for n in rows["paired"]]
            interval(axes, at, rows, color=colour, marker=marker, ms=6, **look)
        axes.set_xticks(range(len(counts)), [str(n) for n in counts])
        axes.set_xlabel("people of whom there are nameless pairs")
        axes.set_title(f"Names from {MODALITY_WORDS[source]}, asked with {MODALITY_WORDS[other(source)]}")
        recall_axis(axes, source == MODALITIES[0])
    figure.tight_layout()
    line = partial(plt.Line2D, [], [], color="0.35")
    handles = [line(marker="D", label="people who are paired"), line(ls=":", label="nobody is paired: plain"),
               line(marker="D", mfc="white", ls="--", label="people who are not")]  # fmt: skip
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return figure


def decomposition(table: pd.DataFrame) -> Figure:
    """The gap of every method in its perception part and its recall part."""
    methods = in_order(table["method"])
    figure, panels = plt.subplots(1, 2, figsize=(11.0, 0.28 * len(methods) + 1.5), sharey=True, sharex=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        own = table[table["source"] == source].set_index(["quantity", "method"])
        for shift, part in ((-0.19, SPLIT[0]), (0.19, SPLIT[1])):
            _bars(axes, own.loc[part].reindex(methods), shift, PART_COLOURS[part])
        gap = own.loc["gap"].reindex(methods)
        error = [(gap["estimate"] - gap["low"]).clip(lower=0), (gap["high"] - gap["estimate"]).clip(lower=0)]
        axes.errorbar(gap["estimate"], range(len(methods)), xerr=error, ls="none", marker="D", ms=4.5, capsize=2,
                      color="0.1", zorder=4)  # fmt: skip
        axes.axvline(0, color="0.2", lw=0.8)
        axes.set_yticks(range(len(methods)), methods, fontsize=8.5)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("recall lost: share of names")
        axes.grid(axis="y", visible=False)
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c, label=p) for p, c in PART_COLOURS.items()]
    handles.append(plt.Line2D([], [], marker="D", ls="none", color="0.1", label="gap: both together"))
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, shift: float, colour: str) -> None:
    at = [y + shift for y in range(len(rows))]
    error = [(rows["estimate"] - rows["low"]).clip(lower=0), (rows["high"] - rows["estimate"]).clip(lower=0)]
    axes.barh(at, rows["estimate"], height=0.36, color=colour, edgecolor="black", linewidth=0.5, zorder=2)
    axes.errorbar(rows["estimate"], at, xerr=error, ls="none", ecolor="black", capsize=2, lw=0.8, zorder=3)
