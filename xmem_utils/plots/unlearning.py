"""Figures of the unlearning analysis: colour for what is asked, a row or a mark a method."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from xmem_utils.params import MODALITIES
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS

REFERENCES = {"before": "before unlearning", "gold": "never learned (gold)"}
SHIFT = {"image": -0.11, "text": 0.11}  # rows: pictures above
COLUMNS = 6  # of the curves


def _words(unlearned: str) -> str:
    return " and ".join(MODALITY_WORDS[m] for m in unlearned.split("+"))


def _spread(axes: Axes, y: np.ndarray, rows: pd.DataFrame, **options) -> None:
    """Estimates along x with bars from `low` to `high`."""
    error = [(rows["estimate"] - rows["low"]).clip(lower=0), (rows["high"] - rows["estimate"]).clip(lower=0)]
    axes.errorbar(rows["estimate"], y, xerr=error, capsize=2, ls="none", **options)


def _asked(label: str = "forgotten people, asked with {}") -> list[plt.Line2D]:
    return [plt.Line2D([], [], color=COLOURS[m], marker=MARKERS[m], ms=5, ls="none", label=label.format(words))
            for m, words in MODALITY_WORDS.items()]  # fmt: skip


def _method_rows(axes: Axes, methods: list[str], labels: dict[str, str]) -> np.ndarray:
    y = np.arange(len(methods), dtype=float)
    axes.set_yticks(y, [labels.get(m, m) for m in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for k in range(1, len(methods), 2):
        axes.axhspan(k - 0.5, k + 0.5, color="0.96", zorder=0)
    return y


def unlearning_matrix(table: pd.DataFrame, unsettled: set[str]) -> Figure:
    """Recall of the forgotten (filled) and the retained (hollow) by method, one panel an unlearned modality.

    `table` is `tables.recall` of the main arm; methods in `unsettled` kept no retain recall in the search.
    """
    methods = list(dict.fromkeys(table["method"]))
    methods = [*(r for r in REFERENCES if r in methods), *(m for m in methods if m not in REFERENCES)]
    panels_of = [u for u in (*MODALITIES, "image+text") if u in set(table["unlearned"])]
    figure, panels = plt.subplots(1, len(panels_of), figsize=(3.9 * len(panels_of) + 1, 0.42 * len(methods) + 1.6),
                                  sharey=True, squeeze=False)  # fmt: skip
    labels = {m: f"{m} *" for m in unsettled} | REFERENCES
    for axes, unlearned in zip(panels[0], panels_of, strict=True):
        y = _method_rows(axes, methods, labels)
        for who, face, apart in (("retain", "white", 3), ("forget", None, 1)):
            for asked in MODALITIES:
                own = table[(table["unlearned"] == unlearned) & (table["who"] == who) & (table["asked"] == asked)]
                rows = own.set_index("method").reindex(methods)
                there = rows["estimate"].notna().to_numpy()
                _spread(axes, y[there] + apart * SHIFT[asked], rows[there], color=COLOURS[asked], marker=MARKERS[asked],
                        ms=5 if who == "forget" else 4, mfc=face or COLOURS[asked], lw=1,
                        alpha=1 if who == "forget" else 0.55)  # fmt: skip
        axes.set_title(f"Unlearned from {_words(unlearned)}")
        axes.set_xlim(-0.04, 1.06)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("names recalled exactly")
        axes.axhline(len([m for m in methods if m in REFERENCES]) - 0.5, color="0.3", lw=0.8)
    hollow = plt.Line2D([], [], color="0.4", marker="o", mfc="white", ms=4, ls="none", label="hollow: retained people")
    figure.legend(handles=[*_asked(), hollow], loc="upper center", bbox_to_anchor=(0.5, 0.01), ncols=3, fontsize=8)
    figure.tight_layout()
    return figure


def unlearning_curves(table: pd.DataFrame) -> Figure:
    """Recall along the steps of unlearning: a panel a method and unlearned modality; grey: the retained."""
    methods = list(dict.fromkeys(table["method"]))
    columns = min(COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    figure, grid = plt.subplots(2 * rows, columns, figsize=(max(2.1 * columns, 6.5), 3.9 * rows + 0.4), sharey=True,
                                squeeze=False)  # fmt: skip
    for k, unlearned in enumerate(MODALITIES):
        panels = grid[k * rows : (k + 1) * rows].ravel()
        for axes, method in zip(panels, methods, strict=False):
            part = table[(table["unlearned"] == unlearned) & (table["method"] == method)]
            for who, asked in product(("retain", "forget"), MODALITIES):
                own = part[(part["who"] == who) & (part["asked"] == asked)]
                forgotten = who == "forget"
                axes.plot(own["step"], own["recall"], color=COLOURS[asked] if forgotten else "0.6",
                          marker=MARKERS[asked], ms=4 if forgotten else 2.5, lw=1.4 if forgotten else 1,
                          ls="--" if forgotten and asked != unlearned else "-")  # fmt: skip
            axes.set_title(method, fontsize=9)
            axes.set_ylim(-0.04, 1.06)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.tick_params(labelsize=7)
        for axes in panels[len(methods) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel(f"unlearned from\n{_words(unlearned)}", fontsize=8)
    grey = [plt.Line2D([], [], color="0.6", marker=MARKERS[m], ms=3, label=f"retained, {words}")
            for m, words in MODALITY_WORDS.items()]  # fmt: skip
    figure.supxlabel("steps of unlearning", fontsize=9)
    figure.tight_layout()
    figure.legend(handles=[*_asked(), *grey], loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8)
    return figure


def unlearning_tradeoff(table: pd.DataFrame, retained: float) -> Figure:
    """Residual recall against retain recall: a mark for the other modality, a dash for the unlearned one.

    `table` has unlearned, method, retain, own, other; left of the line `retained` people were lost. Marks that would
    hide each other are moved apart a little, sideways.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.6, 4.6), sharey=True, sharex=True)
    methods = list(dict.fromkeys(table["method"]))
    marks = dict(zip(methods, "oXsPD^v<>phd*H", strict=False))
    colours = dict(zip(methods, plt.get_cmap("tab20")(range(20)), strict=False))
    left = min(table["retain"].min(), retained) - 0.02
    for axes, unlearned in zip(panels, MODALITIES, strict=True):
        shown = table[table["unlearned"] == unlearned]
        crowd = shown.groupby([shown["retain"].round(2), shown["other"].round(1)]).cumcount()
        for (_, row), place in zip(shown.iterrows(), crowd, strict=True):
            colour, x = colours[row["method"]], row["retain"] - place * 0.018 * (1.02 - left)
            axes.plot([x] * 2, [row["own"], row["other"]], color=colour, lw=1.2, zorder=1)
            axes.plot(x, row["own"], marker="_", ms=9, mew=2, color=colour, ls="none")
            axes.plot(x, row["other"], marker=marks[row["method"]], ms=7, color=colour, mec="black", mew=0.5,
                      ls="none", label=REFERENCES.get(row["method"], row["method"]))  # fmt: skip
        axes.axvline(retained, color="0.4", ls=":", lw=1.2, label="5 points below before")
        axes.set_title(f"Unlearned from {_words(unlearned)}")
        axes.set_xlabel("retained names recalled (worse modality)")
        axes.set_xlim(left, 1.02)
        axes.set_ylim(-0.04, 1.06)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0].set_ylabel("forgotten names recalled\n(mark: other modality; dash: unlearned)")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.tight_layout()
    return figure


def unlearning_attacks(table: pd.DataFrame) -> Figure:
    """What each attack brings back, by method: a row of panels an unlearned modality."""
    kinds, methods = list(dict.fromkeys(table["attack"])), list(dict.fromkeys(table["method"]))
    figure, grid = plt.subplots(2, len(kinds), figsize=(2.6 * len(kinds) + 1.4, 0.56 * len(methods) + 2),
                                sharey=True, sharex=True, squeeze=False)  # fmt: skip
    for panels, unlearned in zip(grid, MODALITIES, strict=True):
        for axes, kind in zip(panels, kinds, strict=True):
            y = _method_rows(axes, methods, REFERENCES)
            for asked in MODALITIES:
                own = table[(table["unlearned"] == unlearned) & (table["attack"] == kind) & (table["asked"] == asked)]
                rows = own.set_index("method").reindex(methods).rename(columns={"back": "estimate"})
                there = rows["estimate"].notna().to_numpy()
                _spread(axes, y[there] + SHIFT[asked], rows[there], color=COLOURS[asked], marker=MARKERS[asked], ms=4,
                        lw=1)  # fmt: skip
            axes.axvline(0, color="0.3", lw=0.8)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            if unlearned == MODALITIES[0]:
                axes.set_title(kind)
        panels[0].set_ylabel(f"unlearned from\n{_words(unlearned)}", fontsize=9)
    low, high = grid[0, 0].get_xlim()
    grid[0, 0].set_xlim(min(low, -0.05), max(high, 0.05))  # where nothing changed, too, the axis has a scale
    figure.supxlabel("change of the share of forgotten names recalled, in percentage points", fontsize=9)
    figure.tight_layout()
    figure.legend(handles=_asked(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8)
    return figure
