"""Commands: run a notebook headlessly, look into the store, and what who changes the study needs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path

import nbformat
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from xmem_utils import headless, paths, plots, store
from xmem_utils import plan as planning
from xmem_utils.experiment import Study, persona_spec, plain_recall
from xmem_utils.gap import collect
from xmem_utils.mitigate import design as mitigation
from xmem_utils.mitigate import search as mitigation_search
from xmem_utils.mitigate.study import MitigationStudy
from xmem_utils.multihop import study as hops
from xmem_utils.multihop.tables import accuracies
from xmem_utils.multihop.tables import collect as collect_hops
from xmem_utils.params import KNOWN, MODALITIES, PROFILES, TUNING_SEEDS, profile_named, shard_of
from xmem_utils.personas.dataset import build, content_fingerprint, known_figures
from xmem_utils.unlearn import design, search
from xmem_utils.unlearn.study import UnlearningStudy
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


def train(arguments: argparse.Namespace) -> None:
    """Train conditions into the store, without a notebook: alone, or in each process of an `accelerate launch`.

    Notebooks with the same profile and settings then find them there.
    """
    # who is not the main process waits while that one waits for another launch that trains the same condition
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    # several processes without a GPU find each other only when the CPU is asked for
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision="no", kwargs_handlers=[patience]
    )
    set_threads()
    seeds = arguments.seed or profile_named(arguments.profile).seeds
    sources = MODALITIES if arguments.source == "both" else (arguments.source,)
    study = None
    for source, seed in product(sources, seeds):
        if study is None or accelerator.distributed_type == DistributedType.FSDP:  # which left the last one sharded
            study = Study(
                load_vlm(arguments.model, accelerator.device),
                profile_named(arguments.profile),
                rank=arguments.rank,
                learning_rate=arguments.learning_rate,
                people=arguments.people,
                accumulation=arguments.accumulation,
                gradient_checkpointing=arguments.gradient_checkpointing,
                checkpoint=arguments.checkpoint,
            )
        made = study.run(study.condition(source, seed))
        if accelerator.is_main_process:
            print(made.condition.slug, {asked: round(r, 3) for asked, r in plain_recall(made.records).items()})
    accelerator.end_training()


def show_plan(arguments: argparse.Namespace) -> None:
    """Print what one condition takes with a model, from its config alone."""
    try:
        profile = profile_named(arguments.profile)
        made = planning.plan(
            planning.config_of(arguments.model),
            profile,
            arguments.rank,
            accumulation=arguments.accumulation,
            processes=arguments.processes,
            gradient_checkpointing=arguments.gradient_checkpointing,
            tokens=arguments.tokens,
            tflops=arguments.tflops,
        )
        if arguments.measure:
            set_threads()
            step = planning.measured_seconds(
                arguments.model, arguments.rank, 32, arguments.accumulation, arguments.gradient_checkpointing
            )
            made = replace(made, seconds=step * made.steps)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"plan: {error}")
    print(json.dumps(made.as_dict(), indent=1) if arguments.json else planning.table(made))


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


def climb(rungs: list[int]) -> None:
    """Pretrain the bases of the knowledge ladder that are missing, measure all and write their tables."""
    from xmem_utils import capability
    from xmem_utils.base import build as bases

    set_threads()
    for known in rungs:
        if not capability.rung_base(known).exists():
            bases.pretrain("s", known=known)
        capability.measure_rung(known)
        print(capability.rung_folder(known))


def practise_hops() -> None:
    """Train the base of the multi-hop study from the committed one, and put it to the study with tuning people."""
    from xmem_utils.base import build as bases

    set_threads()
    folder = bases.practise_hops()
    study = hops.MultihopStudy(load_vlm(folder.name), PROFILES["standard"], rank=16, learning_rate=2e-3)
    runs = study.run_all([study.condition(source, TUNING_SEEDS[0]) for source in MODALITIES])
    table = accuracies(collect_hops(runs), PROFILES["standard"].resamples)
    table.to_csv(folder / "tuning.csv", index=False, float_format="%.4f")
    print(folder)


def search_settings(notebook: str, model: str, shard: str) -> None:
    """Try the settings of a notebook's methods on the tuning people; with all shards run, write what was chosen."""
    study_of, searching = {
        "05_unlearning": (UnlearningStudy, search),
        "07_mitigation": (MitigationStudy, mitigation_search),
    }[notebook]
    set_threads()
    try:
        study = study_of(Study(load_vlm(model), PROFILES["standard"], rank=16, learning_rate=2e-3))
        tried = searching.search(study, shard)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"search: {error}")
    if shard == "1/1":
        print(searching.write(model, tried).to_string(index=False))


def fill(notebook: str, assignments: list[str], shard: str) -> None:
    """Run a part of the conditions of a notebook into the store; the parameters are the notebook's own."""
    study_of, conditions = {
        "05_unlearning": (design.study_of, design.conditions),
        "06_multihop": (hops.study_of, lambda study, p: study.conditions(p.longer)),
        "07_mitigation": (mitigation.study_of, mitigation.conditions),
    }[notebook]
    try:
        _, p = headless.checked(notebook, headless.parse(assignments))
        set_threads()
        study = study_of(p)
        runs = study.run_all(shard_of(conditions(study, p), shard))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{notebook}: {error}")
    for run_ in runs:
        print(run_.condition.slug)


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
    training = commands.add_parser("train", help="train conditions into the store; works under accelerate launch")
    training.add_argument("--model", default="xmem-tiny-s", help="an embedded model, a folder, or a Hub id")
    training.add_argument("--source", choices=(*MODALITIES, "both"), default="both", help="the modality learned from")
    training.add_argument("--seed", type=int, action="append", help="again for more (default: those of the profile)")
    training.add_argument("--profile", default="quick", help=f"{', '.join(PROFILES)}, or a YAML file")
    training.add_argument("--rank", type=int, default=16, help="LoRA rank")
    training.add_argument("--learning-rate", type=float, default=2e-3)
    training.add_argument("--people", default="", help="a folder of your own people")
    training.add_argument("--accumulation", type=int, default=1, help="passes a step: less memory, the same result")
    training.add_argument("--gradient-checkpointing", action="store_true", help="less memory, about a third slower")
    training.add_argument("--checkpoint", action="store_true", help="save after every epoch, and go on from there")
    planned = commands.add_parser("plan", help="what a condition takes with a model: parameters, memory, steps, time")
    planned.add_argument(
        "--model", required=True, help="an embedded model, a folder, a config.json, or a cached Hub id"
    )
    planned.add_argument("--profile", default="quick", help=f"{', '.join(PROFILES)}, or a YAML file")
    planned.add_argument("--rank", type=int, default=16, help="LoRA rank")
    planned.add_argument("--accumulation", type=int, default=1, help="passes a step")
    planned.add_argument("--processes", type=int, default=1, help="GPUs (DDP); memory is that of each")
    planned.add_argument("--gradient-checkpointing", action="store_true")
    planned.add_argument("--tokens", type=int, help="tokens of a view (default: as the config says)")
    planned.add_argument("--tflops", type=float, help="what the GPUs reach together, in 10^12 operations a second")
    planned.add_argument("--measure", action="store_true", help="time a few real steps; the weights must be here")
    planned.add_argument("--json", action="store_true")
    commands.add_parser("manifest", help="rewrite data/personas_manifest.json after changing the generator")
    tuning = commands.add_parser("tuning", help="recall of the tuning personas, into the base model's folder")
    tuning.add_argument("--model", default="xmem-tiny-s")
    ladder = commands.add_parser("knowledge", help="pretrain and measure the knowledge ladder (notebook 04)")
    ladder.add_argument("--rungs", type=int, nargs="+", help="figures named in both modalities (default: all rungs)")
    commands.add_parser(
        "hops", help="pretrain the base model of the multi-hop study (notebook 06), from the committed one"
    )
    filling = commands.add_parser("fill", help="run conditions of a notebook into the store, which it then reads")
    filling.add_argument("notebook", choices=("05_unlearning", "06_multihop", "07_mitigation"))
    filling.add_argument("-p", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the notebook")
    filling.add_argument("--shard", default="1/1", help="k/n: only a part")
    searching = commands.add_parser("search", help="settings of a notebook's methods, into the model's folder")
    searching.add_argument("notebook", choices=("05_unlearning", "07_mitigation"))
    searching.add_argument("--model", default="xmem-tiny-s")
    searching.add_argument("--shard", default="1/1", help="k/n: only a part; then once more without, to gather all")
    benching = commands.add_parser("bench", help="benchmarks, into figures/benchmarks")
    benching.add_argument("--model", default="xmem-tiny-s")
    stripping = commands.add_parser("strip", help="make executed notebooks fit to commit")
    stripping.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.notebook, arguments.p, arguments.out)
    elif arguments.command == "runs":
        list_runs(arguments.verify)
    elif arguments.command == "plan":
        show_plan(arguments)
    elif arguments.command == "train":
        train(arguments)
    elif arguments.command == "manifest":
        write_manifest()
    elif arguments.command == "bench":
        benchmark(arguments.model)
    elif arguments.command == "knowledge":
        climb(arguments.rungs or list(KNOWN))
    elif arguments.command == "hops":
        practise_hops()
    elif arguments.command == "fill":
        fill(arguments.notebook, arguments.p, arguments.shard)
    elif arguments.command == "search":
        search_settings(arguments.notebook, arguments.model, arguments.shard)
    elif arguments.command == "tuning":
        write_tuning(arguments.model)
    else:
        strip(arguments.notebooks)


if __name__ == "__main__":
    main()
