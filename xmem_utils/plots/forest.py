"""Figure of notebook 08: the claims."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MultipleLocator

from xmem_utils.claims import BITS
from xmem_utils.plots.parts import UNDECIDED, VERDICTS, dots, facets, with_legend
from xmem_utils.stats import MARGIN


def claims(table: pd.DataFrame) -> plt.Figure:
    """A forest plot: a row a test of recall, grouped by claim; colour, mark and words say the verdict, hollow is
    what cannot be said. What is in bits has no
    place on its axis."""
    shown = table[table["estimate"].notna() & (table["measure"] != BITS)].reset_index(drop=True)
    labels = [f"{test}, {measure}" for test, measure in zip(shown["test"], shown["measure"], strict=True)]
    figure, ((axes,),) = facets((13, 0.27 * len(shown) + 0.34 * shown["claim"].nunique() + 1.4), [""], recall="")
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
        own = VERDICTS.get(verdict, UNDECIDED)
        dots(axes, rows, at, label=verdict, **own)
        for place in at:
            text = {"fontsize": 8, "va": "center", "color": own["color"]}
            axes.annotate(verdict, (1.02, place), xycoords=("axes fraction", "data"), **text)
    axes.set_xlim(-0.6, 1.1)  # an interval of two replicates would leave no room to the rest
    axes.axvline(0, color="0.3", lw=0.9)
    axes.axvspan(-MARGIN, MARGIN, color="0.93", zorder=0, label=f"within ±{MARGIN}")
    axes.xaxis.set_major_locator(MultipleLocator(0.25))
    axes.set_xlabel("effect, as a difference of recall (effects in bits of exposure are in the table)")
    return with_legend(figure, columns=6)
