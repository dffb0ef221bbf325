"""Trained conditions on disk: an adapter is there whole, or not at all, and so are records of it.

`data/runs/<experiment>/<slug>/` holds condition.json, the PEFT adapter (safetensors), curve.parquet, facts.json (what
the training took) and manifest.json with a checksum of each; the slug ends in a digest of all that shapes the weights.
`records-<key>.parquet` beside them, with its checksum in a file of the same name, is what an evaluation found; the key
says which. So another evaluation asks the same adapter, and trains nothing. In `data/runs/untrained/` are records of
base models. Everything is written beside its place and renamed into it, and verified whenever it is read; what is
damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock
from safetensors import SafetensorError

from xmem_utils.params import Strict
from xmem_utils.processes import is_main, told

Found = TypeVar("Found")


class Condition(Strict):
    """Everything that determines one trained adapter; `code` is that of what trains."""

    code: str

    @property
    def name(self) -> str:
        """A readable folder name."""
        raise NotImplementedError

    @property
    def labels(self) -> dict[str, Any]:
        """What tells its records from those of other conditions, by column."""
        raise NotImplementedError

    @property
    def slug(self) -> str:
        """The name, made unique."""
        digest = hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:10]}"


@dataclass(frozen=True)
class Trained:
    """A stored training: its condition, where it is, recall along the training, and what the training took."""

    condition: Condition
    folder: Path
    curve: pd.DataFrame
    facts: Mapping[str, float]

    @property
    def adapter(self) -> Path:
        """A folder that `peft.PeftModel.from_pretrained` reads."""
        return self.folder / "adapter"


@dataclass(frozen=True)
class Run(Trained):
    """A stored training and the records of one evaluation."""

    records: pd.DataFrame


# What writes the adapter into a folder; the curve; facts.
Training = Callable[[], tuple[Callable[[Path], None], pd.DataFrame, Mapping[str, float]]]


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json")
    return {str(f.relative_to(folder)): _checksum(f) for f in files if not f.name.startswith("records-")}


def damage(folder: Path) -> str | None:
    """What is wrong with a stored training, in a few words; None when it is whole."""
    try:
        expected = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    found = _checksums(folder)
    bad = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"changed or missing: {', '.join(bad)}" if bad else None


def _sealed(file: Path) -> bool:
    """Whether records are as they were written."""
    seal = file.with_suffix(".sha256")
    return seal.exists() and seal.read_text() == _checksum(file)


def find(condition: Condition, root: Path) -> Trained | None:
    """The stored training of a condition, or None; for a damaged one too, with a warning that names it."""
    folder = root / condition.slug
    if not folder.exists():
        return None
    if problem := damage(folder):
        warnings.warn(f"run {condition.slug} is damaged ({problem}); it is computed again", stacklevel=2)
        return None
    facts = json.loads((folder / "facts.json").read_text())
    return Trained(condition, folder, pd.read_parquet(folder / "curve.parquet"), facts)


def trained(condition: Condition, train: Training, root: Path) -> Trained:
    """The stored training of a condition; `train` is called when there is none.

    One lock a condition: of several processes that want it, one trains and the others wait and read. A store that
    cannot be written is read all the same. Raises OSError with a sentence when a new run cannot be stored (read-only,
    disk full); nothing of it is left behind then.
    """
    folder, partial = root / condition.slug, root / f".{condition.slug}.partial-{os.getpid()}"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        for left in root.glob(f".{condition.slug}.partial-*"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: the lock is ours
        partial.mkdir()

    def write(write_adapter: Callable[[Path], None], curve: pd.DataFrame, facts: Mapping[str, float]) -> None:
        write_adapter(partial / "adapter")
        curve.to_parquet(partial / "curve.parquet", index=False)
        (partial / "facts.json").write_text(json.dumps(dict(facts), indent=1))
        (partial / "condition.json").write_text(condition.model_dump_json(indent=1))
        (partial / "manifest.json").write_text(json.dumps(_checksums(partial), indent=1))
        partial.rename(folder)

    try:
        return _once(condition.slug, root, lambda: find(condition, root), prepare, train, write)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def evaluated(found: Trained, key: str, evaluate: Callable[[], pd.DataFrame]) -> Run:
    """A stored training with the records that an evaluation `key` made of it; `evaluate` is called when there are none.

    Locks, damage and errors are as in `trained`.
    """
    file = found.folder / f"records-{key}.parquet"
    return Run(**vars(found), records=kept(file, evaluate, found.condition.slug, found.folder.parent))


def kept(file: Path, make: Callable[[], pd.DataFrame], name: str, root: Path) -> pd.DataFrame:
    """A stored table; `make` is called when there is none. `name` and `root` of its lock, as in `trained`."""
    partial = file.with_suffix(".partial")

    def read() -> pd.DataFrame | None:
        if not file.exists():
            return None
        if not _sealed(file):
            warnings.warn(f"run {name}: {file.name} is damaged; it is computed again", stacklevel=3)
            return None
        return pd.read_parquet(file)

    def write(records: pd.DataFrame) -> None:
        records.to_parquet(partial, index=False)
        file.with_suffix(".sha256").write_text(_checksum(partial))
        partial.rename(file)

    return _once(name, root, read, partial.touch, lambda: (make(),), write)


def _once(
    name: str, root: Path, read: Callable[[], Found | None], prepare: Callable[[], None],
    make: Callable[[], tuple], write: Callable[..., None],
) -> Found:  # fmt: skip
    """What `read` finds; when that is nothing, what `make` makes is written first, by one process alone.

    The processes of one `accelerate launch` all call, and make it together: the main one alone reads, holds the lock
    and writes, so it must be able to write what was made alone. When it fails, the launcher ends the others.
    """
    if not is_main():
        if (found := told(None)) is None:
            make()
            found = told(None)
        return found
    if (found := read()) is not None:  # needs no lock: everything appears whole
        return told(found)
    with _storing(name, root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        lock.acquire()
    try:
        with warnings.catch_warnings(action="ignore"):
            found = read()  # another process may have made it while this one waited
        if found is None:
            with _storing(name, root):
                prepare()  # before anything is made: a store that cannot be written is noticed now
            told(None)  # nothing yet: everybody makes it
            made = make()
            with _storing(name, root):
                write(*made)
            found = read()
        return told(found)
    finally:
        lock.release()


@contextlib.contextmanager
def _storing(name: str, root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"run {name} cannot be stored under {root}: {reason}") from error


def listing(
    root: Path, current: frozenset[str], summary: Callable[[pd.DataFrame], dict], verify: bool = False
) -> pd.DataFrame:
    """What the store holds, a row a training: name, MiB, age in hours, `summary` of its latest records, state.

    State is "whole", "stale" (made by other code than `current`, so never read again), or what is damaged; without
    `verify` files are not read, and "not checked" stands for the first.
    """
    rows = []
    folders = {f.parent for name in ("condition.json", "manifest.json") for f in root.rglob(name)}
    for folder in sorted(f for f in folders if not f.name.startswith(".")):
        row: dict[str, object] = {
            "run": str(folder.relative_to(root)),
            "MiB": round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20, 2),
            "hours": round((time.time() - folder.stat().st_mtime) / 3600, 1),
        }
        problem = damage(folder) if verify else None
        bad = [f.name for f in folder.glob("records-*.parquet") if verify and not _sealed(f)]
        problem = problem or (f"changed or missing: {', '.join(bad)}" if bad else None)
        try:
            made = json.loads((folder / "condition.json").read_text())["code"]
            if records := sorted(folder.glob("records-*.parquet"), key=lambda f: f.stat().st_mtime):
                row |= summary(pd.read_parquet(records[-1]))
            row["state"] = problem or ("stale" if made not in current else "whole" if verify else "not checked")
        except (OSError, ValueError, KeyError) as error:
            row["state"] = problem or f"unreadable: {error}"
        rows.append(row)
    return pd.DataFrame(rows)
