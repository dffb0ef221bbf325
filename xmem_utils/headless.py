"""Running a notebook from the terminal: parameters checked first, one short line a step, then papermill."""

from __future__ import annotations

import base64
import io
import logging
import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from xmem_utils import params, paths
from xmem_utils.notebook import find, schema_of
from xmem_utils.progress import LINES, MARK
from xmem_utils.replicates import base_of, check_base, replicates_of, rungs, seed_of

if TYPE_CHECKING:
    from datasets import Dataset

LONGEST = 2000  # characters of a parameter
WIDEST = 1000  # pixels of a figure in a committed notebook


class _Relay(logging.Handler):
    """Passes the kernel's progress lines on to the terminal; papermill logs all output of a run."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def emit(self, record: logging.LogRecord) -> None:
        for line in record.getMessage().splitlines():
            if line.startswith(MARK):
                print(f"[{self.label}] {line.removeprefix(MARK)}", file=sys.stderr, flush=True)


def parse(assignments: Iterable[str]) -> dict[str, str]:
    """Names and texts of "name=value" strings. Raises ValueError for what is no assignment, or a name given twice."""
    given: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ValueError(f"-p takes name=value, not {params.shown(assignment)}")
        if name in given:
            raise ValueError(f"-p gives {params.shown(name)} twice; give it once")
        if len(text) > LONGEST:
            raise ValueError(f"-p {params.shown(name)} has {len(text):,} characters; expected at most {LONGEST:,}")
        given[name] = text
    return given


def _from_here(text: str) -> str:
    """A path as it is found from any folder (the kernel runs in another), when it names something that exists."""
    path = os.path.expanduser(text)
    return str(Path(path).resolve()) if text and os.path.exists(path) else text


def checked(name: str, assignments: Iterable[str]) -> tuple[dict[str, Any], params.Parameters]:
    """Values for a notebook as papermill shall pass them on, and the frozen object they make with its defaults.

    Each text is read as the type that the notebook declares for its parameter: `forget=123` is somebody called "123",
    `replicates=123` is a number. Nothing else is read into it. Raises ValueError when the notebook, a parameter or a
    value is wrong, and whatever the notebook would raise later for a model, a method or people that are not there.
    """
    schema, given = schema_of(name), parse(assignments)
    if given.get("profile") not in (None, *params.PROFILES):
        given["profile"] = _from_here(given["profile"])
    for key in {"people", "tables"} & given.keys():
        given[key] = _from_here(given[key])
    for key in {"model", "models"} & given.keys():
        names = params.listed(given[key]) if key == "models" else [given[key]]
        given[key] = ",".join(n if os.path.isdir(paths.BASE_MODELS / n) else _from_here(n) for n in names)
    frozen = params.check(schema, given, texts=True)
    ask(name, frozen)
    return {key: getattr(frozen, key) for key in given}, frozen


def ask(name: str, p: params.Parameters) -> None:
    """Ask now what a notebook asks later: are the model, the methods, the people and who is forgotten known?

    Raises ValueError or FileNotFoundError as the notebook would.
    """
    if folder := getattr(p, "tables", ""):
        from xmem_utils.claims import EVIDENCE

        if not any((Path(folder) / f"{evidence.table}.csv").is_file() for evidence in EVIDENCE):
            raise ValueError(f"tables={params.shown(folder)} has no table of notebooks 03 to 07")
    if not p.model_list:
        return
    from xmem_utils.personas.importing import import_folder
    from xmem_utils.vlm.load import resolve_model

    for model in (*p.model_list, *(rungs() if getattr(p, "knowledge", False) else ())):
        if not model:
            raise ValueError("model='' names no model; leave it out for the default")
        if wanted := getattr(p, "replicates", None):
            replicates_of(model, wanted, exactly=model in p.model_list)
        wanted = params.scaled(params.profile_named(p.profile), p).replicates if hasattr(p, "profile") else 1
        for base in dict.fromkeys(base_of(model, replicate) for replicate in replicates_of(model, wanted)):
            resolve_model(base)
            check_base(base)
    own = import_folder(p.people)[0] if getattr(p, "people", "") else None
    if name == "05_unlearning":
        _ask_unlearning(p, own)
    if name == "07_mitigation":
        from xmem_utils.mitigation.experiment import Mitigation

        Mitigation.settings_of(p.model, Mitigation.methods_of(p))


def _ask_unlearning(p: params.Parameters, own: Dataset | None) -> None:
    from xmem_utils.personas.dataset import draw_people, names_of, persona_spec
    from xmem_utils.unlearning.experiment import Unlearning
    from xmem_utils.unlearning.people import by_name, forget_set

    Unlearning.settings_of(p.model, Unlearning.methods_of(p))
    profile = params.scaled(params.profile_named(p.profile), p)
    if not p.forget:
        forget_set(len(names_of(own)) if own else profile.personas, p.forget_share, seed=0)
    for replicate in replicates_of(p.model, profile.replicates) if p.forget else ():
        base = seed_of(base_of(p.model, replicate))
        names = names_of(own) if own else draw_people(persona_spec(profile, replicate, base=base))[1]
        by_name(params.listed(p.forget), names)


def run(name: str, assignments: Iterable[str] = (), out: Path | None = None) -> Path:
    """Check parameters against a notebook's types, execute it, and return the executed copy.

    Raises ValueError or FileNotFoundError before anything starts when the notebook, a parameter or a value is wrong,
    and ChildProcessError when the notebook fails or its kernel dies. Until the run is complete its copy is
    `unfinished-<name>.ipynb`, beside the one of an earlier run, which stays as it was.
    """
    notebook = find(name)
    given, _ = checked(name, assignments)
    out = out or paths.EXECUTED / notebook.name
    if out.is_dir():
        raise ValueError(f"the executed copy cannot be written to {out}: it is a folder; name a file")
    for folder in (out.parent, paths.FIGURES):  # now, not after minutes in the kernel
        folder.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"unfinished-{out.name}")
    logger = logging.getLogger("papermill")
    relay = _Relay(f"{name} {given.get('source', '')}".strip())
    logger.handlers, logger.propagate = [relay], False
    logger.setLevel(logging.INFO)
    # on Ctrl-C a task that waited for the kernel would show in a traceback that it is gone
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    kernel = {LINES: "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # the copy shows its figures
    before = {name: os.environ.get(name) for name in kernel}
    os.environ.update(kernel)
    quiet = ["--log-level=50"]  # the kernel's own remarks are no concern of who runs a study
    try:
        papermill.execute_notebook(
            notebook, unfinished, given, cwd=paths.NOTEBOOKS, progress_bar=False, log_output=True, extra_arguments=quiet
        )
    except DeadKernelError as error:
        raise ChildProcessError(
            "its kernel died (killed, or out of memory?); what it had stored is there, run it again"
        ) from error
    except PapermillExecutionError as error:
        said = textwrap.shorten(error.evalue, 250, placeholder=" …")
        why = f"cell {error.exec_count} failed with {error.ename}: {said}"
        raise ChildProcessError(f"{why}; its executed copy up to there is {unfinished}") from error
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    unfinished.replace(out)
    return out


def strip(path: Path) -> None:
    """Make an executed notebook fit to commit: cells that nbval compares keep their output, others their pictures, made
    small; a count stays beside either. Raises ValueError for what is no notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is no notebook that can be read ({type(error).__name__})") from error
    # without times and paths of a run, states of its progress bars, and the version of Python
    kept = {k: v for k, v in notebook.metadata.items() if k == "kernelspec"}
    notebook.metadata = kept | {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
        if cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" not in cell.source:
            drawn = [output.data for output in cell.outputs if "image/png" in output.get("data", {})]
            cell.outputs = [
                nbformat.v4.new_output("display_data", {"image/png": _small(d["image/png"])}) for d in drawn
            ]
            if not drawn:  # nbval refuses outputs without a count
                cell.execution_count = None
    nbformat.write(notebook, path)


def _small(picture: str) -> str:
    """A PNG in base 64, at most `WIDEST` wide and of 64 colours: what a page needs to show a figure."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.quantize(64).save(stream, "png", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
