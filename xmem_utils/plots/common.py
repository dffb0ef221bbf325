"""How the study draws: one colour a modality, an interval on every estimate, the table beside the figure."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils import paths
from xmem_utils.params import MODALITIES

# Okabe-Ito colours, far apart in lightness too; the marker repeats what the colour says
COLOURS = {"image": "#D55E00", "text": "#0072B2"}
MARKERS = {"image": "o", "text": "s"}
MODALITY_WORDS = {"image": "pictures", "text": "descriptions"}


def style() -> None:
    """Set the look of every figure and table; call it once at the top of a notebook."""
    pd.set_option("display.html.use_mathjax", False)  # a name with $ is no formula
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.9)
    plt.rcParams.update({
        "figure.dpi": 100, "savefig.dpi": 160, "axes.spines.top": False, "axes.spines.right": False,
        "svg.hashsalt": "xmem", "legend.frameon": False, "axes.titlesize": 11,
    })  # fmt: skip


def save(figure: Figure, name: str, table: pd.DataFrame, folder: Path | None = None) -> None:
    """Write `<name>.png`, `.svg` and `.csv` to `figures/`; the table holds every number drawn."""
    folder = folder or paths.FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    # no dates in the files: an unchanged figure is an unchanged file
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    save_table(name, table, folder)


def save_table(name: str, table: pd.DataFrame, folder: Path | None = None) -> None:
    """Write `<name>.csv` to `figures/`, four digits after the point."""
    folder = folder or paths.FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")


def interval(axes: Axes, x, rows: pd.DataFrame, **options) -> None:
    """Estimates at `x` with bars from `low` to `high`."""
    error = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
    axes.errorbar(x, rows["estimate"], yerr=[e.clip(lower=0) for e in error], capsize=3, **options)


def recall_axis(axes: Axes, label: bool = True) -> None:
    """A y axis of percent."""
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if label:
        axes.set_ylabel("names recalled exactly")


def asked_handles(own: str, across: str) -> list[plt.Line2D]:
    """Legend entries for what is asked (colour and marker), and for asking as learned (solid) or across (dashed)."""
    line = partial(plt.Line2D, [], [])
    handles = [line(color=COLOURS[m], marker=MARKERS[m], ms=5, ls="none", label=f"asked with {MODALITY_WORDS[m]}")
               for m in MODALITIES]  # fmt: skip
    return [*handles, line(color="0.2", ls="-", label=own), line(color="0.2", ls="--", label=across)]
