"""From a checkout to pages: its documents as they are, its notebooks executed, the people, the tables."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import nbformat
import pandas as pd

from xmem_utils import paths
from xmem_utils.claims import marks
from xmem_utils.explore.widgets import table_of
from xmem_utils.params import profile_named
from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.personas.dataset import load_personas, persona_spec
from xmem_utils.replicates import LADDER, replicates_of

HERE = paths.PACKAGE / "site"
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(\.\./figures/([^)]+)\)")


def build(out: Path, source: Path) -> Path:
    """Write the pages into `out` (both folders are emptied) and return the first one. Raises ModuleNotFoundError
    without Sphinx, ValueError when it fails or warns."""
    from sphinx.cmd.build import build_main

    for folder in (out, source):
        shutil.rmtree(folder, ignore_errors=True)
    _write_source(source)
    if build_main(["-q", "-W", "--keep-going", "-b", "html", str(source), str(out)]):
        raise ValueError(f"the pages could not be built from {source}; what Sphinx said stands above")
    return out / "index.html"


def _write_source(source: Path) -> None:
    shutil.copytree(paths.REPO / "figures", source / "figures")
    (source / "_static").mkdir()
    shutil.copy(HERE / "conf.py", source)
    for document in ("README.md", *(f"docs/{file.name}" for file in sorted((paths.REPO / "docs").glob("*.md")))):
        _copy(document, source)
    notebooks = sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    for name in notebooks:
        executed = paths.EXECUTED / "standard" / f"{name}.ipynb"
        place = source / "notebooks" / f"{name}.ipynb"
        place.parent.mkdir(exist_ok=True)
        notebook = nbformat.read(executed if executed.exists() else paths.NOTEBOOKS / place.name, as_version=4)
        _describe_pictures(notebook)
        nbformat.write(notebook, place)
    for module in paths.NOTEBOOKS.glob("*.py"):  # a notebook links to it
        shutil.copy(module, source / "notebooks")
    (source / "people.md").write_text(_people(source / "_static" / "people"), "utf-8")
    (source / "tables.md").write_text(_tables(source), "utf-8")
    (source / "index.md").write_text(_index(source, notebooks), "utf-8")


def _describe_pictures(notebook: nbformat.NotebookNode) -> None:
    """Give every picture that a notebook draws an alternative text: its words in the results, or the heading above."""
    results = (paths.REPO / "docs" / "results.md").read_text("utf-8")
    words = {Path(file).stem: said for said, file in PICTURE.findall(results)}
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.*)", cell.source, re.MULTILINE) or [heading])[-1]
        elif any("image/png" in output.get("data", {}) for output in cell.outputs):
            saved = re.search(r'plots\.save\(.*"(\w+)",', cell.source)
            said = words.get(saved[1] if saved else "", heading)
            cell.metadata["mystnb"] = {"image": {"alt": f"Figure: {said}"}}


def _copy(document: str, source: Path) -> None:
    """A document, and the files that it links to, which become downloads."""
    place, text = source / document, (paths.REPO / document).read_text("utf-8")
    for target in LINK.findall(text):
        file = (paths.REPO / document).parent / target
        own = source / file.resolve().relative_to(paths.REPO)
        if file.is_dir():  # there is no page of a folder
            text = re.sub(rf"\[([^\]]*)\]\({re.escape(target)}\)", r"\1", text)
        if file.is_file() and file.suffix not in (".md", ".ipynb"):
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, own)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, "utf-8")


def _index(source: Path, notebooks: Iterable[str]) -> str:
    """README's beginning and claims, and all figures that the results show."""
    readme, results = ((source / name).read_text("utf-8") for name in ("README.md", "docs/results.md"))
    start, end = marks("claims")
    first, claims = readme.partition("\n## ")[0], readme.partition(start)[2].partition(end)[0]
    shown = "\n".join(
        f'<a href="docs/results.html"><img src="_images/{html.escape(picture)}" alt="{html.escape(words)}" '
        'loading="lazy"></a>'
        for words, picture in PICTURE.findall(results)
    )
    return "\n".join(
        [
            first,
            "\n## What was found\n\n![The claims](figures/claims.png)\n",
            claims,
            "\n## The figures\n\n```{raw} html",
            '<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(15em,1fr));gap:1em">',
            shown,
            "</div>\n```\n",
            _contents("Study", ["README and commands <README>", "docs/results", "docs/compared", "people", "tables",
                                "docs/tables"]),
            _contents("Notebooks", [f"notebooks/{name}" for name in notebooks]),
            _contents("Your own", ["docs/your_own_people", "docs/your_own_model", "docs/add_a_method",
                                   "docs/real_models", "docs/reliability"]),
        ]
    )  # fmt: skip


def _contents(caption: str, pages: Iterable[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def _people(folder: Path) -> str:
    """The people of the first replicate, in a grid that filters by attribute and name."""
    profile = profile_named("standard")
    replicate = replicates_of(LADDER, profile.replicates)[0]
    table = table_of(load_personas(persona_spec(profile, replicate))[0])
    folder.mkdir()
    fields = ['<label>name<input name="name" type="search" placeholder="a part of it"></label>']
    for axis in AXIS_NAMES:
        options = "".join(f"<option>{html.escape(value)}</option>" for value in sorted(table[axis].unique()))
        fields.append(
            f'<label>{axis}<select name="{_key(axis)}"><option value="">any</option>{options}</select></label>'
        )
    page = (HERE / "people.html").read_text("utf-8").replace("FIELDS", "\n".join(fields))
    cards = [_card(row, folder) for _, row in table.iterrows()]
    return "\n".join(
        [
            "# The people\n",
            f"The {len(table)} people of replicate {replicate}, each with an unseen portrait and description. Names",
            "are made up, and nobody here lives.\n",
            "```{raw} html",
            page.replace("CARDS", "\n".join(cards)),
            "```\n",
        ]
    )


def _key(axis: str) -> str:
    return axis.replace(" ", "")


def _card(person: pd.Series, folder: Path) -> str:
    file, name = f"{person['persona']}.png", html.escape(person["name"])
    person["image"].save(folder / file)
    known = " ".join(f'data-{_key(axis)}="{html.escape(person[axis])}"' for axis in AXIS_NAMES)
    return (
        f'<figure data-name="{name.lower()}" {known}><img src="_static/people/{file}" width="128" height="128" '
        f'alt="portrait of {name}" loading="lazy"><figcaption><b>{name}</b>{html.escape(person["description"])}'
        "</figcaption></figure>"
    )


def _tables(source: Path) -> str:
    """Every table behind a figure, to download."""
    lines = [
        "# Tables\n",
        "Every number of the study, four digits after the point.\n",
        "| table | rows | columns |",
        "|---|---|---|",
    ]
    for file in sorted((source / "figures").glob("*.csv")):
        table = pd.read_csv(file)
        columns = ", ".join(f"`{column}`" for column in table.columns)
        lines.append(f"| [{file.stem}](figures/{file.name}) | {len(table)} | {columns} |")
    return "\n".join(lines) + "\n"
