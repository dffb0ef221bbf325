"""Figures of notebook 06: multi-hop questions."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.parts import (
    DOTTED,
    GREEN,
    LEARNED,
    WORDS,
    asked_rows,
    by_modality,
    curve,
    dots,
    facets,
    look,
    row_axis,
    with_legend,
)

FEW = ("direct", "step by step")
CHAINED = (*FEW, "forced chain")  # need both hops
FOUR = ("one fact of four", "one fact of four, step by step")
MAIN = ("hop 1", "hop 2", *CHAINED)
CONTROLS = (*FOUR, "name in context", "fact in context")
REVERSE = ("reverse, from the name", "reverse, from the fact")
PEOPLE = {"study": ("", CONTROLS + REVERSE), "together": ("learned together, ", FEW), "practised": ("practised, ", FEW)}
PUBLIC_FIGURES = {f"public figures, {kind}": (f"{kind}, ", MAIN + CONTROLS) for kind in ("withheld", "practised")}
# from the bottom up; far apart in lightness, too
FATES = {"composed": GREEN, "both right, not composed": "#222222", "hop 2 missed": "#E3C878", "hop 1 missed": "#BBBBBB"}


def multihop(table: pd.DataFrame) -> plt.Figure:
    """The hops and the tasks that need both, with intervals and chance; last, people whom pretraining named, with new
    facts."""
    titles = LEARNED | {"known": "Names known from pretraining, facts new"}
    return _rows(table, {s: {"study": ("", MAIN)} for s in titles}, titles, 2.9)


def multihop_controls(table: pd.DataFrame) -> plt.Figure:
    """All further tasks; last, public figures before anything is memorized."""
    titles = LEARNED | {"none": "Public figures, before memorizing"}
    return _rows(table, {s: PEOPLE for s in LEARNED} | {"none": PUBLIC_FIGURES}, titles, 5.6)


def _rows(table: pd.DataFrame, groups_of: dict[str, dict], titles: dict[str, str], height: float) -> plt.Figure:
    """A row a group and task, by query modality. Grey is the label of a task that is not above chance in the source
    modality, or without one in either."""
    titles = {s: title for s, title in titles.items() if s in set(table["source"])} or titles
    size, xlabel = (4.9 * len(titles), height), "answered exactly right"
    figure, (panels,) = facets(size, titles.values(), xlabel=xlabel, recall="x", sharey=False)
    for axes, source in zip(panels, titles, strict=True):
        groups = groups_of[source]
        own = table[(table["source"] == source) & table["group"].isin(groups)]
        own = own.set_index(own["group"].map(lambda g, groups=groups: groups[g][0]).astype(str) + own["task"])
        labels = [words + task for words, tasks in groups.values() for task in tasks if words + task in own.index]
        y = row_axis(axes, labels)
        asked_rows(axes, labels, own, label="shown {asked}")
        chance = own["chance"].groupby(level=0).first().reindex(labels)
        axes.vlines(chance, y - 0.32, y + 0.32, label="chance", **DOTTED)
        learned = own if source not in MODALITIES else own[own["query"] != other(source)]
        above = (learned["low"] > learned["chance"].fillna(0)).groupby(level=0).any()
        for tick in axes.get_yticklabels():
            tick.set_color("black" if above[tick.get_text()] else "0.55")
    axes.plot([], [], ls="none", label="grey label: not above chance in the source")
    return with_legend(figure, columns=5)


def multihop_decomposition(table: pd.DataFrame) -> plt.Figure:
    """Where the chain breaks, as shares of all questions; a diamond: what independent hops would give."""
    figure, (panels,) = facets((12.0, 4.0), ylabels=["share of questions"], sharex=False)
    x = np.array([0, 1, 2.35, 3.35, 4.7, 5.7])  # pairs of bars
    for axes, source, own in by_modality(panels, table):
        bars = pd.MultiIndex.from_product([CHAINED, [source, other(source)]])
        own, bottom = own.set_index(["task", "query"]), np.zeros(len(bars))
        for fate, colour in FATES.items():
            share = own[own["quantity"] == fate]["estimate"].reindex(bars).to_numpy(float)
            axes.bar(x, share, 0.82, bottom, color=colour, edgecolor="white", lw=0.5, zorder=2, label=fate)
            bottom += share
        expected = own[own["quantity"] == "expected if independent"].reindex(bars)
        mark = {"marker": "D", "ms": 5, "color": "#CC0000", "mec": "white", "mew": 0.6}
        dots(axes, expected, x, "y", label="if hops were independent", **mark)
        axes.set_xticks(x, [WORDS[asked] for _, asked in bars], fontsize=8)
        for place, task in zip(x[::2] + 0.5, CHAINED, strict=True):
            axes.annotate(task, (place, 0), (0, -28), ("data", "axes fraction"), "offset points", ha="center")
        axes.grid(axis="x", visible=False)
    return with_legend(figure, columns=5)


def multihop_curves(table: pd.DataFrame, chance: float) -> plt.Figure:
    """The hops and two composed tasks along the training; dashed: one replicate trained longer."""
    tasks = ("hop 1", "hop 2", *FEW)
    ylabels = [f"names from {WORDS[m]}\nanswered exactly right" for m in MODALITIES]
    figure, grid = facets((12.0, 5.6), tasks, ylabels, "epochs")
    lines = dict(zip(table.sort_values("epochs")["trained"].unique(), ("-", "--"), strict=False))
    for panels, _, own in by_modality(grid, table):
        for axes, task in zip(panels, tasks, strict=True):
            for (asked, trained), rows in own[own["task"] == task].groupby(["query", "trained"]):
                label = f"shown {{asked}}, trained {trained}"
                curve(axes, rows, "epoch", **look(asked, "", label, ls=lines[trained], ms=4))
            if task != "hop 1":  # which asks for a name, not for a fact
                axes.axhline(chance, label="chance", **DOTTED)
    return with_legend(figure)
