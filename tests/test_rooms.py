"""Data flows one way: no module imports one that stands later in README's line, and README names every module."""

import ast
import re

from xmem_utils import paths

PACKAGE = paths.PACKAGE
LINE = re.search(r"`(params → .*?)`", (paths.REPO / "README.md").read_text("utf-8"), re.DOTALL)[1]
STATIONS = [[name.strip() for name in station.split(",")] for station in LINE.replace("\n", " ").split("→")]
PLACE = {name: i for i, station in enumerate(STATIONS) for name in station}
BESIDE = {"pretraining": ("personas", "vlm")}  # and what stands before these
ORDER = "names → people → losses → tasks → data → methods → evaluation → attacks → tables → experiment → capability"
WITHIN = ORDER.split(" → ")


def rooms():
    return {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in PACKAGE.rglob("*.py")} - {
        "__init__", "__main__", "__pycache__",
    }  # fmt: skip


def imports():
    """Pairs of modules, (importing, imported), by their path below the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        here = file.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
                base = node.module.split(".")[1:]
                for alias in node.names:
                    yield here, tuple(base or [alias.name]) if len(base) != 1 else (base[0], alias.name)


def test_readme_names_every_module():
    assert rooms() - set(BESIDE) == set(PLACE)


def test_nothing_imports_what_stands_later():
    for here, there in imports():
        if here[0] in ("__main__", "__init__") or here[0] == there[0]:
            continue
        if here[0] in BESIDE:
            limit = max(PLACE[name] for name in BESIDE[here[0]])
            assert PLACE[there[0]] <= limit, f"{here} imports {there}"
        elif there[0] in BESIDE:
            assert PLACE[here[0]] > PLACE["vlm"], f"{here} imports {there}"
        else:
            assert PLACE[there[0]] <= PLACE[here[0]], f"{here} imports {there}"


def test_the_parts_of_an_experiment_stand_in_one_order():
    for here, there in imports():
        same = here[0] == there[0] and here[0] in ("memorization", "unlearning", "multihop", "mitigation")
        if same and there[1] in WITHIN and here[1] in WITHIN:
            assert WITHIN.index(there[1]) <= WITHIN.index(here[1]), f"{here} imports {there}"
