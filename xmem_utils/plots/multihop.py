"""Figures of the multi-hop analysis: a panel a source modality, colour for what is asked."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xmem_utils.multihop.people import ASKED, PRACTISED, STUDY, TOGETHER, WITHHELD
from xmem_utils.multihop.tables import CHAINED, FATES
from xmem_utils.multihop.tasks import COMPOSED, CONTROLS, DIRECT, HOP_1, HOP_2, REVERSE_FACT, REVERSE_NAME, STEPWISE
from xmem_utils.params import MODALITIES
from xmem_utils.plots.common import COLOURS, MARKERS, MODALITY_WORDS, recall_axis

OF_NAMES = {"none": "0.35", **COLOURS}
FURTHER_ARMS = (DIRECT, STEPWISE)
FATE_COLOURS = ("#BBBBBB", "#E3C878", "#222222", "#009E73")  # far apart in lightness, too


def _rows(table: pd.DataFrame, source: str) -> list[tuple[str, pd.DataFrame]]:
    """Labels and rows of a panel, from top to bottom."""
    own = table[table["source"] == source]
    groups = [(STUDY, "", (HOP_1, HOP_2, *COMPOSED, *CONTROLS, REVERSE_NAME, REVERSE_FACT)),
              (TOGETHER, "learned together, ", FURTHER_ARMS), (PRACTISED, "practised, ", FURTHER_ARMS)]  # fmt: skip
    if source == "none":  # nothing is memorized
        arms = (HOP_1, HOP_2, *COMPOSED, *CONTROLS)
        groups = [(WITHHELD, "withheld, ", arms), (ASKED, "practised, ", arms)]
    return [
        (label + arm, own[(own["group"] == group) & (own["arm"] == arm)])
        for group, label, arms in groups for arm in arms
    ]  # fmt: skip


def multihop(table: pd.DataFrame, claim: pd.DataFrame) -> Figure:
    """Every arm by asked modality, with intervals and chance; last, public figures before anything is memorized.

    An arm without headroom  has its label in grey.
    """
    sources = [s for s in (*MODALITIES, "none") if sum(len(part) for _, part in _rows(table, s))] or list(MODALITIES)
    figure, panels = plt.subplots(1, len(sources), figsize=(4.9 * len(sources), 5.6), squeeze=False)
    mute = {(row["source"], row["arm"]) for _, row in claim.iterrows() if not row["headroom"]}
    for axes, source in zip(panels[0], sources, strict=True):
        rows = [(label, part) for label, part in _rows(table, source) if len(part)]
        for y, (_, part) in enumerate(rows):
            axes.plot([part["chance"].iloc[0]] * 2, [y - 0.32, y + 0.32], color="0.45", ls=":", lw=1.4, zorder=1)
            for shift, asked in ((-0.12, "image"), (0.12, "text"), (0.0, "none")):
                row = part[part["asked"] == asked]
                if len(row):
                    error = [row["estimate"] - row["low"], row["high"] - row["estimate"]]
                    axes.errorbar(row["estimate"], [y + shift], xerr=[e.clip(lower=0) for e in error], ls="none",
                                  color=OF_NAMES[asked], marker=MARKERS.get(asked, "D"), ms=5, capsize=2.5)  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
        for tick, (label, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color("0.55" if (source, label) in mute else "black")
        axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.05)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("answered exactly right")
        axes.grid(axis="y", visible=False)
        title = "Public figures, base model" if source == "none" else f"Names learned from {MODALITY_WORDS[source]}"
        axes.set_title(title)
    handles = [plt.Line2D([], [], color=COLOURS[m], marker=MARKERS[m], ls="none", label=f"shown {MODALITY_WORDS[m]}")
               for m in MODALITIES]  # fmt: skip
    handles += [plt.Line2D([], [], color="0.35", marker="D", ls="none", label="a name alone"),
                plt.Line2D([], [], color="0.45", ls=":", label="chance"),
                plt.Line2D([], [], ls="none", label="grey label: not above chance in the source")]  # fmt: skip
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5)
    return figure


def multihop_decomposition(table: pd.DataFrame) -> Figure:
    """Where the chain breaks, as shares of all questions; a diamond: what independent hops would give."""
    figure, panels = plt.subplots(1, 2, figsize=(10.0, 3.9), sharey=True)
    for axes, source in zip(panels, MODALITIES, strict=True):
        own = table[table["source"] == source]
        bars = [(arm, asked) for arm in CHAINED for asked in (source, *(m for m in MODALITIES if m != source))]
        for x, (arm, asked) in enumerate(bars):
            part = own[(own["arm"] == arm) & (own["asked"] == asked)].set_index("quantity")
            if part.empty:
                continue
            x, bottom = x + 0.35 * (x // 2), 0.0
            for fate, colour in zip(reversed(FATES), reversed(FATE_COLOURS), strict=True):
                share = part.loc[fate, "estimate"]
                axes.bar(x, share, bottom=bottom, color=colour, width=0.82, edgecolor="white", linewidth=0.5, zorder=2)
                bottom += share
            expected = part.loc[["expected if independent"]]
            error = [expected["estimate"] - expected["low"], expected["high"] - expected["estimate"]]
            axes.errorbar([x], expected["estimate"], yerr=[e.clip(lower=0) for e in error], marker="D", ms=5,
                          mec="white", mew=0.6, color="#CC0000", capsize=3, zorder=4)  # fmt: skip
        places = [k + 0.35 * (k // 2) for k in range(len(bars))]
        axes.set_xticks(places, ["pictures" if asked == "image" else "texts" for _, asked in bars], fontsize=8)
        for k, arm in enumerate(CHAINED):
            axes.annotate(arm, (np.mean(places[2 * k : 2 * k + 2]), 0), xycoords=("data", "axes fraction"),
                          xytext=(0, -28), textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        axes.set_title(f"Names learned from {MODALITY_WORDS[source]}")
        axes.grid(axis="x", visible=False)
        recall_axis(axes, False)
        axes.set_ylabel("share of questions" if source == MODALITIES[0] else "")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, label=fate)
               for fate, colour in zip(FATES, FATE_COLOURS, strict=True)]  # fmt: skip
    handles.append(plt.Line2D([], [], marker="D", color="#CC0000", ls="none", label="if hops were independent"))
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, fontsize=8)
    return figure


def multihop_curves(table: pd.DataFrame, chance: float) -> Figure:
    """The hops and two composed arms along the training; dashed: one seed trained longer."""
    arms: Sequence[str] = (HOP_1, HOP_2, DIRECT, STEPWISE)
    figure, panels = plt.subplots(2, len(arms), figsize=(12.0, 5.6), sharey=True, sharex=True)
    lengths = list(dict.fromkeys(table.sort_values("epochs")["trained"]))
    for line, source in enumerate(MODALITIES):
        for column, arm in enumerate(arms):
            axes = panels[line, column]
            for asked, colour in OF_NAMES.items():
                rows = table[(table["source"] == source) & (table["arm"] == arm) & (table["asked"] == asked)]
                for trained, part in rows.groupby("trained", sort=False):
                    mean = part.groupby("epoch")["recall"].mean()
                    axes.plot(mean.index, mean, color=colour, marker=MARKERS.get(asked, "D"), ms=4,
                              ls="-" if trained == lengths[0] else "--", lw=1.6)  # fmt: skip
            if arm != HOP_1:
                axes.axhline(chance, color="0.45", ls=":", lw=1.2)
            recall_axis(axes, False)
            if line == 0:
                axes.set_title(arm)
            else:
                axes.set_xlabel("epochs")
        panels[line, 0].set_ylabel(f"names from {MODALITY_WORDS[source]}\nanswered exactly right")
    handles = [plt.Line2D([], [], color=COLOURS[m], marker=MARKERS[m], ms=4, label=f"shown {MODALITY_WORDS[m]}")
               for m in MODALITIES]  # fmt: skip
    handles.append(plt.Line2D([], [], color="0.35", marker="D", ms=4, label="a name alone"))
    handles += [plt.Line2D([], [], color="0.2", ls="-" if k == 0 else "--", label=trained)
                for k, trained in enumerate(lengths)]  # fmt: skip
    handles.append(plt.Line2D([], [], color="0.45", ls=":", label="chance"))
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6)
    return figure
