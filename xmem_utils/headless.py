"""Running a notebook from the terminal: parameters checked first, one short line a step, then papermill."""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml

from xmem_utils import params, paths
from xmem_utils.progress import LINES, MARK


class _Relay(logging.Handler):
    """Passes the kernel's progress lines on to the terminal; papermill logs all output of a run."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def emit(self, record: logging.LogRecord) -> None:
        for line in record.getMessage().splitlines():
            if line.startswith(MARK):
                print(f"[{self.label}] {line.removeprefix(MARK)}", file=sys.stderr, flush=True)


def find(name: str) -> Path:
    """The notebook of a name such as "03_gap_analysis". Raises ValueError naming the known ones."""
    if name not in params.NOTEBOOKS:
        raise ValueError(f"unknown notebook {name!r}: expected one of {', '.join(params.NOTEBOOKS)}")
    return paths.NOTEBOOKS / f"{name}.ipynb"


def defaults(notebook: Path) -> dict[str, Any]:
    """Names and values of a notebook's parameters cell."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            lines = ast.parse(cell.source).body
            return {line.target.id: ast.literal_eval(line.value) for line in lines if isinstance(line, ast.AnnAssign)}
    raise ValueError(f"{notebook} has no cell tagged 'parameters'")


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """Values of "name=value" strings, read as YAML, but for numbers such as 1e-3, which YAML takes for text."""
    given = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"-p takes name=value, not {assignment!r}")
        number = re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text)
        given[name] = float(text) if number else yaml.safe_load(text) if text else ""
    return given


def checked(name: str, given: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Values for a notebook as papermill shall pass them on, and the frozen object they make with its defaults.

    Raises ValueError when the notebook, a parameter or a value is wrong.
    """
    known = defaults(find(name))
    # a whole number is a fine value for a parameter that is a float
    given = {k: float(v) if isinstance(known.get(k), float) and type(v) is int else v for k, v in given.items()}
    for key in ("profile", "model", "people"):  # the kernel runs in another folder
        if isinstance(given.get(key), str) and Path(given[key]).exists():
            given[key] = str(Path(given[key]).resolve()) if given[key] else ""
    return given, params.check(params.NOTEBOOKS[name], known | given)


def run(name: str, given: dict[str, Any], out: Path | None = None) -> Path:
    """Check parameters against a notebook's types, execute it, and return the executed copy.

    Raises ValueError before anything starts when the notebook, a parameter or a value is wrong. When the
    notebook fails, its executed copy is there for reading.
    """
    notebook = find(name)
    given, _ = checked(name, given)
    out = out or paths.EXECUTED / notebook.name
    out.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("papermill")
    relay = _Relay(" ".join([name, *(str(given[key]) for key in ("source", "shard") if key in given)]))
    level = logger.level
    logger.addHandler(relay)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    os.environ[LINES] = "1"
    try:
        papermill.execute_notebook(
            notebook,
            out,
            given,
            cwd=paths.NOTEBOOKS,
            progress_bar=False,
            log_output=True,
            extra_arguments=["--log-level=50"],  # the kernel's own remarks are no concern of who runs a study
        )
    finally:
        del os.environ[LINES]
        logger.removeHandler(relay)
        logger.setLevel(level)
    return out
