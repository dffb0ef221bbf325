"""What notebook 09 shows: a browser of people, a model that can be asked, a comparison of what is stored."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from datasets import DatasetDict
from IPython.display import HTML
from matplotlib.ticker import MaxNLocator
from PIL import Image

from xmem_utils.experiment import summary
from xmem_utils.explore.models import Stored, ask, people_of, picture, stored
from xmem_utils.params import MODALITIES, VIEWS
from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.personas.dataset import SHOWN_IN, names_of, to_views
from xmem_utils.personas.views import View
from xmem_utils.plots.parts import facets, look, with_legend

ANY = "any"
PAGE = 12  # people on one page
MINE = {"my picture": "image", "my words": "text"}
WRAPPED = widgets.Layout(display="flex", flex_flow="row wrap")
WIDE = {"layout": {"width": "auto"}, "style": {"description_width": "8em"}}


def _png(picture: Image.Image | plt.Figure, words: str, width: int) -> str:
    """A picture as HTML, with words for who cannot see it."""
    stream = io.BytesIO()
    if isinstance(picture, plt.Figure):
        picture.savefig(stream, format="png", bbox_inches="tight")
    else:
        picture.save(stream, "png")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(words)}" width="{width}" src="data:image/png;base64,{data}">'


# -- people ------------------------------------------------------------------------------------------


def table_of(people: DatasetDict) -> pd.DataFrame:
    """The first test portrait and description of every person, with name and attributes (none of your own people)."""
    rows: dict[int, dict] = {}
    for row in people["test"]:
        own = rows.setdefault(row["persona"], dict(row))
        for column in SHOWN_IN.values():
            own[column] = own[column] if own[column] is not None else row[column]
    return pd.DataFrame(rows.values()).sort_values("persona", ignore_index=True)


def _card(person: pd.Series) -> str:
    name, text = html.escape(person["name"]), html.escape(person["description"])
    portrait = _png(person["image"], f"portrait of {person['name']}", 96)
    return (
        f'<figure style="width:15em;margin:.4em">{portrait}<figcaption style="line-height:1.25">'
        f"<b>{name}</b><br><small>{text}</small></figcaption></figure>"
    )


def cards(table: pd.DataFrame) -> HTML:
    """Rows of a `table_of` people as portraits with name and description; shows in a notebook that nobody runs, too."""
    return HTML(f'<div style="display:flex;flex-wrap:wrap">{"".join(_card(row) for _, row in table.iterrows())}</div>')


def browsing(people: DatasetDict) -> widgets.VBox:
    """A browser of people: portraits and descriptions, by attribute and by a part of the name."""
    table = table_of(people)
    axes = [axis for axis in AXIS_NAMES if table[axis].notna().all()]
    chosen = {a: widgets.Dropdown(options=[ANY, *sorted(table[a].unique())], description=a, **WIDE) for a in axes}
    name = widgets.Text(description="name", placeholder="a part of it", continuous_update=True, **WIDE)
    page = widgets.BoundedIntText(value=1, min=1, max=1, description="page", **WIDE)
    count, grid = widgets.HTML(), widgets.HTML()

    def show(_: object = None) -> None:
        found = table[table["name"].str.contains(name.value.strip(), case=False, regex=False)]
        for axis, field in chosen.items():
            found = found[(found[axis] == field.value) | (field.value == ANY)]
        page.max = max(1, -(-len(found) // PAGE))
        own = found.iloc[(page.value - 1) * PAGE : page.value * PAGE]
        count.value = f"{len(found)} of {len(table)} people"
        grid.value = cards(own).data

    for field in (name, page, *chosen.values()):
        field.observe(show, "value")
    show()
    return widgets.VBox([widgets.Box([name, *chosen.values(), page], layout=WRAPPED), count, grid])


# -- asking ------------------------------------------------------------------------------------------


def asking(runs: Sequence[Stored] | None = None, folder: str = "") -> widgets.VBox:
    """Ask a stored model: choose it, show it a person's unseen view, your own picture or your own words.

    `folder` is where the people are if they are your own. Raises ValueError where nothing is stored.
    """
    runs = stored() if runs is None else list(runs)
    if not runs:
        raise ValueError("nothing is stored yet: run notebook 02 first")
    run = widgets.Dropdown(options=[(r.label, r) for r in runs], description="model", **WIDE)
    what = widgets.ToggleButtons(options=[*VIEWS.values(), *MINE], description="show", **WIDE)
    person = widgets.Dropdown(description="person", **WIDE)
    view = widgets.BoundedIntText(value=1, min=1, max=1, description="view", **WIDE)
    upload = widgets.FileUpload(accept="image/*", description="a picture")
    text = widgets.Textarea(placeholder="A woman with short black hair and round glasses.", **WIDE)
    button = widgets.Button(description="Ask", button_style="primary")
    shown, answer = widgets.HTML(), widgets.HTML()

    @lru_cache(maxsize=2)
    def unseen(of: Stored, modality: str) -> list[View]:
        return to_views(people_of(of, folder), "test", modality)

    def views() -> list[str | Image.Image]:
        modality = {words: m for m, words in VIEWS.items()}[what.value]
        return [own.content for own in unseen(run.value, modality) if own.persona == person.value]

    def content() -> str | Image.Image:
        if what.value == "my words":
            return text.value
        if what.value == "my picture":
            if not upload.value:
                raise ValueError("no picture was chosen yet")
            return _uploaded(upload.value[0])
        return views()[view.value - 1]

    def of_run(_: object = None) -> None:
        person.options = [(name, number) for number, name in enumerate(names_of(people_of(run.value, folder)))]
        person.value = 0

    def of_view(_: object = None) -> None:
        own = what.value not in MINE
        for field in (person, view):
            field.layout.display = "" if own else "none"
        upload.layout.display = "" if what.value == "my picture" else "none"
        text.layout.display = "" if what.value == "my words" else "none"
        shown.value = ""
        if own and person.value is not None:
            there = views()
            view.max = len(there)
            shown.value = _shown(there[view.value - 1])

    def on_click(_: object) -> None:
        button.disabled = True
        try:
            answer.value = ask(run.value, content(), folder=folder)._repr_html_()
        except (ValueError, OSError) as error:
            answer.value = f"<p>{html.escape(str(error))}</p>"
        finally:
            button.disabled = False

    run.observe(of_run, "value")
    for field in (what, person, view):
        field.observe(of_view, "value")
    button.on_click(on_click)
    of_run()
    of_view()
    return widgets.VBox([run, what, person, view, upload, text, shown, button, answer])


def _uploaded(file: Mapping[str, Any]) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / (Path(file["name"]).name or "picture")
        kept.write_bytes(file["content"])
        return picture(kept)


def _shown(content: str | Image.Image) -> str:
    return f"<p>{html.escape(content)}</p>" if isinstance(content, str) else _png(content, "the portrait shown", 128)


# -- comparing ---------------------------------------------------------------------------------------


def curves(runs: Sequence[Stored]) -> plt.Figure:
    """Recall along the training of some runs, a panel each; recall of unseen views in the end is in the titles."""
    titles = [run.label.replace("/", "\n", 1) for run in runs]
    figure, (panels,) = facets((3.6 * len(runs) + 0.6, 3.6), titles, ["names recalled"], sharex=False)
    for axes, run in zip(panels, runs, strict=True):
        axes.title.set_fontsize(7)
        along, points = _along(run.curve)
        for modality in MODALITIES:
            own = points[points["query"] == modality].sort_values(along)
            axes.plot(own[along], own["recall"], **look(modality, modality, "asked with {asked}", ms=4))
        axes.set_xlabel(along)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return with_legend(figure)


def _along(curve: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The column that a curve grows along, and its points: of unlearning those of the forgotten."""
    along = next((column for column in ("epoch", "step") if column in curve), "step")
    if curve.empty:
        return along, pd.DataFrame(columns=[along, "query", "recall"])
    who = curve[curve["group"].isin(["study", "forget"])] if "group" in curve else curve
    return along, who


def comparing(runs: Sequence[Stored] | None = None) -> widgets.VBox:
    """Recall of what is stored, and the curves of what is chosen. Raises ValueError where nothing is stored."""
    runs = stored() if runs is None else list(runs)
    if not runs:
        raise ValueError("nothing is stored yet: run notebook 02 first")
    chosen = widgets.SelectMultiple(
        options=[(r.label, r) for r in runs], value=runs[:2], rows=min(10, len(runs)), description="models", **WIDE
    )
    table, drawn = widgets.HTML(), widgets.HTML()

    @lru_cache(maxsize=64)
    def recall(run: Stored) -> dict[str, float]:
        return summary(run.records)

    def show(_: object = None) -> None:
        own = list(chosen.value)[:4]
        rows = pd.DataFrame([{"model": run.label} | recall(run) for run in own])
        table.value = rows.to_html(index=False, float_format="{:.3f}".format, na_rep="") if own else ""
        drawn.value = _drawn(lambda: curves(own), "recall along the training") if own else ""

    chosen.observe(show, "value")
    show()
    return widgets.VBox([chosen, table, drawn])


def _drawn(draw: Callable[[], plt.Figure], words: str) -> str:
    figure = draw()
    try:
        return _png(figure, words, 900)
    finally:
        plt.close(figure)
