"""Trained conditions on disk: a run is there whole, or not at all.

`data/runs/<slug>/` holds condition.json, the PEFT adapter (safetensors), records.parquet, curve.parquet
and manifest.json with a checksum of each file. It is written beside its place and renamed into it, and
verified whenever it is read; a damaged run is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd
from filelock import FileLock
from safetensors import SafetensorError

from xmem_utils import fingerprint, paths
from xmem_utils.params import Condition, MitigationCondition, MultihopCondition, UnlearningCondition
from xmem_utils.processes import is_main, several, told


class Adapter(Protocol):
    """A PEFT model, or what else can write an adapter."""

    def save_pretrained(self, folder: Path) -> None:
        """Write what `peft.PeftModel.from_pretrained` reads."""


AnyCondition = Condition | MultihopCondition | MitigationCondition | UnlearningCondition
Compute = Callable[[AnyCondition], tuple[Adapter, pd.DataFrame, pd.DataFrame]]


@dataclass(frozen=True)
class Run:
    """A stored condition: where its adapter is, its records and its learning curve."""

    condition: AnyCondition
    folder: Path
    records: pd.DataFrame
    curve: pd.DataFrame

    @property
    def adapter(self) -> Path:
        """A folder that `peft.PeftModel.from_pretrained` reads."""
        return self.folder / "adapter"


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def damage(folder: Path) -> str | None:
    """What is wrong with a stored run, in a few words; None when it is whole."""
    try:
        expected = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    found = _checksums(folder)
    bad = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"changed or missing: {', '.join(bad)}" if bad else None


def _read(condition: AnyCondition, folder: Path) -> Run:
    return Run(
        condition,
        folder,
        pd.read_parquet(folder / "records.parquet"),
        pd.read_parquet(folder / "curve.parquet"),
    )


def find(condition: AnyCondition, root: Path | None = None) -> Run | None:
    """The stored run of a condition, or None; for a damaged one too, with a warning that names it."""
    folder = (root or paths.RUNS) / condition.slug
    if not folder.exists():
        return None
    if problem := damage(folder):
        warnings.warn(f"run {condition.slug} is damaged ({problem}); it is computed again", stacklevel=2)
        return None
    return _read(condition, folder)


def get(condition: AnyCondition, compute: Compute, root: Path | None = None) -> Run:
    """The stored run of a condition; `compute` (adapter, records, curve) is called when there is none.

    One lock a condition: of several processes that want it, one computes and the others wait and read. A
    store that cannot be written is read all the same. Raises OSError with a sentence when a new run cannot
    be stored (read-only, disk full); nothing of it is left behind then.

    The processes of one `accelerate launch` all call, and compute together: the main one alone asks the store,
    holds the lock and writes, so its adapter must be one that it can write alone. When it fails, the launcher
    ends the others.
    """
    if not several():
        return _get(condition, compute, root)
    if is_main():

        def together(condition: AnyCondition) -> tuple[Adapter, pd.DataFrame, pd.DataFrame]:
            told(None)  # no run yet: everybody computes
            return compute(condition)

        return told(_get(condition, together, root))
    if (run := told(None)) is None:
        compute(condition)
        run = told(None)
    return run


def _get(condition: AnyCondition, compute: Compute, root: Path | None) -> Run:
    root = root or paths.RUNS
    folder = root / condition.slug
    if run := find(condition, root):  # needs no lock: a run appears whole
        return run
    partial = root / f".{condition.slug}.partial-{os.getpid()}"
    lock = FileLock(root / f".{condition.slug}.lock")
    with _storing(condition, root):
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if folder.exists():
            if damage(folder) is None:
                return _read(condition, folder)  # another process made it while this one waited
            shutil.rmtree(folder)
        for left in root.glob(f".{condition.slug}.partial-*"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: the lock is ours
        with _storing(condition, root):
            partial.mkdir()  # before computing: a store that cannot be written is noticed now
        result = compute(condition)
        with _storing(condition, root):
            _write(partial, condition, *result)
            partial.rename(folder)
        return _read(condition, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


@contextlib.contextmanager
def _storing(condition: AnyCondition, root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"run {condition.slug} cannot be stored under {root}: {reason}") from error


def _write(folder: Path, condition: AnyCondition, adapter: Adapter, records: pd.DataFrame, curve: pd.DataFrame) -> None:
    adapter.save_pretrained(folder / "adapter")
    records.to_parquet(folder / "records.parquet", index=False)
    curve.to_parquet(folder / "curve.parquet", index=False)
    (folder / "condition.json").write_text(condition.model_dump_json(indent=1))
    (folder / "manifest.json").write_text(json.dumps(_checksums(folder), indent=1))


def listing(verify: bool = False, root: Path | None = None) -> pd.DataFrame:
    """What the store holds, a row a run: name, MiB, age in hours, recall asked in either modality, state.

    State is "whole", "stale" (made by other code, so never read again), or what is damaged; without
    `verify` files are not read, and "not checked" stands for the first. Recall of names is that of everybody; after
    unlearning, of the forgotten; in two hops, of the study's people.
    """
    rows = []
    root = root or paths.RUNS
    kinds = [paths.UNLEARNED.name, paths.MULTIHOP.name, paths.MITIGATED.name]
    places = [root, *(root / kind for kind in kinds)]
    folders = [f for place in places for f in sorted(place.glob("[!.]*")) if f.is_dir()]
    current = {
        fingerprint.fingerprint(f)
        for f in (fingerprint.FILES, fingerprint.UNLEARNING, fingerprint.MULTIHOP, fingerprint.MITIGATION)
    }
    for folder in (f for f in folders if f.name not in kinds):
        files = [f for f in folder.rglob("*") if f.is_file()]
        row: dict[str, object] = {
            "run": str(folder.relative_to(root)),
            "MiB": round(sum(f.stat().st_size for f in files) / 2**20, 2),
            "hours": round((time.time() - folder.stat().st_mtime) / 3600, 1),
        }
        problem = damage(folder) if verify else None
        try:
            made = json.loads((folder / "condition.json").read_text())["code"]
            records = pd.read_parquet(folder / "records.parquet")
            if "arm" in records:
                shown = records[(records["arm"] == "hop 1") & (records["group"] == "study")]
            else:
                shown = records[records["probe"] == "view"]
                shown = shown[shown["who"] == "forget"] if "who" in shown else shown
            row |= shown.groupby("asked")["exact"].mean().add_prefix("recall asked in ").to_dict()
            whole = "whole" if verify else "not checked"
            row["state"] = problem or (whole if made in current else "stale")
        except (OSError, ValueError, KeyError) as error:
            row["state"] = problem or f"unreadable: {error}"
        rows.append(row)
    return pd.DataFrame(rows)
