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
CONTROL_MARKERS = {"base model": "D", "shuffled views": "X", "blank image": "P"}
MODALITY_WORDS = {"image": "pictures", "text": "descriptions"}


def style() -> None:
    """Set the look of every figure; call it once at the top of a notebook."""
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


def _interval(axes: Axes, x, rows: pd.DataFrame, **options) -> None:
    error = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
    axes.errorbar(x, rows["estimate"], yerr=[e.clip(lower=0) for e in error], capsize=3, **options)


def _recall_axis(axes: Axes, label: bool = True) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if label:
        axes.set_ylabel("names recalled exactly")


def gap_matrix(table: pd.DataFrame, subtitle: str) -> Figure:
    """Source x asked recall as bars with intervals; controls as marks, chance as a line."""
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True)
    base = table[table["source"] == "none"]
    for axes, source in zip(panels, MODALITIES, strict=True):
        rows = table[table["source"] == source]
        for x, asked in enumerate(MODALITIES):
            bar = rows[(rows["asked"] == asked) & (rows["probe"] == "view")]
            axes.bar(x, bar["estimate"], width=0.5, color=COLOURS[asked], edgecolor="black", linewidth=0.6,
                     hatch="" if asked == source else "//", alpha=0.9, zorder=2)  # fmt: skip
            _interval(axes, [x], bar, fmt="none", ecolor="black", zorder=3)
            top = float(bar["high"].iloc[0])
            share = float(bar["estimate"].iloc[0])
            label = f"{share:.1%}" if 0.99 < share < 1 else f"{share:.0%}"
            axes.annotate(label, (x, top), (0, 4), textcoords="offset points", ha="center")
            controls = [("base model", base[(base["asked"] == asked) & (base["probe"] == "view")])]
            controls += [(p, rows[(rows["asked"] == asked) & (rows["probe"] == p)])
                         for p in ("shuffled views", "blank image")]  # fmt: skip
            for k, (name, control) in enumerate(controls):
                if len(control):
                    _interval(axes, [x + 0.33 + 0.08 * k], control, marker=CONTROL_MARKERS[name], ms=5,
                              color="0.25", lw=1, ls="none", zorder=4)  # fmt: skip
        chance = float(rows["chance"].iloc[0])
        axes.axhline(chance, color="0.4", ls=":", lw=1.2, zorder=1)
        axes.set_xticks(range(2), [f"asked with\n{MODALITY_WORDS[m]}" for m in MODALITIES])
        axes.set_xlim(-0.45, 1.7)
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}", pad=14)
        axes.grid(axis="x", visible=False)
        _recall_axis(axes, source == MODALITIES[0])
    handles = [plt.Line2D([], [], marker=m, color="0.25", ls="none", label=n) for n, m in CONTROL_MARKERS.items()]
    handles.append(plt.Line2D([], [], color="0.4", ls=":", label=f"chance ({chance:.0%})"))
    figure.legend(handles=handles, loc="lower center", ncols=4, bbox_to_anchor=(0.5, -0.07))
    figure.suptitle(f"Recall of names by the modality they were learned from and asked in\n{subtitle}", fontsize=11)
    figure.tight_layout()
    return figure


def _line_legend(axes: Axes, more: list[tuple[str, str]]) -> None:
    """What colour (asked modality), dashes (learned from or other) and the horizontal lines mean."""
    line = partial(plt.Line2D, [], [])
    handles = [line(color=COLOURS[m], marker=MARKERS[m], ms=5, ls="none", label=f"asked with {MODALITY_WORDS[m]}")
               for m in MODALITIES]  # fmt: skip
    handles += [
        line(color="0.2", ls="-", label="asked as learned"),
        line(color="0.2", ls="--", label="asked in the other"),
    ]
    handles += [line(color="0.5", lw=0.8, ls=style, label=label) for style, label in more]
    handles.append(line(color="0.4", ls=":", label="chance"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)


def gap_curves(table: pd.DataFrame, chance: float) -> Figure:
    """Recall in both modalities along training; thin lines are seeds, thick ones their mean."""
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.6), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        for asked in MODALITIES:
            rows = table[(table["source"] == source) & (table["asked"] == asked)]
            line = "-" if asked == source else "--"
            for _, seed in rows.groupby("seed"):
                axes.plot(seed["epoch"], seed["recall"], color=COLOURS[asked], lw=0.8, alpha=0.5, ls=line)
            mean = rows.groupby("epoch")["recall"].mean()
            axes.plot(mean.index, mean, color=COLOURS[asked], lw=2.2, ls=line, marker=MARKERS[asked], ms=5,
                      )  # fmt: skip
        axes.axhline(chance, color="0.4", ls=":", lw=1.2)
        axes.set_xlabel("epochs of memorizing")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        _recall_axis(axes, source == MODALITIES[0])
    _line_legend(panels[1], [("-", "one seed")])
    figure.tight_layout()
    return figure


def dose_response(table: pd.DataFrame, chance: float, gate: float) -> Figure:
    """Recall in source and target modality against the number of training views a persona."""
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.6), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        for asked in MODALITIES:
            rows = table[(table["source"] == source) & (table["asked"] == asked)].sort_values("train_views")
            _interval(axes, rows["train_views"], rows, color=COLOURS[asked], marker=MARKERS[asked], ms=5,
                      ls="-" if asked == source else "--")  # fmt: skip
        views = sorted(table["train_views"].unique())
        axes.set_xscale("log", base=2)
        axes.set_xticks(views, [str(v) for v in views])
        axes.axhline(chance, color="0.4", ls=":", lw=1.2)
        axes.axhline(gate, color="0.6", ls="-.", lw=1)
        axes.set_xlabel("training views per persona")
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        _recall_axis(axes, source == MODALITIES[0])
    _line_legend(panels[1], [("-.", f"memorized: source above {gate:.0%}")])
    figure.tight_layout()
    return figure


def contact_sheet(rows: pd.DataFrame, zoom: float = 0.95) -> Figure:
    """Portraits of some personas, a row each, with name and attributes beside them."""
    columns = max(map(len, rows["portraits"]))
    figure, grid = plt.subplots(
        len(rows), columns + 1, figsize=(zoom * (columns + 4), zoom * len(rows)), squeeze=False,
        gridspec_kw={"width_ratios": [*[1] * columns, 4], "wspace": 0.04, "hspace": 0.08},
    )  # fmt: skip
    for cells, (_, row) in zip(grid, rows.iterrows(), strict=True):
        for axes in cells:
            axes.set_axis_off()
        for axes, image in zip(cells, row["portraits"], strict=False):
            axes.imshow(image)
        caption = (
            f"{row['name']}\n{row['hair colour']} {row['hair style']}, {row['skin']} skin\n"
            f"{row['garment colour']} {row['garment']}\neyewear: {row['eyewear']}, facial hair: {row['facial hair']}"
        )
        cells[-1].text(0.03, 0.5, caption, va="center", fontsize=7.5, transform=cells[-1].transAxes)
    return figure


def attribute_counts(table: pd.DataFrame) -> Figure:
    """How many personas have each value of each axis; the line is a uniform draw."""
    axes_names = list(dict.fromkeys(table["axis"]))
    figure, panels = plt.subplots(2, 4, figsize=(11, 5.4), squeeze=False)
    for panel in panels.flat[len(axes_names) :]:
        panel.set_axis_off()
    for panel, axis in zip(panels.flat, axes_names, strict=False):
        rows = table[table["axis"] == axis]
        panel.barh(rows["value"], rows["personas"], color="#009E73", edgecolor="black", linewidth=0.5)
        panel.axvline(rows["expected"].iloc[0], color="0.2", ls=":", lw=1.4)
        panel.invert_yaxis()
        panel.set(title=axis, xlabel="personas")
        panel.grid(axis="y", visible=False)
    figure.tight_layout()
    return figure


def base_curves(eye: pd.DataFrame, chat: pd.DataFrame) -> Figure:
    """Pretraining of the embedded model: the eye, the losses, the names of figures on unseen views."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8))
    for k, axis in enumerate(c for c in eye.columns if c != "step"):
        left.plot(
            eye["step"], eye[axis], color=sns.color_palette("colorblind")[k], marker="os^Dv<>"[k], ms=4, label=axis
        )
    left.set(xlabel="step of the eye stage", ylabel="held-out accuracy", ylim=(0, 1.03), title="The eye alone")
    left.legend(fontsize=7, loc="lower right")
    for asked in MODALITIES:
        middle.plot(chat["step"], chat[f"loss from {asked}"], color=COLOURS[asked], marker=MARKERS[asked], ms=4,
                    label=f"from {MODALITY_WORDS[asked]}")  # fmt: skip
        for ability, line in (("name, known in both", "-"), ("alignment probe", "--")):
            right.plot(chat["step"], chat[f"{ability}, from {asked}"], color=COLOURS[asked], ls=line, ms=4,
                       marker=MARKERS[asked], label=f"{ability}, {MODALITY_WORDS[asked]}")  # fmt: skip
    middle.set(xlabel="step of the chat stage", ylabel="loss (nats per answer token)", title="Losses")
    middle.legend(fontsize=8)
    right.set(xlabel="step of the chat stage", title="Figures named, unseen views")
    _recall_axis(right)
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)
    figure.tight_layout()
    return figure


def base_exam(table: pd.DataFrame) -> Figure:
    """What the base model reads and knows on unseen views, by modality of the view."""
    rows = table.copy()
    rows["question"] = [
        f"{d}" if a == "attribute" else (f"{a} ({d})" if d else a)
        for a, d in zip(rows["ability"], rows["detail"].fillna(""), strict=True)
    ]
    order = list(dict.fromkeys(rows["question"]))
    figure, axes = plt.subplots(figsize=(7.5, 0.3 * len(order) + 1.2))
    for k, asked in enumerate(MODALITIES):
        part = rows[rows["asked"] == asked].set_index("question").loc[order, "accuracy"]
        axes.barh([i + 0.2 * (2 * k - 1) for i in range(len(order))], part, height=0.38, color=COLOURS[asked],
                  edgecolor="black", linewidth=0.4, hatch="" if k == 0 else "//",
                  label=f"from {MODALITY_WORDS[asked]}")  # fmt: skip
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("answers exactly right, unseen views")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    return figure
