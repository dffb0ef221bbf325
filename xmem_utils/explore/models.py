"""What is in the store, opened: a model with its adapters merged, and the names that it was taught."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict
from PIL import Image
from pydantic import ValidationError

from xmem_utils import paths, store
from xmem_utils.memorization.experiment import Memorization, MemorizationCondition
from xmem_utils.mitigation.experiment import Mitigation, MitigationCondition
from xmem_utils.params import shown as quoted
from xmem_utils.personas.dataset import names_of, read
from xmem_utils.personas.importing import import_folder
from xmem_utils.personas.pictures import read_picture
from xmem_utils.personas.views import View
from xmem_utils.score import greedy_answers, recall_of_all
from xmem_utils.store import Condition
from xmem_utils.unlearning.experiment import Unlearning, UnlearningCondition, preamble
from xmem_utils.unlearning.names import PROMPT
from xmem_utils.vlm.adapters import load_adapter
from xmem_utils.vlm.batches import encode
from xmem_utils.vlm.load import VLM, load_vlm

# Whose models name people; those of notebook 06 answer questions about facts, too.
KINDS: dict[str, type[Condition]] = {
    Memorization.folder: MemorizationCondition,
    Unlearning.folder: UnlearningCondition,
    Mitigation.folder: MitigationCondition,
}


@dataclass(frozen=True)
class Stored:
    """A training in the store."""

    folder: Path
    condition: Condition = field(hash=False)

    @property
    def start(self) -> MemorizationCondition:
        """What had been memorized."""
        return getattr(self.condition, "start", self.condition)

    @property
    def label(self) -> str:
        """Experiment and folder."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def adapters(self) -> list[Path]:
        """The adapters on the base model, each on top of those before."""
        if not isinstance(self.condition, UnlearningCondition):
            return [self.folder / "adapter"]
        root = self.folder.parent.parent / Memorization.folder
        before = [self.folder.parent / earlier.slug for earlier in self.condition.before]
        return [folder / "adapter" for folder in (root / self.start.slug, *before, self.folder)]

    @property
    def curve(self) -> pd.DataFrame:
        """Recall along the training, as the experiment noted it."""
        return pd.read_parquet(self.folder / "curve.parquet")

    @property
    def records(self) -> pd.DataFrame:
        """The latest records; empty where there are none."""
        files = sorted(self.folder.glob("records-*.parquet"), key=lambda file: file.stat().st_mtime)
        return pd.read_parquet(files[-1]) if files else pd.DataFrame()


def stored(root: Path | None = None) -> list[Stored]:
    """The trainings of notebooks 02, 05 and 07 in the store, the latest first; what cannot be read is passed over."""
    out = []
    for kind, condition in KINDS.items():
        for file in ((root or paths.RUNS) / kind).glob("[!.]*/condition.json"):
            try:
                out.append((file.stat().st_mtime, Stored(file.parent, condition.model_validate_json(file.read_text()))))
            except (OSError, ValidationError):  # of an earlier version of the study, or being made again
                continue
    return [run for _, run in sorted(out, key=lambda pair: -pair[0])]


@lru_cache(maxsize=8)
def people_of(run: Stored, folder: str = "") -> DatasetDict:
    """The people whom a run learned; `folder` is where they are if they are your own. Raises ValueError where they
    cannot be found."""
    for info in paths.PERSONAS.glob("*/info.json"):
        if json.loads(info.read_text())["fingerprint"] == run.start.data:
            return read(info.parent)
    if folder:
        people, data = import_folder(folder)
        if data == run.start.data:
            return people
    where = f"{folder} or {paths.PERSONAS}" if folder else str(paths.PERSONAS)
    raise ValueError(f"the people of {run.label} are not in {where}: give the folder that they were read from")


@dataclass(frozen=True)
class Opened:
    """A model that can be asked."""

    vlm: VLM
    names: list[str]
    question: str


@lru_cache(maxsize=2)
def opened(run: Stored, folder: str = "") -> Opened:
    """The model of a run, adapters merged. Raises ValueError for a damaged adapter, or one of another base."""
    if problem := store.damage(run.folder):
        raise ValueError(f"{run.label} is damaged ({problem}): train it again")
    vlm = load_vlm(run.start.model)
    if vlm.fingerprint != run.start.weights:
        raise ValueError(f"{run.label} was trained on other weights than those of {run.start.model!r} now")
    for adapter in run.adapters:
        vlm = replace(vlm, model=load_adapter(vlm.model, adapter).merge_and_unload())
    names, question = names_of(people_of(run, folder)), run.start.question
    if getattr(run.condition, "method", "") == PROMPT:  # which trained nothing
        question = preamble([names[i] for i in run.condition.forget]) + question
    return Opened(vlm, names, question)


@dataclass(frozen=True)
class Answer:
    """What a model says, and the likeliest of the names that it was taught: columns name and probability."""

    says: str
    likeliest: pd.DataFrame

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{probability:.1%}</td>"
            f"<td style='width:12em'><div style='background:#0072B2;height:.7em;width:{probability:.2%}'></div></td>"
            "</tr>"
            for name, probability in self.likeliest.itertuples(index=False)
        )
        return f"<p>says: <b>{html.escape(self.says)}</b></p><table>{rows}</table>"


def ask(run: Stored, shown: str | Path | Image.Image, likeliest: int = 5, folder: str = "") -> Answer:
    """Show a run's model a description (str) or a picture (PIL, or the Path of a file), and ask who that is.

    Returns what it says, and the `likeliest` names with the probability of the whole name (what is left to 1 is
    everything else that could be said). `folder` as in `people_of`. Raises ValueError for what cannot be shown.
    """
    model = opened(run, folder)
    content = _content(shown)
    view = View(0, model.names[0], "text" if isinstance(content, str) else "image", "test", 0, content)
    examples = encode(model.vlm, [view], model.question)
    scores = recall_of_all(model.vlm, examples, model.names).logprob[0]
    first = np.argsort(-scores, kind="stable")[:likeliest]
    table = pd.DataFrame({"name": [model.names[i] for i in first], "probability": np.exp(scores[first])})
    return Answer(greedy_answers(model.vlm, examples)[0], table)


def _content(shown: str | Path | Image.Image) -> str | Image.Image:
    if isinstance(shown, Image.Image):
        return shown.convert("RGB")
    if isinstance(shown, Path):
        return picture(shown)
    if not isinstance(shown, str) or not shown.strip():
        raise ValueError("nothing is shown: give a description, a picture, or the Path of one")
    return " ".join(shown.split())


def picture(file: Path) -> Image.Image:
    """A picture file as 8-bit RGB. Raises ValueError with a sentence for what cannot be read."""
    if not file.is_file():
        raise ValueError(f"there is no picture {quoted(str(file))}")
    try:
        return read_picture(file)[1]
    except ValueError as error:
        raise ValueError(f"the picture {quoted(file.name)} {error}") from error
