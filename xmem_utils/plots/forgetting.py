"""Figures of notebook 05: unlearning; a row or a mark a method."""

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from xmem_utils.params import MODALITIES
from xmem_utils.plots.parts import (
    DOTTED,
    RECALLED,
    WORDS,
    asked_rows,
    by_modality,
    curve,
    facets,
    look,
    percent,
    row_axis,
    with_legend,
)

REFERENCES = {"before": "before unlearning", "retain-only": "never learned (retain-only)"}
UNLEARNED = {m: f"Unlearned from {WORDS[m]}" for m in MODALITIES}
YLABELS = [f"unlearned from\n{WORDS[m]}" for m in MODALITIES]
FORGOTTEN = "forgotten people, asked with {asked}"


def unlearning_matrix(table: pd.DataFrame, unsettled: set[str]) -> plt.Figure:
    """Recall of the forgotten (filled) and the retained (hollow) by method, one panel an unlearned modality.

    `table` is `tables.recall` of the main task; methods in `unsettled` kept no retain recall in the search.
    """
    methods = sorted(table["method"].unique(), key=lambda m: [*REFERENCES, m].index(m))
    labels = {m: m for m in methods} | {m: f"{m} *" for m in unsettled} | REFERENCES
    titles = UNLEARNED | {"image+text": "Unlearned from pictures and descriptions"}
    titles = {u: title for u, title in titles.items() if u in set(table["unlearned"])}
    size = (3.9 * len(titles) + 1, 0.42 * len(methods) + 1.6)
    figure, (panels,) = facets(size, titles.values(), xlabel=RECALLED, recall="x")
    retained = {"label": "retained people, asked with {asked}", "mfc": "white", "ms": 4, "alpha": 0.6}
    for axes, unlearned in zip(panels, titles, strict=True):
        row_axis(axes, [labels[m] for m in methods])
        own = table[table["unlearned"] == unlearned].set_index("method")
        asked_rows(axes, methods, own[own["group"] == "retain"], 3, **retained)
        asked_rows(axes, methods, own[own["group"] == "forget"], label=FORGOTTEN)
        axes.axhline(sum(m in REFERENCES for m in methods) - 0.5, color="0.3", lw=0.8)
    return with_legend(figure)


def unlearning_curves(table: pd.DataFrame) -> plt.Figure:
    """Recall along the steps of unlearning: a panel a method and unlearned modality; grey: the retained."""
    methods = table["method"].unique()
    columns = min(6, len(methods))
    lines = -(-len(methods) // columns)
    size, ylabels = (max(2.1 * columns, 6.5), 3.9 * lines + 0.4), [label for label in YLABELS for _ in range(lines)]
    figure, grid = facets(size, [""] * columns, ylabels, sharex=False)
    forgotten = "forgotten, unlearned from {learned}, asked with {asked}"
    retained = {"label": "retained, asked with {asked}", "color": "0.6", "ms": 2.5, "lw": 1, "ls": "-", "zorder": 1.5}
    for panels, unlearned, own in by_modality(grid.reshape(2, -1), table, "unlearned"):
        for axes in panels[len(methods) :]:
            axes.set_visible(False)
        for axes, method in zip(panels, methods, strict=False):
            for (who, asked), rows in own[own["method"] == method].groupby(["group", "query"]):
                options = {"label": forgotten, "learned": unlearned, "ms": 4} if who == "forget" else retained
                curve(axes, rows, "step", **look(asked, **options))
            axes.set_title(method, fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("steps of unlearning", fontsize=9)
    return with_legend(figure, columns=3)


def unlearning_tradeoff(table: pd.DataFrame, retained: float) -> plt.Figure:
    """Residual recall against retain recall: a mark for the other modality, a dash for the unlearned one.

    `table` has unlearned, method, retain, own, other; left of the line `retained` people were lost. Marks that would
    hide each other are moved apart a little, sideways.
    """
    ylabel = "forgotten names recalled\n(mark: other modality; dash: unlearned)"
    figure, (panels,) = facets((10.6, 4.6), UNLEARNED.values(), [ylabel], recall="xy")
    marks = dict(zip(table["method"].unique(), cycle("oXsPD^v<>phd*H"), strict=False))
    colours = dict(zip(marks, cycle(plt.get_cmap("tab20").colors), strict=False))
    left = min(table["retain"].min(), retained) - 0.02
    for axes, _, shown in by_modality(panels, table, "unlearned"):
        crowd = shown.groupby([shown["retain"].round(2), shown["other"].round(1)]).cumcount()
        shown = shown.assign(x=shown["retain"] - crowd * 0.018 * (1.02 - left))
        for method, own, across, x in shown[["method", "own", "other", "x"]].itertuples(index=False):
            axes.plot([x, x], [own, across], color=colours[method], lw=1.2, zorder=1)
            axes.plot(x, own, color=colours[method], marker="_", ms=9, mew=2)
            mark = {"marker": marks[method], "ms": 7, "mec": "black", "mew": 0.5, "ls": "none"}
            axes.plot(x, across, color=colours[method], label=REFERENCES.get(method, method), **mark)
        axes.set_xlabel("retained names recalled (worse modality)")
        axes.axvline(retained, label="5 points below before", **DOTTED)
    axes.set_xlim(left, 1.015)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return with_legend(figure, columns=5)


def unlearning_attacks(table: pd.DataFrame) -> plt.Figure:
    """What each attack brings back, by method: a row of panels an unlearned modality."""
    kinds, methods = table["attack"].unique(), table["method"].unique()
    figure, grid = facets((2.6 * len(kinds) + 1.4, 0.56 * len(methods) + 2), kinds, YLABELS, recall="")
    rows = table.rename(columns={"back": "estimate"}).set_index("method")
    for panels, _, own in by_modality(grid, rows, "unlearned"):
        for axes, kind in zip(panels, kinds, strict=True):
            row_axis(axes, [REFERENCES.get(m, m) for m in methods])
            asked_rows(axes, methods, own[own["attack"] == kind], label=FORGOTTEN, ms=4)
            axes.axvline(0, color="0.3", lw=0.8)
            percent(axes, "x")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.1), max(high, 0.1))  # where nothing changed, too, the axis has a scale
    axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel("change of the share of forgotten names recalled, in percentage points", fontsize=9)
    return with_legend(figure)
