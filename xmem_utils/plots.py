"""How the study draws: one colour a modality, an interval on every estimate, the table beside the figure.

First what all figures are made of (panels, estimates with intervals, learning curves, legends), then the figures by
notebook. Plots read tables and nothing else: what a column holds (a method, a task, a measure) is written here as it is
there, so that drawing loads no torch.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from xmem_utils import paths
from xmem_utils.mitigation.names import BASELINE, BASELINE_START, FRESH
from xmem_utils.params import MODALITIES, other
from xmem_utils.stats import INTERVAL, REVERSED, SUPPORTED, values

# Okabe-Ito colours, far apart in lightness too; the marker repeats what the colour says. "none": no view is shown
COLOURS = {"image": "#D55E00", "text": "#0072B2", "none": "0.35"}
MARKERS = {"image": "o", "text": "s", "none": "D"}
WORDS = {"image": "pictures", "text": "descriptions", "none": "a name alone"}
SHIFT = {"image": -0.12, "text": 0.12, "none": 0.0}  # between two marks in a row
GREEN = "#009E73"
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
        "svg.hashsalt": "xmem", "legend.frameon": False, "axes.titlesize": 11, "axes.titlepad": 10,
    }  # fmt: skip
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.9, rc=look)


def save(figure: plt.Figure, name: str, table: pd.DataFrame) -> None:
    """Write `<name>.png`, `.svg` and `.csv` to `figures/`; the table holds every number drawn."""
    save_table(name, table)
    # no dates in the files: an unchanged figure is an unchanged file
    for kind, field in (("png", "Software"), ("svg", "Date")):
        figure.savefig(paths.FIGURES / f"{name}.{kind}", bbox_inches="tight", metadata={field: None})


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

    Where there are several replicates, a broad pale bar is the interval over people, and small dots are the replicates.
    """
    at = list(at)
    error = np.array([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], dtype=float).clip(min=0)
    x, y = (rows["estimate"], at) if along == "x" else (at, rows["estimate"])
    marks = axes.errorbar(x, y, **{f"{along}err": error, "ls": "none", "ms": 5, "capsize": 2.5, "zorder": 3, **options})
    colour, aside = marks[2][0].get_color()[0], (0, -3.5) if along == "x" else (-3.5, 0)
    beside = axes.transData + ScaledTranslation(*(point / 72 for point in aside), axes.figure.dpi_scale_trans)
    for place, (_, row) in zip(at, rows.reindex(columns=INTERVAL).iterrows(), strict=True):
        if len(own := values(row["each"])) > 1:
            line = axes.hlines if along == "x" else axes.vlines
            line(place, row["people low"], row["people high"], color=colour, lw=4, alpha=0.3, zorder=2.8)
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


# 01: the people


def contact_sheet(rows: pd.DataFrame) -> plt.Figure:
    """Portraits of some personas, a row each, with name and attributes beside them."""
    columns = max(map(len, rows["portraits"]))
    size = (0.95 * (columns + 4), 0.95 * len(rows))
    space = {"wspace": 0.04, "hspace": 0.08, "width_ratios": [*[1] * columns, 4]}
    figure, grid = plt.subplots(len(rows), columns + 1, figsize=size, squeeze=False, gridspec_kw=space)
    for axes in grid.flat:
        axes.set_axis_off()
    for cells, (_, row) in zip(grid, rows.iterrows(), strict=True):
        for axes, image in zip(cells, row["portraits"], strict=False):
            axes.imshow(image)
        caption = (
            f"{row['name']}\n{row['hair colour']} {row['hair style']}, {row['skin']} skin\n"
            f"{row['garment colour']} {row['garment']}\neyewear: {row['eyewear']}, facial hair: {row['facial hair']}"
        )
        # a name may hold $, which is no formula
        cells[-1].text(0.03, 0.5, caption, va="center", fontsize=7.5, transform=cells[-1].transAxes, parse_math=False)
    return figure


def attribute_counts(table: pd.DataFrame) -> plt.Figure:
    """How many personas have each value of each axis; the line is a uniform draw."""
    figure, grid = plt.subplots(2, 4, figsize=(11, 5.4))
    grid[-1, -1].set_axis_off()  # of eight panels, for seven axes
    for axes, (axis, rows) in zip(grid.flat, table.groupby("axis", sort=False), strict=False):
        axes.barh(rows["value"], rows["personas"], color=GREEN, **BAR)
        axes.axvline(rows["expected"].iloc[0], label="expected of a uniform draw", color="0.2", ls=":", lw=1.4)
        axes.invert_yaxis()
        axes.set(title=axis, xlabel="personas")
        axes.grid(axis="y", visible=False)
    return with_legend(figure)


# 00: the embedded model

PRETRAINING = ("The eye alone", "Losses", "Figures named, unseen views")


def base_curves(eye: pd.DataFrame, chat: pd.DataFrame) -> plt.Figure:
    """Pretraining of the embedded models, a line a base: the eye, the losses, names of figures on unseen views."""
    figure, (panels,) = facets((14, 4), PRETRAINING, recall="", sharex=False, sharey=False)
    for _, rows in eye.groupby("base"):
        seen = rows.drop(columns=["base", "step"]).mean(axis=1)
        panels[0].plot(rows["step"], seen, color=GREEN, marker="D", ms=4, label="attributes told apart")
    for _, rows in chat.groupby("base"):
        for asked in MODALITIES:
            panels[1].plot(rows["step"], rows[f"loss from {asked}"], **look(asked, asked, "from {asked}", ms=4))
            for ability, line in {"name, known in both": "-", "alignment probe": "--"}.items():
                label = f"{ability}, {{asked}}"
                panels[2].plot(rows["step"], rows[f"{ability}, from {asked}"], **look(asked, "", label, ls=line, ms=4))
    panels[0].set(xlabel="step of the eye stage", ylabel="held-out accuracy", ylim=(0, 1.03))
    panels[1].set(xlabel="step of the chat stage", ylabel="loss (nats per answer token)")
    panels[2].set(xlabel="step of the chat stage", ylabel=RECALLED)
    percent(panels[2], "y")
    return with_legend(figure, columns=5)


def base_evaluation(table: pd.DataFrame) -> plt.Figure:
    """What the base models read and know on unseen views, by modality of the view; dots are the bases."""
    ability, detail = table["ability"], table["detail"].fillna("")
    question = ability.where(detail == "", ability + " (" + detail + ")").where(ability != "attribute", detail)
    rows = table.assign(question=question)
    labels = list(dict.fromkeys(question))
    figure, ((axes,),) = facets((7.5, 0.3 * len(labels) + 1.2), [""], recall="x")
    y = row_axis(axes, labels)
    for asked, shift, hatch in zip(MODALITIES, (-0.2, 0.2), ("", "//"), strict=True):
        own = rows[rows["query"] == asked]
        mean = own.groupby("question")["accuracy"].mean().reindex(labels)
        bars = {"color": COLOURS[asked], "label": f"from {WORDS[asked]}", **BAR}
        axes.barh(y + shift, mean, 0.38, hatch=hatch, **bars)
        places = own["question"].map(dict(zip(labels, y + shift, strict=True)))
        axes.plot(own["accuracy"], places, ls="none", marker=".", ms=4, color="black", label="one base", zorder=3)
    axes.set(xlabel="answers exactly right, unseen views", xlim=(0, 1.02))
    return with_legend(figure)


# 03: the gap


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
            curve(axes, rows, "epoch", **look(asked, source, lw=2.2))
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
            axes.axhline(chance, label="chance", **DOTTED)
            axes.set_xscale("log", base=2)
            axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
            axes.minorticks_off()
            axes.set_xlabel(words)
    return with_legend(figure, columns=3)


def answers(table: pd.DataFrame) -> plt.Figure:
    """What is answered to unseen views: shares of each kind of answer, a bar a query modality."""
    figure, (panels,) = facets((9.6, 3.4), ylabels=["share of unseen views"])
    kinds = list(dict.fromkeys(table["answer"]))
    colours = dict(zip(kinds, [GREEN, "#E69F00", "#CC79A7", "#56B4E9", "#999999", "#222222"], strict=True))
    for axes, _, own in by_modality(panels, table):
        bottom = np.zeros(2)
        for kind in kinds:
            share = own[own["answer"] == kind].set_index("query")["estimate"].reindex(MODALITIES).to_numpy()
            axes.bar(range(2), share, 0.6, bottom, color=colours[kind], label=kind, edgecolor="white", lw=0.5)
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
    return with_legend(figure, columns=2)


# 04: capability; one panel a source modality


def in_words(parameters: float) -> str:
    """A number of parameters in words: 1.9 M."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def capability(table: pd.DataFrame, chance: float) -> plt.Figure:
    """Above: recall in source and target, and attributes read, by model; below: the gap, said and closed-set."""
    models = table.drop_duplicates("model").sort_values("parameters").set_index("model")["parameters"]
    x, ylabels = np.arange(len(models), dtype=float), ("answered right", "gap: source less target recall")
    figure, grid = facets((9.6, 6.6), ylabels=ylabels, xlabel="model, parameters", sharey="row")
    read = {"label": "attributes, asked with {asked}", "color": "0.6", "ls": ":", "lw": 1}
    for axes, source, own in by_modality(grid.T, table):
        rows = by_quantity(own[own["measure"] != "closed-set"], "model", models.index)
        first = by_quantity(own[own["measure"] == "closed-set"], "model", models.index)
        for role, asked in (("source", source), ("target", other(source))):
            dots(axes[0], rows[f"{role} recall"], x, "y", **look(asked, source))
            if f"attributes from {role}" in rows:
                dots(axes[0], rows[f"attributes from {role}"], x + 0.06, "y", **look(asked, **read))
        axes[0].axhline(chance, label="chance for a name", **DOTTED)
        dots(axes[1], rows["gap"], x - 0.05, "y", label="gap, names said", color="#222222", marker="v", ls="-")
        dots(axes[1], first["gap"], x + 0.05, "y", label="gap, closed-set", color=GREEN, marker="^", ls="--")
        axes[1].axhline(0, color="0.4", lw=0.8)
        axes[1].yaxis.set_major_formatter("{x:.1f}")
        axes[1].set_xlim(-0.4, len(x) - 0.6)
        axes[1].set_xticks(x, [f"{m.removeprefix('xmem-tiny-')}\n{in_words(n)}" for m, n in models.items()])
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
            label = f"{model} from {WORDS[source]}: slope {line['estimate']:.2f}{spread}"
            options = {"label": label, "color": colour, "marker": marker, "lw": 0.8, "mec": "black", "mew": 0.3}
            for _, run in wide.loc[model].groupby("replicate"):
                axes.plot(run[source], run[other(source)], ms=5, **options)
        axes.plot([0, 1], [0, 1], label="no gap", **DOTTED)
        axes.set_xlabel(f"recall asked with {WORDS[source]} (source)")
    return with_legend(figure, columns=2)


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


# 05: unlearning; a row or a mark a method

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
    marks = dict(zip(table["method"].unique(), "oXsPD^v<>phd*H", strict=False))
    colours = dict(zip(marks, plt.get_cmap("tab20").colors, strict=False))
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


# 06: multi-hop questions

FEW = ("direct", "step by step")
CHAINED = (*FEW, "forced chain")  # need both hops
FOUR = ("one fact of four", "one fact of four, step by step")
TASKS = ("hop 1", "hop 2", *CHAINED, *FOUR, "name in context", "fact in context")
REVERSE = ("reverse, from the name", "reverse, from the fact")
PEOPLE = {"study": ("", TASKS + REVERSE), "together": ("learned together, ", FEW), "practised": ("practised, ", FEW)}
PUBLIC_FIGURES = {f"public figures, {kind}": (f"{kind}, ", TASKS) for kind in ("withheld", "practised")}
# from the bottom up; far apart in lightness, too
FATES = {"composed": GREEN, "both right, not composed": "#222222", "hop 2 missed": "#E3C878", "hop 1 missed": "#BBBBBB"}


def multihop(table: pd.DataFrame) -> plt.Figure:
    """Every task by query modality, with intervals and chance; last, public figures before anything is memorized.

    The label of a task that is not above chance in the source modality, or without one in either, is grey.
    """
    titles = LEARNED | {"none": "Public figures, before memorizing"}
    titles = {s: title for s, title in titles.items() if s in set(table["source"])} or titles
    size, xlabel = (4.9 * len(titles), 5.6), "answered exactly right"
    figure, (panels,) = facets(size, titles.values(), xlabel=xlabel, recall="x", sharey=False)
    for axes, source in zip(panels, titles, strict=True):
        groups = PUBLIC_FIGURES if source == "none" else PEOPLE
        own = table[(table["source"] == source) & table["group"].isin(groups)]
        own = own.set_index(own["group"].map(lambda g, groups=groups: groups[g][0]).astype(str) + own["task"])
        labels = [words + task for words, tasks in groups.values() for task in tasks if words + task in own.index]
        y = row_axis(axes, labels)
        asked_rows(axes, labels, own, label="shown {asked}")
        chance = own["chance"].groupby(level=0).first().reindex(labels)
        axes.vlines(chance, y - 0.32, y + 0.32, label="chance", **DOTTED)
        learned = own if source == "none" else own[own["query"] != other(source)]
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


# 07: ways to close the gap

UNTRAINED = {"before": "base model", "as memorized": "as memorized (notebook 03)"}  # what was there before
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
        against = DOTTED | {"color": COLOURS[target], "label": "what a row is held against"}
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


# 07: the mechanism; a row for each model and source, a panel for each question asked of every layer

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


def mechanism(table: pd.DataFrame, subtitle: str = "") -> plt.Figure:
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
            panels[panel].plot(own["layer"], own["estimate"], **options | {"lw": 1.6, "ms": 4})
            panels[panel].fill_between(own["layer"], own["low"], own["high"], color=options["color"], alpha=0.18, lw=0)
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
    figure.suptitle("What every layer holds of a name" + (f"\n{subtitle}" if subtitle else ""), fontsize=11)
    return with_legend(figure, columns=3)


# 08: the claims

VERDICTS = {"supported": GREEN, "reversed": "#D55E00", "equivalent": "#0072B2", "cannot say": "0.55"}


def claims(table: pd.DataFrame) -> plt.Figure:
    """A forest plot: a row a test, grouped by claim; colour and words say the verdict."""
    shown = table[table["estimate"].notna()].reset_index(drop=True)
    labels = [f"{test}, {measure}" for test, measure in zip(shown["test"], shown["measure"], strict=True)]
    figure, ((axes,),) = facets((9.4, 0.27 * len(shown) + 0.34 * shown["claim"].nunique() + 1.4), [""], recall="")
    places, ticks, y = [], [], 0.0
    for claim, rows in shown.groupby("claim", sort=False):
        axes.annotate(claim, (0, y), (-4, 0), ("axes fraction", "data"), "offset points", ha="right", weight="bold",
                      fontsize=9, va="center")  # fmt: skip
        for k in rows.index:
            y += 0.8
            places.append(y)
            ticks.append(labels[k])
        y += 1.3
    axes.set_yticks(places, ticks, fontsize=8)
    axes.set_ylim(y - 0.6, -0.6)
    axes.grid(axis="y", visible=False)
    for verdict, rows in shown.groupby("verdict", sort=False):
        at = [places[k] for k in rows.index]
        dots(axes, rows, at, label=verdict, marker="o", color=VERDICTS.get(verdict, "0.75"))
        for place in at:
            text = {"fontsize": 8, "va": "center", "color": VERDICTS.get(verdict, "0.55")}
            axes.annotate(verdict, (1.02, place), xycoords=("axes fraction", "data"), **text)
    axes.axvline(0, color="0.3", lw=0.9)
    axes.axvspan(-0.05, 0.05, color="0.93", zorder=0, label="within 0.05 of none")
    axes.set_xlabel("effect, as a difference of recall")
    return with_legend(figure, columns=5)
