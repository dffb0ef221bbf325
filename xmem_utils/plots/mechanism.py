"""The figure of the mechanism: a row for each model and source, a panel for each question asked of every layer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xmem_utils.mechanism.measures import (
    BEFORE,
    LENS,
    OTHERS,
    OTHERS_OWN,
    OWN,
    PROBE,
    PUBLIC_FIGURES,
    RECALLED,
    RETRIEVED,
)
from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS

TITLES = {
    "lens": "Logit lens: reciprocal rank\nof the name's first token",
    "retrieval": "Own state in the other modality\nis the nearest (share of people)",
    "probe": "Linear probe tells who is\nshown (share of views)",
    "patching": "Name said by the patched\ntarget run (share of people)",
}
OTHER_PERSON = "#009E73"
WITHIN = dict(ls="--", mfc="white")  # a comparison inside one modality
BEFORE_LINE = dict(color="0.45", lw=1.4, ls=(0, (4, 1.5)), marker="x", ms=4, zorder=1.5)
GREY_LINE = dict(color="0.25", lw=1)


def mechanism(table: pd.DataFrame, subtitle: str = "") -> Figure:
    """All four questions by layer, for every (model, source) of `table`, in its order; bands are 95 % intervals.

    `table` is that of `mechanism.tables.estimates`. The model before memorizing has no row: it is a grey line beside
    those that memorized.
    """
    before = table[table["model"] == BEFORE]
    rows = list(table.drop(before.index).groupby(["source", "model"], sort=False))
    rows.sort(key=lambda row: row[0][1] == PUBLIC_FIGURES)
    figure, panels = plt.subplots(
        len(rows), len(TITLES), figsize=(11.4, 1.9 * len(rows) + 1.4), sharex=True, sharey=True, squeeze=False
    )
    for line, ((source, model), own) in zip(panels, rows, strict=True):
        target = other(source)
        _lens(line[0], own)
        _retrieval(line[1], own, source, target)
        _probe(line[2], own, source, target)
        _patching(line[3], own, source, target)
        if model != PUBLIC_FIGURES:
            _before(line, before[before["source"] == source], source, target)
        for axes, measure in zip(line, (LENS, RETRIEVED, PROBE, OWN), strict=True):
            chance = own.loc[own["measure"] == measure, "chance"].iloc[0]
            axes.axhline(chance, color="0.4", ls=":", lw=1.2, zorder=1)
        line[0].set_ylabel(f"{model}\n{MODALITY_WORDS[source]} → {MODALITY_WORDS[target]}", fontsize=9.5)
    for axes, title in zip(panels[0], TITLES.values(), strict=True):
        axes.set_title(title, fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("layer")
    axes = panels[0, 0]
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle("What every layer holds of a name" + (f"\n{subtitle}" if subtitle else ""), fontsize=11)
    figure.tight_layout()
    figure.legend(handles=_legend(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=9)
    return figure


def _line(axes: Axes, rows: pd.DataFrame, color: str, **options) -> None:
    """Estimates by layer with a band from `low` to `high`."""
    rows = rows[rows["layer"] > 0].sort_values("layer")
    axes.plot(rows["layer"], rows["estimate"], **{"color": color, "lw": 1.6, "ms": 4, **options})
    axes.fill_between(rows["layer"], rows["low"], rows["high"], color=color, alpha=0.18, lw=0)


def _of(rows: pd.DataFrame, measure: str, given: str, asked: str) -> pd.DataFrame:
    return rows[(rows["measure"] == measure) & (rows["given"] == given) & (rows["asked"] == asked)]


def _before(line: Sequence[Axes], rows: pd.DataFrame, source: str, target: str) -> None:
    """What the target's states held before anything was memorized: no band, to be told apart from what was learned."""
    for axes, measure, given in zip(line, (LENS, RETRIEVED, PROBE), ("", source, source), strict=False):
        own = _of(rows, measure, given, target).sort_values("layer")
        axes.plot(own["layer"], own["estimate"], **BEFORE_LINE)


def _lens(axes: Axes, rows: pd.DataFrame) -> None:
    for asked in MODALITIES:
        _line(axes, _of(rows, LENS, "", asked), COLOURS[asked], marker=MARKERS[asked])


def _retrieval(axes: Axes, rows: pd.DataFrame, source: str, target: str) -> None:
    """The target's states among the source's; dashed, each modality's among its own, from other views."""
    _line(axes, _of(rows, RETRIEVED, source, target), COLOURS[target], marker=MARKERS[target])
    for asked in (source, target):
        _line(axes, _of(rows, RETRIEVED, asked, asked), COLOURS[asked], marker=MARKERS[asked], **WITHIN)


def _probe(axes: Axes, rows: pd.DataFrame, source: str, target: str) -> None:
    """Learned from the source, asked in the target; dashed, learned and asked in one modality."""
    _line(axes, _of(rows, PROBE, source, target), COLOURS[target], marker=MARKERS[target])
    for asked in (source, target):
        _line(axes, _of(rows, PROBE, asked, asked), COLOURS[asked], marker=MARKERS[asked], **WITHIN)


def _patching(axes: Axes, rows: pd.DataFrame, source: str, target: str) -> None:
    """Own states: own name; another's: that name, and the own's first token; across: not patched."""
    for asked, style in ((source, "-."), (target, "--")):
        axes.axhline(float(_of(rows, RECALLED, "", asked)["estimate"].iloc[0]), ls=style, **GREY_LINE)
    _line(axes, _of(rows, OWN, source, target), "black", marker="D")
    _line(axes, _of(rows, OTHERS, source, target), OTHER_PERSON, marker="^")
    _line(axes, _of(rows, OTHERS_OWN, source, target), "0.5", marker="v", ls="--", mfc="white")


def _legend() -> list[plt.Line2D]:
    def line(label: str, **options) -> plt.Line2D:
        return plt.Line2D([], [], label=label, **{"ms": 5, **options})

    seen = [line(f"shown {MODALITY_WORDS[m]}", color=COLOURS[m], marker=MARKERS[m]) for m in MODALITIES]
    return [
        *seen, line("compared or learned within one modality", color="0.3", marker="o", **WITHIN),
        line("target, before anything is memorized", **BEFORE_LINE),
        line("patched with the person's own source states: their name", color="black", marker="D"),
        line("with another person's: that person's name", color=OTHER_PERSON, marker="^"),
        line("with another person's: the own name's first token still", color="0.5", marker="v", ls="--", mfc="white"),
        line("source recall, not patched", ls="-.", **GREY_LINE),
        line("target recall, not patched", ls="--", **GREY_LINE),
        line("chance", color="0.4", ls=":"),
    ]  # fmt: skip
