"""The command line. Each command imports what it needs, so that help is there at once."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from xmem_utils.params import MOST, PROFILES, profile_named, shard_of, shown

if TYPE_CHECKING:
    from xmem_utils.experiment import Experiment

MANY = 1_000_000
INTERRUPTED = "interrupted; what was finished is stored, the same command goes on from there"
LONGEST = 450  # characters of what is said about an error
MAINTAINERS = "For those who change the study"


def is_refusal(error: Exception) -> bool:
    """Whether an error is for the user: the system's (OSError), or one that a line of this package raises.

    A ValueError that comes out of a library is a fault of ours.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(Path(__file__).parent)
    return isinstance(error, OSError) or (ours and last.line.startswith("raise"))


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


class Command(TyperCommand):
    """A command. What a user can mend ends in one sentence; a fault of this package, in its traceback."""

    def invoke(self, ctx: typer.Context) -> None:
        """Run it; an error's sentence begins with the notebook it is about, or with the command."""
        name = ctx.params.get("notebook", self.name)
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            traceback.clear_frames(error.__traceback__)  # ends progress bars, so that the sentence comes last
            print(f"{name}: {INTERRUPTED}", file=sys.stderr)
            sys.exit(130)
        except (OSError, ValueError) as error:
            if isinstance(error, BrokenPipeError) or not is_refusal(error):
                raise  # when whoever read the output has gone, as `head` does, typer ends quietly
            traceback.clear_frames(error.__traceback__)
            sys.exit(f"{name}: {sentence(error)}")


class Commands(TyperGroup):
    """All commands; those that change the study stand apart in the help."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:
        """Write a section for each group of commands."""
        for section, apart in (("Commands", False), (MAINTAINERS, True)):
            commands = [c for c in self.commands.values() if (c.rich_help_panel == MAINTAINERS) == apart]
            with formatter.section(section):
                formatter.write_dl([(c.name, c.get_short_help_str(100)) for c in commands])


ABOUT = "Run a notebook headlessly, train, plan, look into the store."
app = typer.Typer(cls=Commands, help=ABOUT, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def main(given: Sequence[str] | None = None) -> None:
    """Entry point. Wrong usage is said in one line, and ends with status 2."""
    try:
        if status := app(given, prog_name="python -m xmem_utils", standalone_mode=False):
            sys.exit(status)
    except TyperException as error:
        error.show()
        sys.exit(error.exit_code)


def experiments() -> dict[str, list[type[Experiment]]]:
    """The experiments of each notebook, what is searched for first."""
    from xmem_utils.memorization.experiment import Memorization
    from xmem_utils.mitigation.experiment import Mitigation
    from xmem_utils.multihop.experiment import KnownPeople, Multihop
    from xmem_utils.unlearning.experiment import Unlearning
    from xmem_utils.unlearning.public import PublicUnlearning

    out: dict[str, list[type[Experiment]]] = {"02_training": [Memorization]}
    for kind in (Memorization, Unlearning, PublicUnlearning, Multihop, KnownPeople, Mitigation):
        out.setdefault(kind.notebook, []).append(kind)
    return out


# What several commands take.
Given = Annotated[list[str] | None, Option("-p", metavar="NAME=VALUE", help="A parameter of the notebook.")]
Model = Annotated[str, Option(help="An embedded model, a folder, or a Hub id.")]
Profile = Annotated[str, Option(help=f"{', '.join(PROFILES)}, or a YAML file.")]
Rank = Annotated[int, Option(min=1, max=MOST["rank"], help="LoRA rank.")]
Accumulation = Annotated[int, Option(min=1, max=MANY, help="Passes a step: less memory, same result.")]
Checkpointing = Annotated[bool, Option("--gradient-checkpointing", help="Less memory, about a third slower.")]
Shard = Annotated[str, Option(metavar="K/N", help="Only a part; after all parts of a search, once more without.")]


@app.command(cls=Command)
def run(
    notebook: str,
    given: Given = None,
    out: Annotated[Path | None, Option(help="The executed copy (default: under data/executed).")] = None,
) -> None:
    """Run a notebook headlessly: run 03_gap_analysis -p replicates=3."""
    from xmem_utils import headless

    print(headless.run(notebook, given or (), out))


@app.command("runs", cls=Command)
def list_runs(verify: Annotated[bool, Option("--verify", help="Check every checksum.")] = False) -> None:
    """List the stored runs."""
    from xmem_utils import paths, store
    from xmem_utils.experiment import summary

    codes = frozenset(code for kinds in experiments().values() for kind in kinds for code in kind.codes())
    table = store.listing(paths.RUNS, codes, summary, verify)
    print(table.to_string(index=False) if len(table) else f"no runs in {paths.RUNS}")
    if verify and len(table) and (table["state"] != "whole").any():
        sys.exit(1)


@app.command("train", cls=Command)
def _train(
    notebook: Literal["02_training", "05_unlearning", "06_multihop", "07_mitigation"],
    given: Given = None,
    shard: Shard = "1/1",
    accumulation: Accumulation = 1,
    gradient_checkpointing: Checkpointing = False,
    checkpoint: Annotated[bool, Option("--checkpoint", help="Save now and then, and go on from there.")] = False,
) -> None:
    """Train the conditions of a notebook into the store, where it finds them; works under accelerate launch."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, InitProcessGroupKwargs

    from xmem_utils import headless
    from xmem_utils.experiment import summary
    from xmem_utils.progress import progress
    from xmem_utils.train import Resources
    from xmem_utils.vlm.load import default_device
    from xmem_utils.vlm.threads import set_threads

    shard_of((), shard)  # a wrong one is refused before any work
    _, p = headless.checked(notebook, given or ())
    # who is not the main process waits while that one waits for another launch that trains the same condition
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    # several processes without a GPU find each other only when the CPU is asked for
    accelerator = Accelerator(cpu=default_device().type == "cpu", mixed_precision="no", kwargs_handlers=[patience])
    set_threads()
    resources = Resources(accumulation, gradient_checkpointing, save_every=25 if checkpoint else 0)
    for kind in experiments()[notebook]:
        experiment = kind.of(p, resources)
        conditions = experiment.ordered(shard_of(experiment.conditions(p), shard))
        for number, condition in enumerate(progress(conditions, kind.folder)):
            if number and accelerator.distributed_type == DistributedType.FSDP:  # which left the model sharded
                experiment = kind.of(p, resources)
            made = experiment.run(condition)
            if accelerator.is_main_process:
                print(condition.slug, {asked: round(recall, 3) for asked, recall in summary(made.records).items()})
    accelerator.end_training()


@app.command("export", cls=Command)
def _export(
    folder: Path,
    runs: Annotated[Literal["none", "memorization", "all"], Option(help="Whose adapters go along.")] = "memorization",
) -> None:
    """Lay out people, bases and adapters in a new folder, ready for the Hub, with cards."""
    from xmem_utils.explore.models import stored
    from xmem_utils.export import export

    wanted = {"none": (), "memorization": ("memorization",)}
    chosen = [run for run in stored() if runs == "all" or run.folder.parent.name in wanted[runs]]
    for made in export(folder, chosen):
        print(made)


@app.command("plan", cls=Command)
def _plan(
    model: Annotated[str, Option(help="An embedded model, a folder, a config.json, or a cached Hub id.")],
    processes: Annotated[int, Option(min=1, max=MANY, help="GPUs (DDP); memory is that of each.")] = 1,
    tokens: Annotated[int | None, Option(min=1, max=MANY, help="Tokens of a view; default: the config's.")] = None,
    tflops: Annotated[
        float | None, Option(min=0.001, max=MANY, help="Of all GPUs, in 10^12 operations a second.")
    ] = None,
    measure: Annotated[bool, Option("--measure", help="Time a few real steps; the weights must be here.")] = False,
    as_json: Annotated[bool, Option("--json", help="As JSON.")] = False,
    profile: Profile = "quick",
    rank: Rank = 16,
    accumulation: Accumulation = 1,
    gradient_checkpointing: Checkpointing = False,
) -> None:
    """What a condition takes with a model: parameters, memory, steps, time."""
    from xmem_utils import plan as planning
    from xmem_utils.train import Resources, Training
    from xmem_utils.vlm.threads import set_threads

    training = Training(rank=rank, resources=Resources(accumulation, gradient_checkpointing))
    made = planning.plan(planning.config_of(model), profile_named(profile), training, processes, tokens, tflops)
    if measure:
        set_threads()
        made = replace(made, seconds=planning.measured_seconds(model, training) * made.steps)
    print(json.dumps(asdict(made), indent=1) if as_json else planning.table(made))


@app.command(cls=Command, rich_help_panel=MAINTAINERS)
def search(
    notebook: Literal["05_unlearning", "07_mitigation"], model: Model = "xmem-tiny-s", shard: Shard = "1/1",
    method: Annotated[list[str] | None, Option(help="Of this one alone; again for more.")] = None,
) -> None:  # fmt: skip
    """Search the settings of a notebook's methods; what it chose goes into the model's folder."""
    from xmem_utils.tuning import folder_of, memorization

    kind = experiments()[notebook][0]
    searched = [name for name, row in kind.methods.items() if not getattr(row, "like", "")]
    if unknown := set(method or ()) - set(searched):
        raise ValueError(f"unknown method {shown(min(unknown))}: expected some of {'; '.join(searched)}")
    shard_of((), shard)
    folder_of(model)
    experiment = kind(memorization(model))
    tried = experiment.search(method or searched, shard)
    if shard == "1/1":
        print(experiment.write(tried).to_string(index=False))


@app.command(cls=Command, rich_help_panel=MAINTAINERS)
def tuning(model: Model = "xmem-tiny-s") -> None:
    """What the tuning people give, by epochs (names, methods, both hops), into the base model's folder."""
    from xmem_utils.tuning import folder_of, tables

    folder = folder_of(model)
    for name, table in tables(model).items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")
        print(table.to_string(index=False))


@app.command(cls=Command, rich_help_panel=MAINTAINERS)
def pretrain(
    size: Literal["xs", "s", "m"], seed: Annotated[int, Argument(min=0, max=MOST["replicate"])],
    known: Annotated[
        int | None, Option(min=0, max=MOST["personas"], help="A rung of the knowledge ladder: figures named in both.")
    ] = None,
) -> None:  # fmt: skip
    """Pretrain an embedded model from a seed, or go on where it was interrupted."""
    from xmem_utils.pretraining import build
    from xmem_utils.vlm.threads import set_threads

    set_threads()
    print(build.pretrain(size, seed, known))


@app.command(cls=Command)
def real(
    again: Annotated[bool, Option("--teach", help="For maintainers: also make what data/real/ lacks (hours).")] = False,
) -> None:
    """Assemble the models of real parts from the installed packages; `make real` installs these first."""
    from xmem_utils.real import build
    from xmem_utils.vlm.threads import set_threads

    set_threads()
    if again:
        build.teach()
    for known in (False, True):
        print(build.assemble(known))


@app.command(cls=Command, rich_help_panel=MAINTAINERS)
def manifest() -> None:
    """Rewrite data/personas_manifest.json after changing the generator."""
    from xmem_utils import paths
    from xmem_utils.personas.dataset import build, content_fingerprint, persona_spec
    from xmem_utils.replicates import replicates_of

    entries = {}
    for name in ("quick", "standard"):
        for replicate in replicates_of("", PROFILES[name].replicates):
            spec = persona_spec(PROFILES[name], replicate)
            entries[spec.slug] = {"fingerprint": content_fingerprint(build(spec))}
            print(spec.slug, entries[spec.slug]["fingerprint"])
    paths.MANIFEST.write_text(json.dumps(entries, indent=1) + "\n")


@app.command(cls=Command, rich_help_panel=MAINTAINERS)
def site(
    out: Annotated[Path | None, Option(help="Where the pages go (default: data/site).")] = None,
) -> None:
    """Build the study's pages: claims, results, notebooks, people, tables."""
    from xmem_utils import paths
    from xmem_utils.site.build import build

    folder = out or paths.DATA / "site"
    print(build(folder, folder.with_name(f"{folder.name}-source")))


@app.command("readme", cls=Command, rich_help_panel=MAINTAINERS)
def _readme() -> None:
    """After `make figures`: write what it found and took into README, the latter into figures/run.csv, too, where rules
    that were not run again keep their rows."""
    import pandas as pd

    from xmem_utils import paths
    from xmem_utils.claims import readme, times

    file, figures = paths.REPO / "README.md", paths.REPO / "figures"
    latest = max((paths.DATA / "times").glob("standard-*"), key=os.path.getmtime, default=paths.DATA / "times")
    kept = figures / "run.csv"
    spent = times(latest, pd.read_csv(kept) if kept.exists() else None)
    spent.to_csv(kept, index=False, float_format="%.2f")
    table = pd.read_csv(figures / "claims.csv", dtype={"each": str})
    gaps, dose = (pd.read_csv(figures / f"{name}.csv") for name in ("gaps", "dose_response"))
    file.write_text(readme(file.read_text("utf-8"), table, gaps, dose, spent), "utf-8")


@app.command(cls=Command, rich_help_panel=MAINTAINERS)
def strip(notebooks: list[Path]) -> None:
    """Make executed notebooks fit to commit: small figures, and the output of cells that nbval compares."""
    from xmem_utils import headless

    for path in notebooks:
        headless.strip(path)
