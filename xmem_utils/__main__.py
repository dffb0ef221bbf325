"""Commands: run a notebook headlessly, look into the store, and what who changes the study needs."""

# Each command imports what it needs: `--help` and `runs` are there at once, and Ctrl-C is heard while torch loads.
from __future__ import annotations

import argparse
import json
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path

from xmem_utils.params import KNOWN, MODALITIES, MOST, PROFILES, TUNING_SEEDS, profile_named, shard_of, shown

MANIFEST_PROFILES = ("quick", "standard")
LONGEST = 450  # characters of what is said about an error


def write_manifest(_: argparse.Namespace) -> None:
    """Draw the personas of the quick and standard profiles anew and record their fingerprints."""
    from xmem_utils import paths
    from xmem_utils.memorization.experiment import persona_spec
    from xmem_utils.personas.dataset import build, content_fingerprint

    entries = {}
    for name in MANIFEST_PROFILES:
        for seed in PROFILES[name].seeds:
            spec = persona_spec(PROFILES[name], seed)
            entries[spec.slug] = {"fingerprint": content_fingerprint(build(spec))}
            print(spec.slug, entries[spec.slug]["fingerprint"])
    paths.MANIFEST.write_text(json.dumps(entries, indent=1) + "\n")


def folder_of(model: str) -> Path:
    """Where tables of a model are written: its folder. Raises ValueError, before any work, for a Hub id."""
    from xmem_utils.vlm.load import resolve_model

    folder = Path(resolve_model(model))
    if not folder.is_dir():
        raise ValueError(f"the tables go into the model's folder, and {shown(model)} is none: give a local copy")
    return folder


def write_tuning(arguments: argparse.Namespace) -> None:
    """Memorize the tuning personas in each modality and record recall in both, in the base model's folder."""
    from xmem_utils.memorization.experiment import Study
    from xmem_utils.memorization.tables import collect
    from xmem_utils.vlm.load import load_vlm
    from xmem_utils.vlm.threads import set_threads

    folder = folder_of(arguments.model)
    set_threads()
    study = Study(load_vlm(arguments.model), PROFILES["standard"], rank=16, learning_rate=2e-3)
    runs = study.run_all([study.condition(s, seed) for seed in TUNING_SEEDS for s in MODALITIES])
    records = collect(runs).query("probe == 'view'")
    table = records.pivot_table(index=["source", "seed"], columns="asked", values="exact", aggfunc="mean")
    table = table.add_prefix("recall asked in ").reset_index()
    table.to_csv(folder / "tuning.csv", index=False, float_format="%.4f")
    print(table.to_string(index=False))


def train(arguments: argparse.Namespace) -> None:
    """Train conditions into the store, without a notebook: alone, or in each process of an `accelerate launch`.

    Notebooks with the same profile and settings then find them there.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, InitProcessGroupKwargs

    from xmem_utils.memorization.experiment import Study, plain_recall
    from xmem_utils.vlm.load import load_vlm
    from xmem_utils.vlm.threads import set_threads

    profile = profile_named(arguments.profile)
    # who is not the main process waits while that one waits for another launch that trains the same condition
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    # several processes without a GPU find each other only when the CPU is asked for
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision="no", kwargs_handlers=[patience]
    )
    set_threads()
    seeds = arguments.seed or profile.seeds
    sources = MODALITIES if arguments.source == "both" else (arguments.source,)
    study = None
    for source, seed in product(sources, seeds):
        if study is None or accelerator.distributed_type == DistributedType.FSDP:  # which left the last one sharded
            study = Study(
                load_vlm(arguments.model, accelerator.device),
                profile,
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
    from xmem_utils import plan as planning
    from xmem_utils.vlm.threads import set_threads

    profile = profile_named(arguments.profile)
    try:
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
    except ValueError as error:  # often of transformers, about a config that somebody brought
        raise ValueError(str(error)) from error
    if arguments.measure:
        set_threads()
        step = planning.measured_seconds(
            arguments.model, arguments.rank, 32, arguments.accumulation, arguments.gradient_checkpointing
        )
        made = replace(made, seconds=step * made.steps)
    print(json.dumps(made.as_dict(), indent=1) if arguments.json else planning.table(made))


def strip(arguments: argparse.Namespace) -> None:
    """Make executed notebooks fit to commit: only cells that nbval compares keep output and count."""
    import nbformat

    for path in arguments.notebooks:
        try:
            notebook = nbformat.read(path, as_version=4)
        except (ValueError, AttributeError, nbformat.ValidationError) as error:
            raise ValueError(f"{path} is no notebook that can be read ({type(error).__name__})") from error
        for left in ("papermill", "widgets"):  # times and paths of a run, states of its progress bars
            notebook.metadata.pop(left, None)
        notebook.metadata["language_info"] = {"name": "python"}
        for cell in notebook.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
            if cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" not in cell.source:
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)


def run(arguments: argparse.Namespace) -> None:
    """Run a notebook headlessly."""
    from xmem_utils import headless

    print(headless.run(arguments.notebook, arguments.p, arguments.out))


def list_runs(arguments: argparse.Namespace) -> None:
    """Print what the store holds; with `--verify`, check every checksum and exit 1 when a run is damaged."""
    from xmem_utils import paths, store

    table = store.listing(arguments.verify)
    print(table.to_string(index=False) if len(table) else f"no runs in {paths.RUNS}")
    if arguments.verify and len(table) and (table["state"] != "whole").any():
        sys.exit(1)


def benchmark(arguments: argparse.Namespace) -> None:
    """Run the benchmarks and write their table and figure."""
    from xmem_utils import bench, plots
    from xmem_utils.vlm.threads import set_threads

    set_threads()
    plots.style()
    table = bench.run(arguments.model)
    plots.save(bench.draw_table(table), "benchmarks", table)
    plots.save_table("benchmarks_profile", bench.run_profile(arguments.model))


def climb(arguments: argparse.Namespace) -> None:
    """Pretrain the bases of the knowledge ladder that are missing, measure all and write their tables."""
    from xmem_utils.memorization import capability
    from xmem_utils.pretraining import build as bases
    from xmem_utils.vlm.threads import set_threads

    set_threads()
    for known in arguments.rungs:
        if not capability.rung_base(known).exists():
            bases.pretrain("s", known=known)
        capability.measure_rung(known)
        print(capability.rung_folder(known))


def practise_hops(_: argparse.Namespace) -> None:
    """Train the base of the multi-hop study from the committed one, and put it to the study with tuning people."""
    from xmem_utils.multihop.experiment import MultihopStudy
    from xmem_utils.multihop.tables import accuracies, collect
    from xmem_utils.pretraining import build as bases
    from xmem_utils.vlm.load import load_vlm
    from xmem_utils.vlm.threads import set_threads

    set_threads()
    folder = bases.practise_hops()
    study = MultihopStudy(load_vlm(folder.name), PROFILES["standard"], rank=16, learning_rate=2e-3)
    runs = study.run_all([study.condition(source, TUNING_SEEDS[0]) for source in MODALITIES])
    table = accuracies(collect(runs), PROFILES["standard"].resamples)
    table.to_csv(folder / "tuning.csv", index=False, float_format="%.4f")
    print(folder)


def search_settings(arguments: argparse.Namespace) -> None:
    """Try the settings of a notebook's methods on the tuning people; with all shards run, write what was chosen."""
    from xmem_utils.memorization.experiment import Study
    from xmem_utils.mitigation import search as mitigation_search
    from xmem_utils.mitigation.experiment import MitigationStudy
    from xmem_utils.unlearning import search
    from xmem_utils.unlearning.experiment import UnlearningStudy
    from xmem_utils.vlm.load import load_vlm
    from xmem_utils.vlm.threads import set_threads

    study_of, searching = {
        "05_unlearning": (UnlearningStudy, search),
        "07_mitigation": (MitigationStudy, mitigation_search),
    }[arguments.notebook]
    shard_of((), arguments.shard)  # a wrong one is refused before any work
    folder_of(arguments.model)
    set_threads()
    study = study_of(Study(load_vlm(arguments.model), PROFILES["standard"], rank=16, learning_rate=2e-3))
    tried = searching.search(study, arguments.shard)
    if arguments.shard == "1/1":
        print(searching.write(arguments.model, tried).to_string(index=False))


def fill(arguments: argparse.Namespace) -> None:
    """Run a part of the conditions of a notebook into the store; the parameters are the notebook's own."""
    from xmem_utils import headless
    from xmem_utils.mitigation import design as mitigation
    from xmem_utils.multihop import study as hops
    from xmem_utils.unlearning import design as unlearning
    from xmem_utils.vlm.threads import set_threads

    study_of, conditions = {
        "05_unlearning": (unlearning.study_of, unlearning.conditions),
        "06_multihop": (hops.study_of, lambda study, p: study.conditions(p.longer)),
        "07_mitigation": (mitigation.study_of, mitigation.conditions),
    }[arguments.notebook]
    shard_of((), arguments.shard)  # a wrong one is refused before any work
    _, p = headless.checked(arguments.notebook, arguments.p)
    set_threads()
    study = study_of(p)
    for made in study.run_all(shard_of(conditions(study, p), arguments.shard)):
        print(made.condition.slug)


def whole(least: int, most: int = 999_999_999) -> Callable[[str], int]:
    """A whole number from `least` to `most`, for argparse."""

    def read(text: str) -> int:
        if not (text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number from {least} to {most}")
        return int(text)

    return read


def throughput(text: str) -> float:
    """A positive, finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no positive number")
    return value


def parser() -> argparse.ArgumentParser:
    """All commands; `call` is the function of the one that was chosen."""
    out = argparse.ArgumentParser(prog="python -m xmem_utils", description=__doc__)
    commands = out.add_subparsers(dest="command", required=True)

    def command(name: str, call: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about)
        added.set_defaults(call=call)
        return added

    running = command("run", run, "run a notebook headlessly: run 03_gap_analysis -p seeds=5")
    running.add_argument("notebook")
    running.add_argument("-p", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the notebook")
    running.add_argument("--out", type=Path, help="the executed copy (default: under data/executed)")
    listing = command("runs", list_runs, "list the stored runs")
    listing.add_argument("--verify", action="store_true", help="check every checksum")
    training = command("train", train, "train conditions into the store; works under accelerate launch")
    training.add_argument("--model", default="xmem-tiny-s", help="an embedded model, a folder, or a Hub id")
    training.add_argument("--source", choices=(*MODALITIES, "both"), default="both", help="the modality learned from")
    training.add_argument(
        "--seed", type=whole(0), action="append", help="again for more (default: those of the profile)"
    )
    training.add_argument("--learning-rate", type=float, default=2e-3)
    training.add_argument("--people", default="", help="a folder of your own people")
    training.add_argument("--checkpoint", action="store_true", help="save after every epoch, and go on from there")
    planned = command("plan", show_plan, "what a condition takes with a model: parameters, memory, steps, time")
    planned.add_argument(
        "--model", required=True, help="an embedded model, a folder, a config.json, or a cached Hub id"
    )
    planned.add_argument("--processes", type=whole(1), default=1, help="GPUs (DDP); memory is that of each")
    planned.add_argument("--tokens", type=whole(1), help="tokens of a view (default: as the config says)")
    planned.add_argument("--tflops", type=throughput, help="what the GPUs reach together, in 10^12 operations a second")
    planned.add_argument("--measure", action="store_true", help="time a few real steps; the weights must be here")
    planned.add_argument("--json", action="store_true")
    for part in (training, planned):
        part.add_argument("--profile", default="quick", help=f"{', '.join(PROFILES)}, or a YAML file")
        part.add_argument("--rank", type=whole(1, MOST["rank"]), default=16, help="LoRA rank")
        part.add_argument("--accumulation", type=whole(1), default=1, help="passes a step: less memory, same result")
        part.add_argument("--gradient-checkpointing", action="store_true", help="less memory, about a third slower")
    command("manifest", write_manifest, "rewrite data/personas_manifest.json after changing the generator")
    tuning = command("tuning", write_tuning, "recall of the tuning personas, into the base model's folder")
    tuning.add_argument("--model", default="xmem-tiny-s")
    ladder = command("knowledge", climb, "pretrain and measure the knowledge ladder (notebook 04)")
    ladder.add_argument(
        "--rungs", type=int, nargs="+", choices=KNOWN, default=KNOWN, metavar="FIGURES",
        help="figures named in both modalities (default: all rungs)",
    )  # fmt: skip
    command(
        "hops", practise_hops, "pretrain the base model of the multi-hop study (notebook 06), from the committed one"
    )
    filling = command("fill", fill, "run conditions of a notebook into the store, which it then reads")
    filling.add_argument("notebook", choices=("05_unlearning", "06_multihop", "07_mitigation"))
    filling.add_argument("-p", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the notebook")
    filling.add_argument("--shard", default="1/1", help="k/n: only a part")
    searching = command("search", search_settings, "settings of a notebook's methods, into the model's folder")
    searching.add_argument("notebook", choices=("05_unlearning", "07_mitigation"))
    searching.add_argument("--model", default="xmem-tiny-s")
    searching.add_argument("--shard", default="1/1", help="k/n: only a part; then once more without, to gather all")
    benching = command("bench", benchmark, "benchmarks, into figures/benchmarks")
    benching.add_argument("--model", default="xmem-tiny-s")
    stripping = command("strip", strip, "make executed notebooks fit to commit")
    stripping.add_argument("notebooks", nargs="+", type=Path)
    return out


def is_refusal(error: Exception) -> bool:
    """Whether an error is for the user: the system's (OSError), or one that this package's own code raises.

    A ValueError that comes out of a library is a fault of ours.
    """
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    file = frame.f_code.co_filename
    said = linecache.getline(file, line).lstrip().startswith("raise")
    return isinstance(error, OSError) or (said and Path(file).is_relative_to(Path(__file__).parent))


def sentence(error: Exception) -> str:
    """An error in one line: the file that could not be used and what the system says, or what the error says."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        from xmem_utils import paths

        file = os.fsdecode(error.filename)
        text = f"{shown(file, 300)} cannot be used: {error.strerror}"
        for variable, place in (("XMEM_FIGURES", paths.FIGURES), ("XMEM_HOME", paths.DATA)):
            if Path(file).is_relative_to(place) and not Path(file).is_relative_to(paths.BASE_MODELS):
                text += f"; set {variable} to a folder that can be written, with room"
                break
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def main(given: Sequence[str] | None = None) -> None:
    """Entry point. What a user can mend ends in one sentence; a fault of this package, in its traceback."""
    arguments = parser().parse_args(given)
    name = getattr(arguments, "notebook", arguments.command)
    try:
        arguments.call(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)  # ends progress bars, so that the sentence comes last
        print(f"{name}: interrupted; what was finished is stored, the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, ValueError) as error:
        if not is_refusal(error):
            raise
        traceback.clear_frames(error.__traceback__)
        sys.exit(f"{name}: {sentence(error)}")


if __name__ == "__main__":
    main()
