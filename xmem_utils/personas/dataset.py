"""The persona dataset: drawn from a seed, stored with Hugging Face `datasets`, checked by fingerprint.

A row is one view index of one persona and holds both modalities: a portrait and a description made from
the same attribute vector, each with its own nuisance.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from filelock import FileLock

from xmem_utils import fingerprint, paths
from xmem_utils.params import Profile
from xmem_utils.personas.attributes import AXIS_NAMES, sample_vectors, values_of
from xmem_utils.personas.descriptions import describe_many
from xmem_utils.personas.names import FACTS, sample_facts, sample_names
from xmem_utils.personas.portraits import draw_many
from xmem_utils.personas.public_figures import FIGURES, MIN_DISTANCE, PublicFigures, draw_public_figures
from xmem_utils.personas.views import SPLITS, View

CARD = (paths.PACKAGE / "personas" / "card.md").read_text("utf-8")
STYLE = ("dicebear-core", "dicebear-styles", "pillow-lunasvg")
SHOWN_IN = {"image": "image", "text": "description"}  # the column of a modality's views
COLUMNS = Features(
    {"persona": Value("int32"), "name": Value("string"), "view": Value("int32"), "image": Image()}
    | {text: Value("string") for text in ("description", *FACTS, *AXIS_NAMES)}
)


@dataclass(frozen=True)
class PersonaSpec:
    """What a persona dataset is drawn from; equal specs give byte-identical datasets."""

    personas: int = 100
    seed: int = 0
    train_views: int = 16
    test_views: int = 4
    size: int = 64  # portrait width and height, px
    min_distance: int = 3  # axes in which any two personas differ
    base: int | None = None  # seed of the pretraining whose public figures nobody resembles; None: `seed`
    apart_from: PersonaSpec | None = None  # other people whom nobody resembles

    @property
    def known_to(self) -> int:
        """Seed of the pretraining that must not know them."""
        return self.seed if self.base is None else self.base

    @property
    def slug(self) -> str:
        """A readable folder name."""
        base = "" if self.base is None else f"-base{self.base}"
        others = "" if self.apart_from is None else f"-apart{self.apart_from.personas}"
        return (
            f"n{self.personas}-seed{self.seed}{base}{others}-train{self.train_views}-test{self.test_views}-"
            f"{self.size}px"
        )


def persona_spec(profile: Profile, seed: int, size: int = 64, base: int | None = None) -> PersonaSpec:
    """The personas of a profile and seed, drawn at `size` px; enough train views for its dose-response.

    `base` is the seed of the pretraining that must not know them, where it is another.
    """
    train_views = max((profile.train_views, *profile.dose_views, *profile.dose_data))
    base = None if base == seed else base
    return PersonaSpec(profile.personas, seed, train_views, profile.test_views, size, base=base)


def others(spec: PersonaSpec, away: int) -> PersonaSpec:
    """Other people, whom the same base does not know and who resemble nobody of these, from a seed so far `away`."""
    return replace(spec, seed=spec.seed + away, base=spec.known_to, apart_from=spec)


@lru_cache(maxsize=4)
def _figures(base: int) -> PublicFigures:
    return draw_public_figures(*FIGURES, base)


def draw_people(spec: PersonaSpec) -> tuple[np.ndarray, list[str], dict[str, list[str]]]:
    """Attribute vectors `[personas, axes]`, names and facts; apart from every public figure.

    Looks and names have a stream each, so more people of a seed begin with fewer of it.
    """
    looks, called, told = (np.random.default_rng([spec.seed, 12, stream]) for stream in (2, 3, 4))
    public_figures = _figures(spec.known_to)
    # a look-alike of a public figure would be recalled as that figure
    crowds, taken = [(public_figures.vectors, MIN_DISTANCE)], frozenset(public_figures.names)
    if spec.apart_from:
        vectors, names, _ = draw_people(spec.apart_from)
        crowds, taken = [*crowds, (vectors, spec.min_distance)], taken | frozenset(names)
    vectors = sample_vectors(spec.personas, looks, spec.min_distance, crowds)
    return vectors, sample_names(spec.personas, called, taken), sample_facts(spec.personas, told)


def build(spec: PersonaSpec) -> DatasetDict:
    """Draw the whole dataset."""
    return shown(*draw_people(spec), spec)


def shown(
    vectors: np.ndarray, names: Sequence[str], facts: Mapping[str, Sequence[str]], spec: PersonaSpec
) -> DatasetDict:
    """The dataset of some people, by attribute vectors `[personas, axes]`; views are drawn from the spec's seed."""
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for i, vector in enumerate(vectors):
        known = {fact: values[i] for fact, values in facts.items()}
        known |= {axis: value.name for axis, value in values_of(vector).items()}
        for s, (split, n) in enumerate(zip(SPLITS, (spec.train_views, spec.test_views), strict=True)):
            # one stream a persona, split and modality: view k does not depend on how many views follow
            looks, words = (np.random.default_rng([spec.seed, stream, i, s]) for stream in (10, 11))
            portraits, texts = draw_many(vector, n, looks, split, spec.size), describe_many(vector, n, words, split)
            rows[split] += [
                {"persona": i, "name": names[i], "view": k, "image": portrait, "description": text, **known}
                for k, (portrait, text) in enumerate(zip(portraits, texts, strict=True))
            ]
    return DatasetDict({split: Dataset.from_list(rows[split], features=COLUMNS) for split in SPLITS})


def content_fingerprint(dataset: DatasetDict) -> str:
    """SHA-256 (16 hex digits) over every cell, pixels decoded: what the study can see of the dataset."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in dataset[split]:
            image = row.pop("image")
            if image is not None:
                digest.update(np.asarray(image.convert("RGB")).tobytes())
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _file_hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.parquet"))}


@fingerprint.by_content
def load_personas(spec: PersonaSpec, root: Path | None = None) -> tuple[DatasetDict, str]:
    """The dataset of a spec and its fingerprint: read from disk when it is there, whole and current, else drawn.

    Datasets that the committed manifest lists are compared with it; a difference raises RuntimeError.
    """
    folder = (root or paths.PERSONAS) / spec.slug
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _usable(folder, spec):
            write(build(spec), folder, spec)
        dataset = read(folder)
        info = json.loads((folder / "info.json").read_text())
    expected = manifest().get(spec.slug)
    if expected and expected["fingerprint"] != info["fingerprint"]:
        raise RuntimeError(
            f"the personas {spec.slug} came out differently from the committed manifest: "
            f"fingerprint {info['fingerprint']}, expected {expected['fingerprint']}; install with "
            "constraints.txt, or rewrite the manifest with `python -m xmem_utils manifest` if you changed "
            "the generator on purpose"
        )
    return dataset, info["fingerprint"]


def manifest() -> dict[str, dict]:
    """Slug -> fingerprint and file hashes, as committed."""
    return json.loads(paths.MANIFEST.read_text())


def write(dataset: DatasetDict, folder: Path, spec: PersonaSpec) -> None:
    """Store a dataset as Parquet with a card; the folder appears whole or not at all."""
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _quiet():
        for split in SPLITS:
            dataset[split].to_parquet(str(partial / f"{split}.parquet"))
    info = {"spec": asdict(spec), "fingerprint": content_fingerprint(dataset), "made_with": made_with()}
    (partial / "info.json").write_text(json.dumps(info | {"files": _file_hashes(partial)}, indent=1))
    (partial / "README.md").write_text(CARD.format(spec=spec, axes=", ".join(AXIS_NAMES), facts=" and ".join(FACTS)))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def made_with() -> str:
    """Fingerprint of the generator and its libraries."""
    return fingerprint.values_of([build, content_fingerprint, *map(version, STYLE)])


def _usable(folder: Path, spec: PersonaSpec) -> bool:
    """Whether a stored dataset is whole and drawn by this generator, from this spec."""
    try:
        info = json.loads((folder / "info.json").read_text())
        same = info["spec"] == asdict(spec) and info["made_with"] == made_with()
        return same and info["files"] == _file_hashes(folder)
    except (OSError, ValueError, KeyError):
        return False


def read(folder: Path) -> DatasetDict:
    """Read what `write` stored."""
    with _quiet():
        files = {split: str(folder / f"{split}.parquet") for split in SPLITS}
        return DatasetDict.from_parquet(files, cache_dir=str(folder / ".cache"))


@contextlib.contextmanager
def _quiet():
    """No progress bars of `datasets`: a few hundred rows need none."""
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def to_views(dataset: DatasetDict, split: str, modality: str, per_persona: int | None = None) -> list[View]:
    """`View`s of one split and modality; the first `per_persona` of each persona (default: all)."""
    column = SHOWN_IN[modality]
    part = dataset[split].select_columns(["persona", "name", "view", column])
    return [
        View(row["persona"], row["name"], modality, split, row["view"],
             row[column].convert("RGB") if modality == "image" else row[column])
        for row in part
        if row[column] is not None and (per_persona is None or row["view"] < per_persona)
    ]  # fmt: skip


def count_views(dataset: DatasetDict, split: str, modality: str, per_persona: int, without: Sequence[int] = ()) -> int:
    """How many views `to_views` returns, but those of some personas; nothing decoded."""
    table = dataset[split].data
    there = table.column(SHOWN_IN[modality]).is_valid().to_numpy()
    wanted = (table.column("view").to_numpy() < per_persona) & ~np.isin(table.column("persona").to_numpy(), without)
    return int((there & wanted).sum())


def names_of(dataset: DatasetDict) -> list[str]:
    """Names by persona number."""
    test = dataset["test"]
    return [name for _, name in sorted(set(zip(test["persona"], test["name"], strict=True)))]
