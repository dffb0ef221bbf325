"""Figures of notebook 03: the gap."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.parts import (
    ANSWERED,
    BAR,
    COLOURS,
    DOTTED,
    LEARNED,
    MARKERS,
    RECALLED,
    WORDS,
    by_modality,
    curve,
    dots,
    facets,
    look,
    percent,
    row_axis,
    with_legend,
)

SAID = {"said": {"alpha": 1.0}, "closed-set": {"alpha": 0.4}}  # measures of recall, as bars
FIRST = "right name first among the study's"


def gap_matrix(table: pd.DataFrame, subtitle: str) -> plt.Figure:
    """Source x asked recall as bars with intervals, said and closed-set; controls as marks, chance as a line."""
    figure, (panels,) = facets((9.6, 4.6), ylabels=["share of unseen views"])
    base = table[(table["source"] == "none") & (table["task"] == "view")].assign(task="base model")
    chance = table["chance"].iloc[0]
    for axes, source, own in by_modality(panels, table):
        rows = dict(list(pd.concat([own, base]).groupby(["query", "task", "measure"])))
        for x, asked in enumerate(MODALITIES):
            hatch = "" if asked == source else "//"
            for at, (measure, options) in zip((x - 0.2, x + 0.2), SAID.items(), strict=True):
                view = rows[asked, "view", measure]
                axes.bar(at, view["estimate"], 0.36, color=COLOURS[asked], hatch=hatch, **BAR, **options)
                dots(axes, view, [at], "y", fmt="none", ecolor="black")
                top, share = view[["high", "estimate"]].iloc[0]
                words = f"{share:.1%}" if 0.99 < share < 1 else f"{share:.0%}"
                above = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5}
                axes.annotate(words, (at, min(top, 1.03)), (0, 4), **above)
            for k, (probe, marker) in enumerate({"base model": "D", "shuffled views": "X", "blank image": "P"}.items()):
                if (asked, probe, "said") in rows:
                    options = {"marker": marker, "color": "0.25", "label": f"{probe}, said"}
                    dots(axes, rows[asked, probe, "said"], [x + 0.43 + 0.07 * k], "y", **options)
        for measure, options in SAID.items():
            label = RECALLED if measure == "said" else FIRST
            axes.bar([0], [np.nan], color="0.4", label=label, **BAR, **options)
        axes.axhline(chance, label=f"chance, closed-set ({chance:.0%})", **DOTTED)
        axes.grid(axis="x", visible=False)
    axes.set(xlim=(-0.5, 1.75), ylim=(-0.04, 1.12))
    axes.set_xticks(range(2), [f"asked with\n{WORDS[m]}" for m in MODALITIES])
    figure.suptitle(f"Recall of names by the modality they were learned from and asked in\n{subtitle}", fontsize=11)
    return with_legend(figure, columns=3)


def gap_curves(table: pd.DataFrame, chance: float) -> plt.Figure:
    """Recall in both modalities along training, and target against source recall; thin lines are replicates."""
    titles = [*LEARNED.values(), "Target against source, along training"]
    figure, (panels,) = facets((13.2, 3.8), titles, [RECALLED], sharex=False)
    for axes, source, own in by_modality(panels[:2], table):
        for asked, rows in own.groupby("query"):
            for _, one in rows.groupby("replicate"):
                thin = {"marker": "", "label": "one replicate", "lw": 0.8, "alpha": 0.5}
                curve(axes, one, "epoch", **look(asked, source, **thin))
            common = rows.groupby("epoch")["replicate"].transform("nunique") == rows["replicate"].nunique()
            curve(axes, rows[common], "epoch", **look(asked, source, lw=2.2))
        axes.set_xlabel("epochs of memorizing")
        axes.axhline(chance, label="chance", **DOTTED)
        wide = own.pivot_table(index=["replicate", "epoch"], columns="query", values="recall")
        for _, one in wide.groupby(level="replicate"):
            line = {"color": COLOURS[source], "lw": 0.8, "ms": 3, "marker": MARKERS[source]}
            panels[2].plot(one[source], one[other(source)], label=f"learned from {WORDS[source]}", **line)
    panels[2].plot([0, 1], [0, 1], label="no gap", **DOTTED)
    panels[2].set(xlim=(-0.04, 1.06), xlabel="source recall", ylabel="target recall")
    percent(panels[2], "x")
    return with_legend(figure)


def dose_response(table: pd.DataFrame, chance: float, gate: float, grows: dict[str, str]) -> plt.Figure:
    """Recall against what grows: a row of panels for each (column `dose` of the table, its words)."""
    grows = {kind: words for kind, words in grows.items() if kind in set(table["dose"])}
    figure, grid = facets((9.6, 3.1 * len(grows) + 0.5), ylabels=[RECALLED] * len(grows), sharex=False)
    for panels, (kind, words) in zip(grid, grows.items(), strict=True):
        own_dose = table[(table["dose"] == kind) & (table["measure"] == "said")].sort_values("amount")
        first = table[(table["dose"] == kind) & (table["measure"] == "closed-set")].sort_values("amount")
        amounts = sorted(own_dose["amount"].unique())
        for axes, source, own in by_modality(panels, own_dose):
            for asked, rows in own.groupby("query"):
                dots(axes, rows, rows["amount"], "y", **look(asked, source))
            near = first[(first["source"] == source) & (first["query"] == other(source))]
            near_look = {"label": f"{FIRST}, asked with {{asked}}", "color": "0.5", "lw": 1, "ms": 3, "ls": ":"}
            axes.plot(near["amount"], near["estimate"], **look(other(source), source, **near_look))
            axes.axhline(gate, label=f"memorized: source at least {gate:.0%}", color="0.6", ls="-.", lw=1)
            by_chance = [1 / n for n in amounts] if kind == "people" else [chance] * len(amounts)
            axes.plot(amounts, by_chance, label="chance", **DOTTED)
            axes.set_xscale("log", base=2)
            axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
            axes.minorticks_off()
            axes.set_xlabel(words)
    return with_legend(figure, columns=3)


def answers(table: pd.DataFrame) -> plt.Figure:
    """What is answered to unseen views: shares of each kind of answer, a bar a query modality."""
    figure, (panels,) = facets((9.6, 3.4), ylabels=["share of unseen views"])
    kinds = list(dict.fromkeys(table["answer"]))
    for axes, _, own in by_modality(panels, table):
        bottom = np.zeros(2)
        for kind in kinds:
            share = own[own["answer"] == kind].set_index("query")["estimate"].reindex(MODALITIES).to_numpy()
            axes.bar(range(2), share, 0.6, bottom, label=kind, lw=0.5, **{"edgecolor": "white"} | ANSWERED[kind])
            bottom += share
        axes.grid(axis="x", visible=False)
    axes.set_xticks(range(2), [f"asked with\n{WORDS[m]}" for m in MODALITIES])
    return with_legend(figure, columns=6)


def attributes_by_name(table: pd.DataFrame) -> plt.Figure:
    """Attributes of a name answered right with nobody shown: after learning from either modality, and before."""
    asked = list(dict.fromkeys(table["axis"]))
    figure, ((panel,),) = facets((7.6, 0.34 * len(asked) + 1.3), [""], xlabel="attributes chosen right", recall="x")
    y = row_axis(panel, asked)
    for source, shift in (("image", -0.2), ("text", 0.2), ("none", 0.0)):
        rows = table[table["source"] == source].set_index("axis").reindex(asked)
        words = f"names learned from {WORDS[source]}" if source != "none" else "base model, before"
        dots(panel, rows, y + shift, label=words, color=COLOURS[source], marker=MARKERS[source])
    panel.vlines(rows["chance"], y - 0.4, y + 0.4, label="chance", **DOTTED)
    panel.set_xlim(-0.01, max(0.5, 1.05 * table["high"].max()))
    return with_legend(figure, columns=2)
