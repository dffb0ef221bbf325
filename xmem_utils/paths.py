"""Every place on disk the study uses. `XMEM_HOME` moves data and figures elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPO = PACKAGE.parent
HOME = Path(os.environ.get("XMEM_HOME", REPO)).resolve()

NOTEBOOKS = REPO / "notebooks"
BASE_MODELS = REPO / "data" / "base"  # committed: the embedded models
MANIFEST = REPO / "data" / "personas_manifest.json"  # committed: what regeneration must reproduce

DATA = HOME / "data"
PERSONAS = DATA / "personas"  # generated datasets
RUNS = DATA / "runs"  # trained adapters with their records
UNLEARNED = RUNS / "unlearning"  # what some of them forgot
MULTIHOP = RUNS / "multihop"  # what was learned in two hops
MITIGATED = RUNS / "mitigation"  # what was taught to recall across modalities
SEARCH = DATA / "search"  # looks at settings that were tried
EXECUTED = DATA / "executed"  # notebooks run by papermill
PRETRAINING = DATA / "pretraining"  # portraits and checkpoints of 00_base_model
# Where notebooks draw. `make figures` points it at the committed figures/, so that whoever plays with a notebook does
# not overwrite them.
FIGURES = Path(os.environ.get("XMEM_FIGURES", DATA / "figures")).resolve()
