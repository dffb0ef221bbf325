"""What all notebooks share: the parameters a notebook declares, how it starts, what it cost."""

from __future__ import annotations

import ast
import json
import resource
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import create_model

from xmem_utils import params, paths

TYPES = {kind.__name__: kind for kind in (str, int, float, bool)} | {"int | None": int | None}
LIBRARIES = ("torch", "transformers", "peft", "datasets")


def known() -> list[str]:
    """The names of all notebooks, in order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find(name: str) -> Path:
    """The notebook of a name such as "03_gap_analysis". Raises ValueError naming the known ones."""
    if name not in known():
        raise ValueError(f"unknown notebook {params.shown(name)}: expected one of {', '.join(known())}")
    return paths.NOTEBOOKS / f"{name}.ipynb"


@cache
def schema_of(name: str) -> type[params.Parameters]:
    """The class of a notebook's parameters: names, types and defaults as its parameters cell declares them.

    Every line there is `name: type = default`; what a value must be beyond its type stands in `params.RULES`. Raises
    ValueError for an unknown notebook.
    """
    cells = json.loads(find(name).read_text(encoding="utf-8"))["cells"]
    [declared] = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    fields = {}
    for line in ast.parse(declared).body:
        kind = params.RULES.get(line.target.id, TYPES[ast.unparse(line.annotation)])
        fields[line.target.id] = (kind, ast.literal_eval(line.value))
    return create_model(name, __base__=params.Parameters, **fields)


def start(name: str, namespace: dict[str, Any]) -> tuple[params.Parameters, params.Profile | None, Callable[[], None]]:
    """What a notebook begins with: its parameters, frozen; its profile, as they scale it; and what prints its cost.

    Call it with `globals()` right after the parameters cell, before any other name is made. Sets torch's threads and
    the style of plots, and prints versions. Raises ValueError for a wrong parameter, before anything slow is imported.
    """
    began = time.perf_counter()
    p = params.freeze(schema_of(name), namespace)
    profile = params.scaled(params.profile_named(p.profile), p) if hasattr(p, "profile") else None

    from xmem_utils import plots
    from xmem_utils.vlm.threads import set_threads

    threads = set_threads()
    plots.style()
    print(", ".join(f"{library} {version(library)}" for library in LIBRARIES))

    def cost() -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        spent = time.perf_counter() - began
        print(f"{spent:.0f} s for this notebook on {threads} thread(s), {memory:.2f} GiB at most")

    return p, profile, cost
