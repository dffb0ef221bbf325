"""Figures of the unlearning analysis: colour for what is asked, a row or a mark a method."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils.params import MODALITIES
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS

REFERENCES = ("before", "gold")
SHIFT = {"image": -0.14, "text": 0.14}  # rows: pictures above


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
    figure, panels = plt.subplots(1, len(panels_of), figsize=(3.9 * len(panels_of) + 1, 0.36 * len(methods) + 1.6),
                                  sharey=True, squeeze=False)  # fmt: skip
    labels = {m: f"{m} *" for m in unsettled} | {"before": "before unlearning", "gold": "never learned (gold)"}
    for axes, unlearned in zip(panels[0], panels_of, strict=True):
        y = _method_rows(axes, methods, labels)
        for who, face in (("retain", "white"), ("forget", None)):
            for asked in MODALITIES:
                own = table[(table["unlearned"] == unlearned) & (table["who"] == who) & (table["asked"] == asked)]
                rows = own.set_index("method").reindex(methods)
                there = rows["estimate"].notna().to_numpy()
                _spread(axes, y[there] + SHIFT[asked], rows[there], color=COLOURS[asked], marker=MARKERS[asked],
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
    columns = -(-len(methods) // 2)
    figure, grid = plt.subplots(4, columns, figsize=(2.15 * columns, 8.2), sharey=True, squeeze=False)
    for k, unlearned in enumerate(MODALITIES):
        for i, method in enumerate(methods):
            axes = grid[2 * k + i // columns, i % columns]
            part = table[(table["unlearned"] == unlearned) & (table["method"] == method)]
            for who in ("retain", "forget"):
                for asked in MODALITIES:
                    rows = part[(part["who"] == who) & (part["asked"] == asked)]
                    colour = COLOURS[asked] if who == "forget" else "0.6"
                    axes.plot(rows["step"], rows["recall"], color=colour, marker=MARKERS[asked],
                              ms=4 if who == "forget" else 2.5, lw=1.4 if who == "forget" else 1,
                              ls="-" if asked == unlearned or who == "retain" else "--")  # fmt: skip
            axes.set_title(method, fontsize=9)
            axes.set_ylim(-0.04, 1.06)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.tick_params(labelsize=7)
            if i % columns == 0:
                axes.set_ylabel(f"unlearned from\n{_words(unlearned)}", fontsize=8)
        for i in range(len(methods), 2 * columns):
            grid[2 * k + i // columns, i % columns].set_visible(False)
    figure.supxlabel("steps of unlearning", fontsize=9)
    grey = [plt.Line2D([], [], color="0.6", marker=MARKERS[m], ms=3, label=f"retained, {words}")
            for m, words in MODALITY_WORDS.items()]  # fmt: skip
    figure.legend(handles=[*_asked(), *grey], loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8)
    figure.tight_layout()
    return figure


def unlearning_tradeoff(table: pd.DataFrame, retained: float) -> Figure:
    """Residual recall against retain recall, a mark a method: filled in the other modality, a tick in the unlearned.

    `table` has unlearned, method, retain, own, other; left of the line `retained` people were lost.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 4.6), sharey=True)
    marks = dict(zip(dict.fromkeys(table["method"]), "oXsPD^v<>phd*", strict=False))
    colours = dict(zip(marks, plt.get_cmap("tab20")(np.linspace(0, 1, 20))[::1], strict=False))
    for axes, unlearned in zip(panels, MODALITIES, strict=True):
        for _, row in table[table["unlearned"] == unlearned].iterrows():
            colour = colours[row["method"]]
            axes.plot([row["retain"]] * 2, [row["own"], row["other"]], color=colour, lw=1.2, zorder=1)
            axes.plot(row["retain"], row["own"], marker="_", ms=9, mew=2, color=colour, ls="none")
            axes.plot(row["retain"], row["other"], marker=marks[row["method"]], ms=7, color=colour, mec="black",
                      mew=0.5, ls="none", label=row["method"])  # fmt: skip
        axes.axvline(retained, color="0.4", ls=":", lw=1.2)
        axes.set_title(f"Unlearned from {_words(unlearned)}")
        axes.set_xlabel("retained names recalled (the worse of both modalities)")
        axes.set_ylim(-0.04, 1.06)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0].set_ylabel("forgotten names recalled\n(mark: in the other modality; dash: in the unlearned)")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.tight_layout()
    return figure


def unlearning_attacks(table: pd.DataFrame) -> Figure:
    """What each attack brings back, by method: a row of panels an unlearned modality."""
    kinds, methods = list(dict.fromkeys(table["attack"])), list(dict.fromkeys(table["method"]))
    labels = {"before": "before unlearning", "gold": "never learned (gold)"}
    figure, grid = plt.subplots(2, len(kinds), figsize=(2.6 * len(kinds) + 1.4, 0.5 * len(methods) + 2.4),
                                sharey=True, sharex=True, squeeze=False)  # fmt: skip
    for panels, unlearned in zip(grid, MODALITIES, strict=True):
        for axes, kind in zip(panels, kinds, strict=True):
            y = _method_rows(axes, methods, labels)
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
        panels[0].set_ylabel(f"unlearned from {_words(unlearned)}")
    figure.supxlabel("change of the share of forgotten names recalled, in percentage points", fontsize=9)
    figure.legend(handles=_asked(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8)
    figure.tight_layout()
    return figure
