"""Every place on disk the study uses. `XMEM_HOME` moves data and figures elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _checkout() -> Path:
    """Where the notebooks and the embedded models are: around the package or, when it is installed elsewhere, around
    the current folder. Raises FileNotFoundError when neither lies in a checkout."""
    for folder in (PACKAGE.parent, here := Path.cwd(), *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "data" / "base").is_dir():
            return folder
    raise FileNotFoundError(
        f"the package is installed in {PACKAGE.parent}, without the notebooks and the embedded models: run it inside "
        "a checkout of the study (a folder with notebooks/ and data/base/), or install it there with `pip install -e .`"
    )


def _given(variable: str, default: Path) -> Path:
    """The folder that an environment variable names, or the default when it is unset or empty.

    Raises ValueError for a name that `datasets` takes for a pattern, an address or a variable.
    """
    folder = Path(os.path.expanduser(os.environ.get(variable) or default)).resolve()
    if set("[]") & set(str(folder)) or "::" in str(folder) or os.path.expandvars(folder) != str(folder):
        raise ValueError(
            f"{variable}={str(folder)!r}: brackets, :: and the name of a $variable mean something else to libraries of "
            "the study; choose a folder without them"
        )
    return folder


REPO = _checkout()
HOME = _given("XMEM_HOME", REPO)

NOTEBOOKS = REPO / "notebooks"
BASE_MODELS = REPO / "data" / "base"  # committed: the embedded models
REAL = REPO / "data" / "real"  # committed: what was taught to the model of real parts
REAL_CAPABILITY = REPO / "figures" / "real_capability.csv"  # committed: what `make real` found; 04 draws it, too
MANIFEST = REPO / "data" / "personas_manifest.json"  # committed: what regeneration must reproduce

DATA = HOME / "data"
PERSONAS = DATA / "personas"  # generated datasets
RUNS = DATA / "runs"  # trained adapters with their records
EXECUTED = DATA / "executed"  # notebooks run by papermill
PRETRAINING = DATA / "pretraining"  # portraits and checkpoints of 00_base_model
# Where notebooks draw. `make figures` points it at the committed figures/, so that whoever plays with a notebook does
# not overwrite them.
FIGURES = _given("XMEM_FIGURES", DATA / "figures")
