"""Figures of notebook 07: the mechanism."""

from collections.abc import Iterator
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from xmem_utils.mechanism.measures import BEGINNINGS
from xmem_utils.params import MODALITIES, other
from xmem_utils.plots.parts import (
    DOTTED,
    GREEN,
    HOLLOW,
    WORDS,
    by_modality,
    dots,
    facets,
    look,
    percent,
    row_axis,
    with_legend,
)

OWN_STILL = {"color": "0.5", "marker": "v", **HOLLOW}
BEFORE, OF_FIGURES = "before memorizing", "public figures"  # models of the table beside those that memorized
QUESTIONS = {  # by measure
    "lens reciprocal rank": "Logit lens: reciprocal rank\nof the name's first token",
    "retrieved": "Own state in the other modality\nis the nearest (share of people)",
    "probe": "Linear probe tells who is\nshown (share of views)",
    "patched: name": "Name said by the patched\ntarget run (share of people)",
}
GREY = {"label": "target, before anything is memorized", "color": "0.45", "lw": 1.4, "ls": (0, (4, 1.5)), "marker": "x",
        "ms": 4, "zorder": 1.5}  # fmt: skip


def _series(source: str) -> Iterator[tuple[int, str, str, str, dict]]:
    """What is drawn as lines with bands: panel, measure, given, asked, look."""
    target = other(source)
    for asked in (source, target):
        yield 0, "lens reciprocal rank", "", asked, look(asked, asked, "shown {asked}")
    for panel, measure in ((1, "retrieved"), (2, "probe")):
        yield panel, measure, source, target, look(target, target, "shown {asked}")
        for asked in (source, target):
            yield panel, measure, asked, asked, look(asked, label="compared or learned within {asked}", **HOLLOW)
    for measure, words, options in (
        ("patched: name", "the person's own source states: their name", {"color": "black", "marker": "D"}),
        ("another's: that name", "another person's: that person's name", {"color": GREEN, "marker": "^"}),
        ("another's: own first token", "another person's: first token of the shown person's name, still", OWN_STILL),
    ):
        yield 3, measure, source, target, {"label": f"patched with {words}", **options}


def _of(rows: pd.DataFrame, measure: str, given: str, asked: str) -> pd.DataFrame:
    return rows.query("measure == @measure and given == @given and query == @asked").sort_values("layer")


def mechanism(table: pd.DataFrame, baseline: str) -> plt.Figure:
    """What answers, a row a source: where the name is read out, from where on source states bring it back, and what its
    first token decides; the baseline beside the best method and the base model before memorizing."""
    titles = [QUESTIONS["lens reciprocal rank"], QUESTIONS["patched: name"], "Share of unseen views"]
    ylabels = [f"{WORDS[s]} → {WORDS[other(s)]}" for s in MODALITIES]
    figure, grid = facets((13.2, 6.4), titles, ylabels, sharex=False, sharey=False)
    for (lens, patch, first), source, own in by_modality(grid, table):
        models = [m for m in dict.fromkeys(own["model"]) if m not in (BEFORE, OF_FIGURES)]
        of, target = dict(list(own.groupby("model"))), other(source)
        for model in models:
            line = {"lw": 1.8, "ms": 4, **({} if model == baseline else HOLLOW)}
            for asked in (source, target):
                words = "baseline" if model == baseline else "best method"
                _band(
                    lens,
                    _of(of[model], "lens reciprocal rank", "", asked),
                    look(asked, asked, f"{words}, shown {{asked}}", **line),
                )
        lens.plot(*_of(of[BEFORE], "lens reciprocal rank", "", target)[["layer", "estimate"]].to_numpy().T, **GREY)
        rows = of[baseline]
        for measure in ("patched: name", "another's: that name"):
            options = next(o for _, name, _, _, o in _series(source) if name == measure)
            _band(patch, _of(rows[rows["layer"] > 0], measure, source, target), {**options, "lw": 1.8, "ms": 4})
        for asked, words, line in ((source, "source", "-."), (target, "target", "--")):
            level = _of(rows, "recalled", "", asked)["estimate"].iloc[0]
            patch.axhline(level, label=f"{words} recall, not patched", color="0.25", lw=1, ls=line)
        y = row_axis(first, [fill(words, 16) for words in BEGINNINGS])  # as wide as numbers need, so are the others
        for model, shift in ((baseline, -0.15), *((m, 0.15) for m in models if m != baseline)):
            own_marks = of[model][(of[model]["query"] == target) & of[model]["measure"].isin(BEGINNINGS)]
            marks = own_marks.set_index("measure").reindex(BEGINNINGS)
            words = "baseline" if model == baseline else "best method"
            options = {} if model == baseline else {"mfc": "white"}
            dots(first, marks, y + shift, **look(target, label=f"{words}, shown {{asked}}", **options))
        percent(first, "x")
        first.set_xlim(-0.04, 1.06)
        for axes, measure in ((lens, "lens reciprocal rank"), (patch, "patched: name")):
            chance = own.loc[own["measure"] == measure, "chance"].iloc[0]
            axes.axhline(chance, label="chance", **DOTTED)
            axes.set(xlabel="layer", ylim=(-0.04, 1.06))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return with_legend(figure, columns=3)


def _band(axes: plt.Axes, rows: pd.DataFrame, options: dict) -> None:
    """Estimates by layer with their intervals as a band."""
    axes.plot(rows["layer"], rows["estimate"], **options)
    axes.fill_between(rows["layer"], rows["low"], rows["high"], color=options["color"], alpha=0.18, lw=0)


def mechanism_controls(table: pd.DataFrame) -> plt.Figure:
    """All four questions by layer, for every (model, source) of `table`, in its order; bands are 95 % intervals.

    `table` is that of `mechanism.tables.estimates`. The model before memorizing has no row: it is a grey line beside
    those that memorized.
    """
    before = table[table["model"] == BEFORE]
    models = list(table.drop(before.index).groupby(["source", "model"], sort=False))
    ylabels = [f"{model}\n{WORDS[s]} → {WORDS[other(s)]}" for (s, model), _ in models]
    figure, grid = facets((11.4, 1.9 * len(models) + 1.4), list(QUESTIONS.values()), ylabels, "layer")
    for panels, ((source, model), rows) in zip(grid, models, strict=True):
        for panel, measure, given, asked, options in _series(source):
            own = _of(rows[rows["layer"] > 0], measure, given, asked)
            _band(panels[panel], own, options | {"lw": 1.6, "ms": 4})
        for asked, words, line in ((source, "source", "-."), (other(source), "target", "--")):
            level = _of(rows, "recalled", "", asked)["estimate"].iloc[0]
            panels[3].axhline(level, label=f"{words} recall, not patched", color="0.25", lw=1, ls=line)
        for axes, measure in zip(panels, QUESTIONS, strict=True):
            given = "" if measure == "lens reciprocal rank" else source
            own = _of(before[before["source"] == source], measure, given, other(source))
            if model != OF_FIGURES and measure != "patched: name":
                axes.plot(own["layer"], own["estimate"], **GREY)
            chance = rows.loc[rows["measure"] == measure, "chance"].iloc[0]
            axes.axhline(chance, label="chance", **DOTTED)
            axes.title.set_size(10)
            axes.yaxis.label.set_size(9.5)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle("What every layer holds of a name", fontsize=11)
    return with_legend(figure, columns=3)
