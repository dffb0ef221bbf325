"""Figures of notebook 05: unlearning; a row or a mark a method."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.parts import (
    ANSWERED,
    COLOURS,
    DOTTED,
    SHIFT,
    UNDECIDED,
    VERDICTS,
    WORDS,
    asked_rows,
    by_modality,
    curve,
    dots,
    facets,
    look,
    percent,
    row_axis,
    with_legend,
)
from xmem_utils.stats import named

REFERENCES = {"before": "before unlearning", "retain-only": "never learned (retain-only)"}
UNLEARNED = {m: f"Unlearned from {WORDS[m]}" for m in MODALITIES}
YLABELS = [f"unlearned from\n{WORDS[m]}" for m in MODALITIES]
FORGOTTEN = "forgotten: name said, with interval"


def unlearning_matrix(table: pd.DataFrame, answers: pd.DataFrame, unsettled: set[str]) -> plt.Figure:
    """What the forgotten are answered (bars), said with its interval (dots), and recall of the retained (dashes).

    A row of panels for each arm, a column for each pair of modalities unlearned and asked. `table` is `tables.recall`,
    `answers` the kinds of answer in `tables.metrics`, both with column arm; methods in `unsettled` kept no retain
    recall in the search.
    """
    methods = sorted(table["method"].unique(), key=lambda m: [*REFERENCES, m].index(m))
    labels = {m: m for m in methods} | {m: f"{m} *" for m in unsettled} | REFERENCES
    columns = [(unlearned, asked) for unlearned in MODALITIES for asked in (unlearned, other(unlearned))]
    titles = [f"unlearned from {WORDS[u]},\nasked with {WORDS[asked]}" for u, asked in columns]
    arms = [arm for arm in ("learned from both", "learned from one") if arm in set(table["arm"])]
    size = (13, (0.3 * len(methods) + 0.4) * len(arms) + 1.4)
    figure, grid = facets(size, titles, arms, xlabel="share of views", recall="x")
    for panels, arm in zip(grid, arms, strict=True):
        for axes, (unlearned, asked) in zip(panels, columns, strict=True):
            y = row_axis(axes, [labels[m] for m in methods])
            own, said = (
                t[(t["arm"] == arm) & (t["unlearned"] == unlearned) & (t["query"] == asked)].set_index("method")
                for t in (table, answers)
            )
            left = np.zeros(len(methods))
            for kind, bar in ANSWERED.items():
                share = said.loc[said["metric"] == f"answers: {kind}", "estimate"].reindex(methods).fillna(0).to_numpy()
                axes.barh(y, share, 0.72, left, **bar, label=f"forgotten, answered: {kind}", lw=0, zorder=2)
                left += share
            dots(axes, own[own["group"] == "forget"].reindex(methods), y, color="black", label=FORGOTTEN, ms=4)
            retained = own.loc[own["group"] == "retain", "estimate"].reindex(methods)
            axes.plot(retained, y, ls="none", marker="|", ms=9, mew=2.5, color="#0072B2", label="retained: name said")
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

    `table` has unlearned, method, retain, own, other; left of the line `retained` people were lost; what lost half of
    them is in the table alone. Marks that would hide each other are moved apart a little, sideways.
    """
    table = table[table["retain"] > retained - 0.5]
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
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # whole percents
    return with_legend(figure, columns=5)


def unlearning_attacks(table: pd.DataFrame) -> plt.Figure:
    """What each attack brings back, by method: a row of panels an unlearned modality."""
    kinds, methods = table["attack"].unique(), table["method"].unique()
    figure, grid = facets((2.6 * len(kinds) + 1.4, 0.56 * len(methods) + 2), kinds, YLABELS, recall="")
    rows = table.rename(columns={"back": "estimate"}).set_index("method")
    for panels, _, own in by_modality(grid, rows, "unlearned"):
        for axes, kind in zip(panels, kinds, strict=True):
            row_axis(axes, [REFERENCES.get(m, m) for m in methods])
            asked_rows(axes, methods, own[own["attack"] == kind], label="forgotten people, asked with {asked}", ms=4)
            axes.axvline(0, color="0.3", lw=0.8)
            percent(axes, "x")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.1), max(high, 0.1))  # where nothing changed, too, the axis has a scale
    axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel("change of the share of forgotten names recalled, in percentage points", fontsize=9)
    return with_legend(figure)


def unlearning_frontier(points: pd.DataFrame, chosen: pd.DataFrame) -> plt.Figure:
    """Forgotten against retained, a mark a setting and number of steps, a panel a method; rings: what the rule chose.

    `points` is `frontier.frontier`; `chosen` has method, settings, steps. Settings in the shaded corner are admissible;
    those that lost half of the retained are in the table alone.
    """
    points = points[points["unlearned"].isin(MODALITIES) & (points["retain change"] > -0.5)]
    methods = list(dict.fromkeys(points["method"]))
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    size = (2.7 * columns + 0.6, 2.3 * lines + 0.6)
    figure, grid = facets(size, [""] * columns, ["forgotten names left"] * lines, recall="")
    rule = chosen.set_index("method")
    for axes in grid.flat[len(methods) :]:
        axes.set_visible(False)
    for axes, method in zip(grid.flat, methods, strict=False):
        own = points[points["method"] == method]
        taken = own[(own["settings"] == rule.loc[method, "settings"]) & (own["steps"] == rule.loc[method, "steps"])]
        axes.fill_between([-0.05, 0.02], -0.02, 0.1, color="0.9", zorder=0, label="admissible")
        for unlearned, rows in own.groupby("unlearned"):
            label = "unlearned from {asked}, a setting and number of steps"
            axes.plot(rows["retain change"], rows["own"], **look(unlearned, label=label, ms=2.5, alpha=0.5))
        ring = {"ls": "none", "marker": "o", "ms": 9, "mfc": "none", "mec": "black", "label": "chosen by the rule"}
        axes.plot(taken["retain change"], taken["own"], **ring)
        axes.set_title(method, fontsize=9)
        axes.set(xlim=(-0.52, 0.03), ylim=(-0.04, 1.04))
        percent(axes, "xy")
    figure.supxlabel("change of the retained names, worse modality", fontsize=9)
    return with_legend(figure)


def unlearning_transfer(table: pd.DataFrame) -> plt.Figure:
    """Which share of the forgetting reaches the other modality, a row a method, said and in bits of exposure.

    Marks: the setting that the rule chose, on the study's people. Pale lines: all admissible settings of the search; a
    tick is their median. At the right, the verdict over both modalities; grey where
    nothing can be said.
    """
    table = table.assign(method=table["method"].str.replace(r"^pooled.*", "pooled", regex=True))
    verdicts = table[table["unlearned"] == "either"].set_index(["measure", "method"])["verdict"].dropna()
    table = table[table["unlearned"].isin(MODALITIES)]
    methods = list(dict.fromkeys(table["method"]))
    names = {of: column for column, of in named("transfer", "estimate").items()}
    titles = ["names said", "bits of exposure above who never learned"]
    figure, (panels,) = facets((12.4, 0.45 * len(methods) + 1.6), titles, xlabel="forgetting transfer", recall="")
    for axes, (measure, own) in zip(panels, table.groupby("measure", sort=False), strict=True):
        y = row_axis(axes, methods)
        for place, method in zip(y, methods, strict=True):
            verdict = verdicts.get((measure, method), "").partition(":")[0]
            text = {"fontsize": 8, "va": "center", "color": VERDICTS.get(verdict, UNDECIDED)["color"]}
            axes.annotate(verdict, (1.01, place), xycoords=("axes fraction", "data"), **text)
        for unlearned in MODALITIES:
            rows = own[own["unlearned"] == unlearned].set_index("method").reindex(methods)
            at, pale = y + 1.6 * SHIFT[unlearned], {"color": COLOURS[unlearned], "alpha": 0.35, "zorder": 1.5}
            axes.hlines(at, rows["least"], rows["most"], lw=7, label=f"all settings, from {WORDS[unlearned]}", **pale)
            axes.plot(rows["median"], at, ls="none", marker="|", ms=9, color=COLOURS[unlearned])
            chosen = rows[list(names)].rename(columns=names)
            dots(axes, chosen, at, **look(unlearned, label="unlearned from {asked}, the chosen setting"))
        axes.axvline(1, label="the other modality forgets as much", **DOTTED)
        axes.axvline(0, color="0.3", lw=0.8)
        seen = table[["transfer", "least", "most"]].stack()
        axes.set_xlim(max(-1, min(-0.15, seen.min() - 0.05)), min(2, max(1.25, seen.max() + 0.05)))
        percent(axes, "x")
    return with_legend(figure, columns=3)


def unlearning_sequence(table: pd.DataFrame) -> plt.Figure:
    """Recall after each of several requests: of who was forgotten first, of who was forgotten last, of the retained.

    `table` is `tables.sequence`. Marks at the right: the same people forgotten at once.
    """
    methods, last = list(dict.fromkeys(table["method"])), int(table["requests"].max())
    figure, grid = facets((3.4 * len(methods) + 1.2, 6.2), methods, YLABELS, xlabel="requests met")
    first = {"label": "forgotten first, asked with {asked}", "ms": 4}
    retained = {"label": "retained, asked with {asked}", "color": "0.6", "ms": 2.5, "ls": "-", "zorder": 1.5}
    for panels, unlearned, rows in by_modality(grid, table, "unlearned"):
        for axes, method in zip(panels, methods, strict=True):
            own = rows[rows["method"] == method]
            whole = own["met"] == "at once"
            for asked, part in own[~whole].groupby("query"):
                for who, options in ((1, first | {"learned": unlearned}), (0, retained)):
                    line = part[part["asked"] == who].sort_values("requests")
                    axes.plot(line["requests"], line["estimate"], **look(asked, **options))
                newest = part[part["asked"] == part["requests"]]
                options = {"label": "forgotten last, asked with {asked}", "ms": 4, "mfc": "white", "ls": "none"}
                axes.plot(newest["requests"] + 0.08, newest["estimate"], **look(asked, **options))
            for asked, part in own[whole & (own["asked"] > 0)].groupby("query"):
                at_once = {"label": "all at once, asked with {asked}", "ms": 7, "alpha": 0.5}
                axes.plot(last + 0.5, part["estimate"].mean(), **look(asked, **at_once))  # as many people a request
            axes.set_xticks([*range(1, last + 1), last + 0.5], [*map(str, range(1, last + 1)), "at\nonce"])
    return with_legend(figure, columns=3)
