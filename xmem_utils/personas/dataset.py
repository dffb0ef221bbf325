"""The persona dataset: drawn from a seed, stored with Hugging Face `datasets`, checked by fingerprint.

A row is one view index of one persona and holds both modalities: a portrait and a description made from
the same attribute vector, each with its own nuisance.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from filelock import FileLock

from xmem_utils import fingerprint, paths
from xmem_utils.params import Profile
from xmem_utils.personas.attributes import AXIS_NAMES, distances, named, sample_vectors
from xmem_utils.personas.descriptions import describe_many
from xmem_utils.personas.names import FACTS, sample_facts, sample_names
from xmem_utils.personas.portraits import draw_many
from xmem_utils.personas.public_figures import FIGURE_DISTANCE, Figures
from xmem_utils.personas.views import View

SPLITS = ("train", "test")
GENERATOR = tuple(f"personas/{name}.py" for name in ("attributes", "dataset", "descriptions", "names", "portraits"))
STYLE = ("dicebear-core", "dicebear-styles", "pillow-lunasvg")


@dataclass(frozen=True)
class PersonaSpec:
    """What a persona dataset is drawn from; equal specs give byte-identical datasets."""

    personas: int = 100
    seed: int = 0
    train_views: int = 16
    test_views: int = 4
    size: int = 64  # portrait width and height, px
    min_distance: int = 3  # axes in which any two personas differ

    @property
    def slug(self) -> str:
        """A readable folder name."""
        return f"n{self.personas}-seed{self.seed}-train{self.train_views}-test{self.test_views}-{self.size}px"


def persona_spec(profile: Profile, seed: int, size: int = 64) -> PersonaSpec:
    """The personas of a profile and seed, drawn at `size` px; enough train views for its dose-response."""
    return PersonaSpec(
        personas=profile.personas,
        seed=seed,
        train_views=max((profile.train_views, *profile.dose_views)),
        test_views=profile.test_views,
        size=size,
    )


def features() -> Features:
    """Columns of the dataset."""
    return Features(
        {
            "persona": Value("int32"),
            "name": Value("string"),
            "view": Value("int32"),
            "image": Image(),
            "description": Value("string"),
            **{fact: Value("string") for fact in FACTS},
            **{axis: Value("string") for axis in AXIS_NAMES},
        }
    )


def _png(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def _persona_views(spec: PersonaSpec, persona: int, vector: np.ndarray) -> dict[str, list[tuple[bytes, str]]]:
    out = {}
    for s, (split, n) in enumerate(zip(SPLITS, (spec.train_views, spec.test_views), strict=True)):
        # one stream a persona, split and modality: view k does not depend on how many views follow
        looks = np.random.default_rng([spec.seed, 10, persona, s])
        words = np.random.default_rng([spec.seed, 11, persona, s])
        portraits = draw_many(vector, n, looks, split, spec.size)
        texts = describe_many(vector, n, words, split)
        out[split] = [(_png(p), t) for p, t in zip(portraits, texts, strict=True)]
    return out


def draw_people(spec: PersonaSpec, figures: Figures | None) -> tuple[np.ndarray, list[str], dict[str, list[str]]]:
    """Attribute vectors `[personas, axes]`, names and facts; apart from every public figure."""
    rng = np.random.default_rng([spec.seed, 12])
    known = frozenset(figures.names) if figures else frozenset()
    vectors = np.empty((0, len(AXIS_NAMES)), np.int16)
    while len(vectors) < spec.personas:
        more = sample_vectors(spec.personas - len(vectors), rng, spec.min_distance, vectors)
        if figures:  # a look-alike of a public figure would be recalled as that figure
            more = more[distances(more, figures.vectors).min(1) >= FIGURE_DISTANCE]
        vectors = np.concatenate([vectors, more])
    names = sample_names(spec.personas, rng, known)
    return vectors, names, sample_facts(spec.personas, rng)


def build(spec: PersonaSpec, figures: Figures | None) -> DatasetDict:
    """Draw the whole dataset."""
    vectors, names, facts = draw_people(spec, figures)
    views = [_persona_views(spec, i, vector) for i, vector in enumerate(vectors)]
    splits = {}
    for split in SPLITS:
        rows = [
            {
                "persona": i,
                "name": names[i],
                "view": k,
                "image": {"bytes": png, "path": None},
                "description": text,
                **{fact: values[i] for fact, values in facts.items()},
                **named(vectors[i]),
            }
            for i, made in enumerate(views)
            for k, (png, text) in enumerate(made[split])
        ]
        splits[split] = Dataset.from_list(rows, features=features())
    return DatasetDict(splits)


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


def load_personas(spec: PersonaSpec, root: Path | None = None) -> tuple[DatasetDict, str]:
    """The dataset of a spec and its fingerprint: read from disk when it is there, whole and current, else drawn.

    Datasets that the committed manifest lists are compared with it; a difference raises RuntimeError.
    """
    folder = (root or paths.PERSONAS) / spec.slug
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _usable(folder):
            figures = known_figures()
            write(build(spec, figures), folder, spec)
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


def known_figures() -> Figures | None:
    """The public figures of the committed base models, whom no study persona may resemble."""
    path = paths.BASE_MODELS / "figures.parquet"
    return Figures.load(path) if path.exists() else None


def manifest() -> dict[str, dict]:
    """Slug -> fingerprint and file hashes, as committed."""
    return json.loads(paths.MANIFEST.read_text()) if paths.MANIFEST.exists() else {}


def write(dataset: DatasetDict, folder: Path, spec: PersonaSpec | None) -> None:
    """Store a dataset as Parquet with a card; the folder appears whole or not at all."""
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for split in SPLITS:
        with _quiet():
            dataset[split].to_parquet(str(partial / f"{split}.parquet"))
    info = {
        "spec": asdict(spec) if spec else None,
        "fingerprint": content_fingerprint(dataset),
        "made_with": made_with(),
        "files": _file_hashes(partial),
    }
    (partial / "info.json").write_text(json.dumps(info, indent=1))
    (partial / "README.md").write_text(_card(dataset, spec))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def made_with() -> str:
    """Fingerprint of the generator and of the public figures, whom no persona may resemble."""
    figures = paths.BASE_MODELS / "figures.parquet"
    known = hashlib.sha256(figures.read_bytes() if figures.exists() else b"").hexdigest()
    return hashlib.sha256(f"{fingerprint.of(GENERATOR, STYLE)}{known}".encode()).hexdigest()[:16]


def _usable(folder: Path) -> bool:
    """Whether a stored dataset is whole and drawn by this generator."""
    try:
        info = json.loads((folder / "info.json").read_text())
        return info["files"] == _file_hashes(folder) and info["made_with"] == made_with()
    except (OSError, ValueError, KeyError):
        return False


def read(folder: Path) -> DatasetDict:
    """Read what `write` stored."""
    with _quiet():
        parts = {
            s: Dataset.from_parquet(str(folder / f"{s}.parquet"), cache_dir=str(folder / ".cache")) for s in SPLITS
        }
    return DatasetDict(parts)


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
    if modality not in ("image", "text"):
        raise ValueError(f"unknown modality {modality!r}: expected 'image' or 'text'")
    column = "image" if modality == "image" else "description"
    part = dataset[split].select_columns(["persona", "name", "view", column])
    return [
        View(row["persona"], row["name"], modality, split, row["view"],
             row[column].convert("RGB") if modality == "image" else row[column])
        for row in part
        if row[column] is not None and (per_persona is None or row["view"] < per_persona)
    ]  # fmt: skip


def count_views(dataset: DatasetDict, split: str, modality: str, per_persona: int) -> int:
    """How many views `to_views` returns, nothing decoded."""
    table = dataset[split].data
    there = table.column("image" if modality == "image" else "description").is_valid()
    return int((there.to_numpy() & (table.column("view").to_numpy() < per_persona)).sum())


def names_of(dataset: DatasetDict) -> list[str]:
    """Names by persona number."""
    pairs: Iterable = zip(dataset["test"]["persona"], dataset["test"]["name"], strict=True)
    return [name for _, name in sorted(dict(pairs).items())]


def _card(dataset: DatasetDict, spec: PersonaSpec | None) -> str:
    configs = "\n".join(f"  - split: {s}\n    path: {s}.parquet" for s in SPLITS)
    people = len(set(dataset["test"]["persona"]))
    origin = f"Drawn by `xmem_utils` from `{spec}`." if spec else "Imported from a user's folder by `xmem_utils`."
    return f"""---
license: other
task_categories: [image-text-to-text]
pretty_name: xmem personas
configs:
- config_name: default
  data_files:
{configs}
---
# xmem personas

{people} fictitious people for the study of cross-modality memorization. {origin}

A row is one view: a portrait (`image`) and a `description` of the same persona, made independently from
one attribute vector (the columns {", ".join(AXIS_NAMES)}). Names, {" and ".join(FACTS)} are random.
Train and test views share no nuisance combination and no sentence frame.

Portraits: DiceBear style *Avataaars*, a remix of "Avataaars" (https://avataaars.com/) by Pablo Stanley,
free for personal and commercial use.
"""
