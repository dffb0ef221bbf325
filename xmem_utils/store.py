"""Trained conditions on disk: a run is there whole, or not at all.

`data/runs/<slug>/` holds condition.json, the PEFT adapter (safetensors), records.parquet, curve.parquet
and manifest.json with a checksum of each file. It is written beside its place and renamed into it, and
verified whenever it is read; a damaged run is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock
from peft import PeftModel

from xmem_utils import paths
from xmem_utils.params import Condition


@dataclass(frozen=True)
class Run:
    """A stored condition: where its adapter is, its records and its learning curve."""

    condition: Condition
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


def _read(condition: Condition, folder: Path) -> Run:
    return Run(
        condition,
        folder,
        pd.read_parquet(folder / "records.parquet"),
        pd.read_parquet(folder / "curve.parquet"),
    )


def find(condition: Condition, root: Path | None = None) -> Run | None:
    """The stored run of a condition, or None; a damaged one is removed with a warning that names it."""
    folder = (root or paths.RUNS) / condition.slug
    if not folder.exists():
        return None
    if problem := damage(folder):
        warnings.warn(f"run {condition.slug} is damaged ({problem}); it is computed again", stacklevel=2)
        shutil.rmtree(folder)
        return None
    return _read(condition, folder)


def get(
    condition: Condition,
    compute: Callable[[Condition], tuple[PeftModel, pd.DataFrame, pd.DataFrame]],
    root: Path | None = None,
) -> Run:
    """The stored run of a condition; `compute` (adapter, records, curve) is called when there is none.

    One lock a condition: of several processes that want it, one computes and the others wait and read.
    """
    root = root or paths.RUNS
    root.mkdir(parents=True, exist_ok=True)
    folder = root / condition.slug
    with FileLock(root / f".{condition.slug}.lock"):
        if run := find(condition, root):
            return run
        adapter, records, curve = compute(condition)
        partial = root / f".{condition.slug}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        adapter.save_pretrained(partial / "adapter")
        records.to_parquet(partial / "records.parquet", index=False)
        curve.to_parquet(partial / "curve.parquet", index=False)
        (partial / "condition.json").write_text(condition.model_dump_json(indent=1))
        (partial / "manifest.json").write_text(json.dumps(_checksums(partial), indent=1))
        partial.rename(folder)
        return _read(condition, folder)
