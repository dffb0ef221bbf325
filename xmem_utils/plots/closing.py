"""Figures of notebook 07: ways to close the gap."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd

from xmem_utils.mitigation.names import BASELINE, BASELINE_START, FRESH
from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.parts import (
    BAR,
    COLOURS,
    DOTTED,
    HOLLOW,
    RECALLED,
    WORDS,
    by_modality,
    by_quantity,
    dots,
    facets,
    look,
    percent,
    row_axis,
    with_legend,
)
from xmem_utils.stats import REVERSED, SUPPORTED

UNTRAINED = {"before": "base model", "as memorized": "as memorized"}  # what was there before
SIGNS = {SUPPORTED: ("^", "above it in all replicates, p < 0.05"), REVERSED: ("v", "below it likewise")}  # by verdict
SIGNS |= {"not memorized": ("x", "not memorized")}


def in_order(methods: Iterable[str]) -> list[str]:
    """What was there before first, what trains from the start last, after what it is held against."""
    return sorted(dict.fromkeys(methods), key=lambda m: ([*UNTRAINED, m].index(m), m in FRESH))


def mitigation(table: pd.DataFrame, compared: pd.DataFrame) -> plt.Figure:
    """Source recall, target recall, perception ceiling and public figures still known, a row a method.

    A triangle beside the method: target recall differs from that of the plain training that it is held against (dotted
    line; Holm), up or down; a cross: it did not memorize. The first rows are the base model and what had been memorized
    before.
    """
    methods = in_order(table["method"])
    start = sum(m not in FRESH for m in methods) - 0.5  # below this line: trained from the start
    figure, (panels,) = facets((11.5, 0.33 * len(methods) + 1.6), xlabel="named exactly", recall="x")
    known = {"label": "public figures, asked with {asked}", "color": "0.35", "ms": 3, "capsize": 0, "zorder": 2}
    ceiling = {"label": "perception ceiling, asked with {asked}", "marker": "D", "mfc": "none", "zorder": 2.5}
    for axes, source, own in by_modality(panels, table):
        target, y = other(source), row_axis(axes, [UNTRAINED.get(m, m) for m in methods])
        rows = by_quantity(own, "method", methods)
        recalled = rows["target recall"]["estimate"]
        axes.hlines(y, recalled, rows["source recall"]["estimate"], color="0.8", lw=2, zorder=1)
        axes.axhline(start, color="0.75", lw=0.8, zorder=0)
        against = DOTTED | {"color": COLOURS[target], "label": "the baseline that a row is held against"}
        axes.vlines(recalled.get(BASELINE, []), 0.5, start, **against)
        axes.vlines(recalled.get(BASELINE_START, []), start, len(methods), **against)
        dots(axes, rows["source recall"], y, **look(source))
        dots(axes, rows["target recall"], y, **look(target, ms=6))
        dots(axes, rows["perception ceiling"], y, **look(target, **ceiling))
        for asked, shift in ((source, 0.2), (target, 0.36)):
            if f"public figures, {asked}" in rows:
                dots(axes, rows[f"public figures, {asked}"], y + shift, **look(asked, **known))
        compared_here = compared[(compared["source"] == source) & (compared["measure"] == "said")]
        compared_here = compared_here[compared_here["method"] != BASELINE_START]
        for verdict, (marker, words) in SIGNS.items():
            at = [methods.index(m) for m in compared_here.loc[compared_here["verdict"] == verdict, "method"]]
            if at:
                axes.plot([1.06] * len(at), at, ls="none", marker=marker, ms=6, color="0.2", label=words)
        axes.set_xlim(right=1.09)
    return with_legend(figure, columns=3)


def mitigation_pairs(table: pd.DataFrame) -> plt.Figure:
    """Target recall of the paired and of the unpaired people, against how many are paired (not to scale)."""
    titles = [f"Names from {WORDS[m]}, asked with {WORDS[other(m)]}" for m in MODALITIES]
    figure, (panels,) = facets((10.4, 3.8), titles, [RECALLED], "people of whom there are nameless pairs")
    counts = sorted(table["paired"].unique())
    for axes, source, own in by_modality(panels, table.sort_values("paired")):
        for who, line in (("paired", {"ls": "-"}), ("not paired", HOLLOW)):
            rows = own[own["group"] == who].set_index("paired").reindex(counts)
            label = f"people who are {who}, asked with {{asked}}"
            dots(axes, rows, range(len(counts)), "y", **look(other(source), label=label, **line))
        axes.axhline(rows.loc[0, "estimate"], label="nobody is paired: baseline", **DOTTED)
    axes.set_xticks(range(len(counts)), [str(n) for n in counts])
    return with_legend(figure, columns=3)


def decomposition(table: pd.DataFrame) -> plt.Figure:
    """The gap of every method in its perception part and its recall part."""
    methods = in_order(table["method"])
    figure, (panels,) = facets((11.0, 0.28 * len(methods) + 1.5), xlabel="recall lost: share of names", recall="")
    for axes, _, own in by_modality(panels, table):
        y = row_axis(axes, methods)
        rows = by_quantity(own, "method", methods)
        for part, shift, colour in (("perception part", -0.19, "#C9C9C9"), ("recall part", 0.19, "#555555")):
            axes.barh(y + shift, rows[part]["estimate"], 0.36, color=colour, label=part, **BAR)
            dots(axes, rows[part], y + shift, fmt="none", ecolor="black", lw=0.8, capsize=2)
        dots(axes, rows["gap"], y, label="gap: both together", marker="D", ms=4.5, color="0.1", zorder=4)
        axes.axvline(0, color="0.2", lw=0.8)
        percent(axes, "x")
    return with_legend(figure)
