"""Commands: run a notebook headlessly, look into the store, and what who changes the study needs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nbformat
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from xmem_utils import headless, paths, plots, store
from xmem_utils.experiment import Study, persona_spec
from xmem_utils.gap import collect
from xmem_utils.params import MODALITIES, PROFILES, TUNING_SEEDS
from xmem_utils.personas.dataset import build, content_fingerprint, known_figures
from xmem_utils.vlm.load import load_vlm, resolve_model
from xmem_utils.vlm.threads import set_threads

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


def write_tuning(model: str) -> None:
    """Memorize the tuning personas in each modality and record recall in both, in the base model's folder."""
    set_threads()
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
        for left in ("papermill", "widgets"):  # times and paths of a run, states of its progress bars
            notebook.metadata.pop(left, None)
        notebook.metadata["language_info"] = {"name": "python"}
        for cell in notebook.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
            if cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" not in cell.source:
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)


def run(name: str, assignments: list[str], out: Path | None) -> None:
    """Run a notebook headlessly; wrong parameters end in one sentence, a failing notebook in its error."""
    try:
        print(headless.run(name, headless.parse(assignments), out))
    except ValueError as error:
        sys.exit(f"{name}: {error}")
    except DeadKernelError:
        sys.exit(f"{name}: its kernel died (killed, or out of memory?); what it had stored is there, run it again")
    except PapermillExecutionError as error:
        copy = out or paths.EXECUTED / f"{name}.ipynb"
        sys.exit(
            f"{name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\nIts executed copy is {copy}"
        )


def list_runs(verify: bool) -> None:
    """Print what the store holds; with `verify`, check every checksum and exit 1 when a run is damaged."""
    table = store.listing(verify)
    print(table.to_string(index=False) if len(table) else f"no runs in {paths.RUNS}")
    if verify and len(table) and (table["state"] != "whole").any():
        sys.exit(1)


def benchmark(model: str) -> None:
    """Run the benchmarks and write their table and figure."""
    from xmem_utils import bench  # takes trainers and more along

    set_threads()
    plots.style()
    table = bench.run(model)
    plots.save(bench.draw_table(table), "benchmarks", table)
    plots.save_table("benchmarks_profile", bench.run_profile(model))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m xmem_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run a notebook headlessly: run 03_gap_analysis -p seeds=5")
    running.add_argument("notebook")
    running.add_argument("-p", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the notebook")
    running.add_argument("--out", type=Path, help="the executed copy (default: under data/executed)")
    listing = commands.add_parser("runs", help="list the stored runs")
    listing.add_argument("--verify", action="store_true", help="check every checksum")
    commands.add_parser("manifest", help="rewrite data/personas_manifest.json after changing the generator")
    tuning = commands.add_parser("tuning", help="recall of the tuning personas, into the base model's folder")
    tuning.add_argument("--model", default="xmem-tiny-s")
    benching = commands.add_parser("bench", help="benchmarks, into figures/benchmarks")
    benching.add_argument("--model", default="xmem-tiny-s")
    stripping = commands.add_parser("strip", help="make executed notebooks fit to commit")
    stripping.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.notebook, arguments.p, arguments.out)
    elif arguments.command == "runs":
        list_runs(arguments.verify)
    elif arguments.command == "manifest":
        write_manifest()
    elif arguments.command == "bench":
        benchmark(arguments.model)
    elif arguments.command == "tuning":
        write_tuning(arguments.model)
    else:
        strip(arguments.notebooks)


if __name__ == "__main__":
    main()
