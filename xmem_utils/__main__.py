"""Small commands for who changes the study: `python -m xmem_utils manifest` and `strip`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nbformat
import torch

from xmem_utils import paths
from xmem_utils.experiment import Study, persona_spec
from xmem_utils.gap import collect
from xmem_utils.params import MODALITIES, PROFILES
from xmem_utils.personas.dataset import build, content_fingerprint, known_figures
from xmem_utils.vlm.load import load_vlm, resolve_model

MANIFEST_PROFILES = ("quick", "standard")


def write_manifest() -> None:
    """Draw the personas of the quick and standard profiles anew and record their fingerprints."""
    entries = {}
    for name in MANIFEST_PROFILES:
        for seed in PROFILES[name].seeds:
            spec = persona_spec(PROFILES[name], seed)
            entries[spec.slug] = {"fingerprint": content_fingerprint(build(spec, known_figures()))}
            print(spec.slug, entries[spec.slug]["fingerprint"])
    paths.MANIFEST.write_text(json.dumps(entries, indent=1) + "\n")


TUNING_SEEDS = (900, 901, 902)  # used for choosing, so no reported number may use them


def write_tuning(model: str) -> None:
    """Memorize the tuning personas in each modality and record recall in both, in the base model's folder."""
    torch.set_num_threads(2)
    study = Study(load_vlm(model), PROFILES["standard"], rank=16, learning_rate=2e-3)
    runs = study.run_all([study.condition(s, seed) for seed in TUNING_SEEDS for s in MODALITIES])
    records = collect(runs).query("probe == 'view'")
    table = records.pivot_table(index=["source", "seed"], columns="asked", values="exact", aggfunc="mean")
    table = table.add_prefix("recall asked in ").reset_index()
    table.to_csv(Path(resolve_model(model)) / "tuning.csv", index=False, float_format="%.4f")
    print(table.to_string(index=False))


def strip(notebooks: list[Path]) -> None:
    """Make executed notebooks fit to commit: only cells that nbval compares keep output and count."""
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("papermill", None)
        notebook.metadata["language_info"] = {"name": "python"}
        for cell in notebook.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
            if cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" not in cell.source:
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m xmem_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("manifest", help="rewrite data/personas_manifest.json after changing the generator")
    tuning = commands.add_parser("tuning", help="recall of the tuning personas, into the base model's folder")
    tuning.add_argument("--model", default="xmem-tiny-s")
    stripping = commands.add_parser("strip", help="make executed notebooks fit to commit")
    stripping.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "manifest":
        write_manifest()
    elif arguments.command == "tuning":
        write_tuning(arguments.model)
    else:
        strip(arguments.notebooks)


if __name__ == "__main__":
    main()
