"""What all figures are made of: panels, estimates with intervals, learning curves, legends."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from xmem_utils import paths
from xmem_utils.memorization.names import ANSWERS
from xmem_utils.params import MODALITIES, VIEWS
from xmem_utils.stats import EQUIVALENT, INTERVAL, REVERSED, SUPPORTED, values

# Okabe-Ito colours; the marker repeats what the colour says, for who sees grey. "none": no view is shown
COLOURS = {"image": "#D55E00", "text": "#0072B2", "none": "0.35"}
MARKERS = {"image": "o", "text": "s", "none": "D"}
WORDS = VIEWS | {"none": "a name alone"}
SHIFT = {"image": -0.12, "text": 0.12, "none": 0.0}  # between two marks in a row
GREEN = "#009E73"
# by kind, as bars: neighbours differ in lightness as well
_BARS = ["#004D38", "#F0B429", "#BF5F97", "#B5DDF3", "white", "#222222"]
ANSWERED = {kind: {"color": colour} for kind, colour in zip(ANSWERS, _BARS, strict=True)}
ANSWERED["refusal"] |= {"edgecolor": "0.55", "hatch": "////"}
VERDICTS = {  # colour and mark
    SUPPORTED: {"color": GREEN, "marker": "o"},
    REVERSED: {"color": "#D55E00", "marker": "X"},
    EQUIVALENT: {"color": "#0072B2", "marker": "s"},
}
UNDECIDED = {"color": "0.45", "marker": "o", "mfc": "white"}
LEARNED = {m: f"Names learned from {WORDS[m]}" for m in MODALITIES}
RECALLED = "names recalled exactly"
DOTTED = {"color": "0.4", "ls": ":", "lw": 1.2, "zorder": 1}  # chance and the like
HOLLOW = {"ls": "--", "mfc": "white"}
BAR = {"edgecolor": "black", "lw": 0.5, "zorder": 2}


def style() -> None:
    """Set the look of every figure and table; call it once at the top of a notebook."""
    pd.set_option("display.html.use_mathjax", False)  # a name with $ is no formula
    look = {
        "figure.dpi": 100, "savefig.dpi": 160, "axes.spines.top": False, "axes.spines.right": False,
        "svg.hashsalt": "xmem", "svg.fonttype": "none", "legend.frameon": False,
        "axes.titlesize": 11, "axes.titlepad": 10,
    }  # fmt: skip
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.9, rc=look)


def save(figure: plt.Figure, name: str, table: pd.DataFrame) -> None:
    """Write `<name>.png`, `.svg` and `.csv` to `figures/`; the table holds every number drawn. Below the figure stands
    what its marks are, and of how many replicates."""
    save_table(name, table)
    bars = any(isinstance(drawn, ErrorbarContainer) for axes in figure.axes for drawn in axes.containers)
    bands = any(isinstance(drawn, FillBetweenPolyCollection) for axes in figure.axes for drawn in axes.collections)
    if words := footnote(table, bars, bands):
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        figure.text(box.x0 / width, (box.y0 - 0.1) / height, words, va="top", fontsize=8, color="0.35")
    # no dates in the files: an unchanged figure is an unchanged file
    for kind, field in (("png", "Software"), ("svg", "Date")):
        figure.savefig(paths.FIGURES / f"{name}.{kind}", bbox_inches="tight", metadata={field: None})


def footnote(table: pd.DataFrame, bars: bool = False, bands: bool = False) -> str:
    """How many replicates stand behind a table, and what bars and bands are where they are drawn; empty where it has
    none."""
    if "each" in table:
        counts = {len(values(each)) for each in table.loc[table["low"].notna(), "each"]} - {0}
    else:
        lines = [column for column in ("model", "trained") if column in table]  # which may have fewer
        every = table.groupby(lines or (lambda row: 0))["replicate"].nunique() if "replicate" in table else ()
        counts = set(every)
    if not counts:
        return ""
    several = f"n = {' to '.join(map(str, sorted({min(counts), max(counts)})))} replicates"
    marks = "Bars and bands" if bars and bands else "Bars" * bars + "Bands" * bands
    if max(counts) == 1:
        return "n = 1 replicate" + f". {marks}: 95 % intervals over its people" * bool(marks)
    alone = " (of one: over its people)" if 1 in counts else ""
    dots, people = " (small dots)" * bars, "; broad and pale: over people" * bars
    return several + f"{dots}. {marks}: 95 % intervals over replicates{alone}{people}" * bool(marks)


def save_table(name: str, table: pd.DataFrame) -> None:
    """Write `<name>.csv` to `figures/`, four digits after the point."""
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    table.to_csv(paths.FIGURES / f"{name}.csv", index=False, float_format="%.4f")


def facets(
    size: tuple[float, float], titles: Collection[str] = LEARNED.values(), ylabels: Collection[str] = ("",),
    xlabel: str = "", recall: str = "y", **shared: bool | str,
) -> tuple[plt.Figure, np.ndarray]:  # fmt: skip
    """A figure and its panels [rows, columns]: a column for each title, a row for each label.

    Axes named in `recall` ("x", "y", "xy") reach from 0 to 100 %, with room for marks at either end. Axes are shared,
    unless `sharex` or `sharey` says otherwise.
    """
    options = {"figsize": size, "squeeze": False, "sharex": True, "sharey": True} | shared
    figure, grid = plt.subplots(len(ylabels), len(titles), **options)
    for column, title in zip(grid.T, titles, strict=True):
        column[0].set_title(title)
        column[-1].set_xlabel(xlabel)
    for row, label in zip(grid, ylabels, strict=True):
        row[0].set_ylabel(label)
    for axes in grid.flat:
        axes.set(**{f"{name}lim": (-0.04, 1.06) for name in recall})
        percent(axes, recall)
    return figure, grid


def by_modality(panels: Iterable[plt.Axes], table: pd.DataFrame, column: str = "source") -> Iterator[tuple]:
    """Panels with their modality and its rows: (axes, "image", rows), (axes, "text", rows)."""
    return zip(panels, MODALITIES, (table[table[column] == m] for m in MODALITIES), strict=True)


def by_quantity(rows: pd.DataFrame, column: str, order: Collection) -> dict[str, pd.DataFrame]:
    """The rows of each quantity, one for each value of a column, in this order."""
    return {q: part.set_index(column).reindex(order) for q, part in rows.groupby("quantity")}


def percent(axes: plt.Axes, names: str) -> None:
    """The axes named ("x", "y", "xy") show shares in percent."""
    for name in names:
        getattr(axes, f"{name}axis").set_major_formatter(PercentFormatter(1.0, decimals=0))


def row_axis(axes: plt.Axes, labels: Sequence[str]) -> np.ndarray:
    """Make the y axis one of rows, the first on top, every other one shaded; returns the places of the rows."""
    y = np.arange(len(labels), dtype=float)
    axes.set_yticks(y, labels, fontsize=9)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for k in y[1::2]:
        axes.axhspan(k - 0.5, k + 0.5, color="0.96", zorder=0)
    return y


def look(asked: str, learned: str = "", label: str = "", **options) -> dict:
    """Colour, mark and legend entry of the modality asked in.

    Given the modality learned from, also a line, dashed where they differ. `label` may hold {asked} and {learned}.
    """
    line = {"": "none", asked: "-"}.get(learned, "--")
    label = label or ("learned from {learned}, asked with {asked}" if learned else "asked with {asked}")
    label = label.format(asked=WORDS[asked], learned=WORDS.get(learned))
    return {"color": COLOURS[asked], "marker": MARKERS[asked], "ms": 5, "ls": line, "label": label, **options}


def dots(axes: plt.Axes, rows: pd.DataFrame, at: Iterable[float], along: str = "x", **options) -> None:
    """Estimates along an axis with bars from `low` to `high`, at these places of the other axis.

    Where there are several replicates, a broad pale bar is the interval over people, and small dots are the replicates;
    where one of several has a number, the pale bar stands alone.
    """
    at = list(at)
    error = np.array([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], dtype=float).clip(min=0)
    x, y = (rows["estimate"], at) if along == "x" else (at, rows["estimate"])
    marks = axes.errorbar(x, y, **{f"{along}err": error, "ls": "none", "ms": 5, "capsize": 2.5, "zorder": 3, **options})
    colour, aside = marks[2][0].get_color()[0], (0, -3.5) if along == "x" else (-3.5, 0)
    beside = axes.transData + ScaledTranslation(*(point / 72 for point in aside), axes.figure.dpi_scale_trans)
    for place, (_, row) in zip(at, rows.reindex(columns=INTERVAL).iterrows(), strict=True):
        own, line = values(row["each"]), axes.hlines if along == "x" else axes.vlines
        if len(own) > 1 or (len(own) and np.isnan(row["low"])):
            line(place, row["people low"], row["people high"], color=colour, lw=4, alpha=0.3, zorder=2.8)
        if len(own) > 1:
            pairs = (own, [place] * len(own)) if along == "x" else ([place] * len(own), own)
            axes.plot(*pairs, ls="none", marker=".", ms=2.5, color=colour, alpha=0.8, zorder=2.9, transform=beside)


def asked_rows(axes: plt.Axes, labels: Sequence[str], rows: pd.DataFrame, apart: float = 1.0, **options) -> None:
    """Estimates on a row axis, a row for each label (`rows` has them as index): what is asked apart, pictures above."""
    for asked, part in rows.groupby("query"):
        y = np.arange(len(labels)) + apart * SHIFT[asked]
        dots(axes, part.reindex(labels), y, **look(asked, **options))


def curve(axes: plt.Axes, rows: pd.DataFrame, column: str, **options) -> None:
    """Mean recall along the training, whose time is in `column`."""
    mean = rows.groupby(column)["recall"].mean()
    axes.plot(mean.index, mean, **options)


def with_legend(figure: plt.Figure, columns: int = 4) -> plt.Figure:
    """The figure, laid out, with one legend below its panels: all that has a label, levels and lines last."""
    entries: dict[str, plt.Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    handles = sorted(entries.values(), key=lambda handle: isinstance(handle, plt.Line2D))
    figure.tight_layout()
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": columns, "handlelength": 3}
    figure.legend(handles=handles, fontsize=9, **place)
    return figure
