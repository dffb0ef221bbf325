"""What README and docs tell one to type exists, and what they link to is there."""

import re
import shlex

import pandas as pd
import pytest
from nbformat import read
from typer.main import get_command

from xmem_utils import claims, paths
from xmem_utils.cli import app
from xmem_utils.headless import parse
from xmem_utils.notebook import known, schema_of

DOCUMENTS = {f"{file.parent.name}/{file.name}": file.read_text("utf-8") for file in (paths.REPO / "docs").glob("*.md")}
DOCUMENTS["README"] = (paths.REPO / "README.md").read_text("utf-8")
NOTEBOOKS = {name: read(paths.NOTEBOOKS / f"{name}.ipynb", 4).cells for name in known()}
TEXTS = DOCUMENTS | {
    name: "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for name, cells in NOTEBOOKS.items()
}
PLACES = {name: paths.NOTEBOOKS if name in NOTEBOOKS else (paths.REPO / name).parent for name in TEXTS}
MAKEFILE = (paths.REPO / "Makefile").read_text("utf-8").replace("$(VENV)", ".venv")


def written(program):
    """(document, words) of every call of a program: in blocks of code, long lines joined, and within a sentence."""
    for name, text in TEXTS.items():
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in (*lines, *(" ".join(words.split()) for words in inline)):
            if found := re.search(rf"(?:^|[\s;&]){program} (.*)", line):
                yield name, shlex.split(found[1], comments=True)


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


COMMANDS = list(written(r"-m xmem_utils"))


@pytest.mark.parametrize(
    ("document", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_a_command_exists_with_its_options_and_parameters(document, words):
    group = get_command(app)
    assert words[0] in group.commands, f"{document}: {words}"
    command = group.commands[words[0]]
    if len(words) > 1:  # a command by its name alone needs no arguments
        given = command.make_context(words[0], words[1:]).params  # raises for an option that it does not have
        if given.get("notebook"):
            fields = schema_of(given["notebook"]).model_fields
            assert parse(given.get("given") or ()).keys() <= fields.keys(), f"{document}: {words}"


def test_papermill_is_given_parameters_that_exist():
    calls = list(written("papermill"))
    for _, (notebook, _, *given) in calls:
        assert (paths.REPO / notebook).exists()
        assert {given[i + 1] for i, word in enumerate(given) if word == "-p"} <= schema_of(
            paths.Path(notebook).stem
        ).model_fields.keys()
    assert calls


def test_make_has_what_it_is_told():
    targets = set(re.findall(r"^([\w./-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"\$\((\w+)\)", MAKEFILE))
    calls = list(written("make"))
    for document, words in calls:
        for word in words:
            name, equals, _ = word.partition("=")
            assert name in (variables if equals else targets), f"{document}: make {' '.join(words)}"
    assert {"figures", "test"} <= {words[0] for _, words in calls}


def test_rules_that_draw_one_claim_exist():
    rules = set(re.findall(r"^rule (\w+):", (paths.REPO / "Snakefile").read_text("utf-8"), re.MULTILINE))
    assert {*claims.NEEDS, *(rule for needed in claims.NEEDS.values() for rule in needed)} <= rules
    assert {evidence.notebook.partition("_")[2] for evidence in claims.EVIDENCE} == set(claims.NEEDS)


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[document]):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = PLACES[document] / file if file else None
        assert there is None or there.exists(), f"{document}: {target}"
        if anchor and (there is None or there.suffix == ".md"):
            text = there.read_text("utf-8") if there else TEXTS[document]
            assert anchor in map(slug, re.findall(r"^#+ (.*)", text, re.MULTILINE)), f"{document}: {target}"


def test_every_column_of_every_table_is_explained():
    explained = set(re.findall(r"`([^`]+)`", DOCUMENTS["docs/tables.md"]))
    ends = re.compile(r" (people low|people high|low|high|each|p holm|p)$")
    unknown = {
        (file.stem, column)
        for file in (paths.REPO / "figures").glob("*.csv")
        for column in pd.read_csv(file, nrows=0).columns
        if not {column, ends.sub("", column)} & explained and not (paths.BASE_MODELS / column).is_dir()
    }
    assert unknown == set()
