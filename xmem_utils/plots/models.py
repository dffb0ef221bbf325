"""Figures of notebook 04: capability; one panel a source modality."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from xmem_utils.params import other
from xmem_utils.plots.gap import FIRST
from xmem_utils.plots.parts import (
    DOTTED,
    GREEN,
    RECALLED,
    WORDS,
    by_modality,
    by_quantity,
    dots,
    facets,
    look,
    with_legend,
)
from xmem_utils.stats import values


def in_words(parameters: float) -> str:
    """A number of parameters in words: 1.9 M."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def capability(table: pd.DataFrame, chance: float, real: pd.DataFrame | None = None) -> plt.Figure:
    """Above: recall in source and target, and attributes read, by model; below: the gap, said and closed-set.

    Models of real parts, which are on no ladder with the others, stand on the right, behind a gap.
    """
    ladders = [part.drop_duplicates("model").sort_values("parameters") for part in (table, real) if part is not None]
    sizes = ladders[0].set_index("model")["parameters"]
    models = {m: f"{m.removeprefix('xmem-tiny-')}\n{in_words(n)}" for m, n in sizes.items()}
    xlabel = "model, parameters"
    if real is not None:
        models |= {"": "", **{m: m.replace("-", "\n") for m in ladders[1]["model"]}}  # such a name says its size
        table, xlabel = pd.concat([table, real]), f"{xlabel}; real: a pretrained\nlanguage model and eye, joined by us"
    x, ylabels = np.arange(len(models), dtype=float), ("answered right", "gap: source minus target recall")
    figure, grid = facets((9.6, 6.6), ylabels=ylabels, xlabel=xlabel, sharey="row")
    read = {"label": "attributes, asked with {asked}", "color": "0.6", "ls": ":", "lw": 1}
    for axes, source, own in by_modality(grid.T, table):
        rows = by_quantity(own[own["measure"] != "closed-set"], "model", list(models))
        first = by_quantity(own[own["measure"] == "closed-set"], "model", list(models))
        for role, asked in (("source", source), ("target", other(source))):
            dots(axes[0], rows[f"{role} recall"], x, "y", **look(asked, source))
            if f"attributes from {role}" in rows:
                dots(axes[0], rows[f"attributes from {role}"], x + 0.06, "y", **look(asked, **read))
        axes[0].axhline(chance, label="chance for a name", **DOTTED)
        dots(axes[1], rows["gap"], x - 0.05, "y", label="gap, names said", color="#222222", marker="v", ls="-")
        dots(axes[1], first["gap"], x + 0.05, "y", label="gap, closed-set", color=GREEN, marker="^", ls="--")
        axes[1].axhline(0, color="0.4", lw=0.8)
        axes[1].yaxis.set_major_formatter("{x:.2f}")
        axes[1].set_xlim(-0.4, len(x) - 0.6)
        axes[1].set_xticks(x, models.values())
    grid[1, 0].autoscale(axis="y")  # a gap may lie below 0
    return with_legend(figure, columns=3)


def capability_slope(points: pd.DataFrame, slopes: pd.DataFrame) -> plt.Figure:
    """Target against source recall over checkpoints, one colour a model; thin lines follow the runs."""
    models = points["model"].unique()
    looks = list(zip(models, sns.color_palette("viridis", len(models) + 1), "os^Dv<>" * len(models), strict=False))
    figure, (panels,) = facets((9.6, 4.4), ylabels=["recall in the other modality (target)"], recall="xy")
    fit = slopes.set_index(["model", "source"])
    for axes, source, own in by_modality(panels, points):
        wide = own.pivot_table(index=["model", "replicate", "epoch"], columns="query", values="recall")
        for model, colour, marker in looks:
            line = fit.loc[(model, source)]
            spread = f" [{line['low']:.2f}, {line['high']:.2f}]" if len(values(line["each"])) > 1 else ""
            slope = "not memorized" if np.isnan(line["estimate"]) else f"slope {line['estimate']:.2f}{spread}"
            label = f"{model} from {WORDS[source]}: {slope}"
            options = {"label": label, "color": colour, "marker": marker, "lw": 0.8, "mec": "black", "mew": 0.3}
            for _, run in wide.loc[model].groupby("replicate"):
                axes.plot(run[source], run[other(source)], ms=5, **options)
        axes.plot([0, 1], [0, 1], label="no gap", **DOTTED)
        axes.set_xlabel(f"recall asked with {WORDS[source]} (source)")
    return with_legend(figure, columns=2)


def capability_probe(table: pd.DataFrame) -> plt.Figure:
    """Target recall against the alignment probe, a mark a base; filled: said, hollow: closed-set."""
    models = list(dict.fromkeys(table["model"]))
    looks = dict(zip(models, zip(sns.color_palette("viridis", len(models) + 1), cycle("os^Dv<>")), strict=False))
    xlabel = "figures known in the source alone, asked in the target"
    figure, (panels,) = facets(
        (9.6, 4.2), ylabels=["recall in the other modality (target)"], xlabel=xlabel, recall="xy"
    )
    for axes, _, own in by_modality(panels, table):
        for (measure, model), rows in own.groupby(["measure", "model"], sort=False):
            colour, marker = looks[model]
            fill = {"mfc": "white"} if measure == "closed-set" else {"label": model}
            axes.plot(rows["probe"], rows["target recall"], ls="none", marker=marker, color=colour, ms=7, **fill)
        words = ", ".join(f"{m} {r:.2f}" for m, r in own.groupby("measure", sort=False)["Spearman"].first().items())
        axes.annotate(f"rank correlation: {words}", (0.97, 0.03), xycoords="axes fraction", ha="right", fontsize=9)
    panels[0].plot([], [], ls="none", marker="o", color="0.4", label="filled: said")
    panels[0].plot([], [], ls="none", marker="o", color="0.4", mfc="white", label="hollow: closed-set")
    return with_legend(figure)


def capability_knowledge(table: pd.DataFrame, chance: float) -> plt.Figure:
    """Recall against the number of public figures the base model knows in both modalities."""
    figure, (panels,) = facets((9.6, 4.0), ylabels=[RECALLED], xlabel="public figures named in both modalities")
    known = sorted(table["known"].unique())
    x = np.arange(len(known), dtype=float)  # evenly spaced: 0 has no place on a logarithmic axis
    for axes, source, own in by_modality(panels, table):
        rows = by_quantity(own[own["measure"] == "said"], "known", known)
        first = by_quantity(own[own["measure"] == "closed-set"], "known", known)["target recall"]
        for role, asked in (("source", source), ("target", other(source))):
            dots(axes, rows[f"{role} recall"], x, "y", **look(asked, source))
        grey = {"color": "0.5", "ms": 5, "lw": 1}
        axes.plot(x + 0.05, first["estimate"], label=FIRST, marker="^", ls="-.", color=GREEN, ms=4, lw=1)
        probe = "figures known in this panel's source alone, asked in the other (probe)"
        axes.plot(x, rows["alignment probe"]["estimate"], label=probe, marker="D", ls=":", **grey)
        both = {"label": "figures known in both, likewise", "marker": "P", "ls": (0, (1, 3))}
        if "name, known in both" in rows:
            axes.plot(x, rows["name, known in both"]["estimate"], **both, **grey)
        axes.axhline(chance, label="chance for a study name", **DOTTED)
    axes.set_xticks(x, [f"{k:,}" for k in known])
    return with_legend(figure, columns=2)
