"""How far a loop is: a bar in JupyterLab, a short line a step in a headless run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

# Set for the kernel of a headless run: progress is printed as lines that begin so, instead of drawn as a bar.
LINES = "XMEM_PROGRESS_LINES"
MARK = "progress: "
QUIET = 2.0  # seconds between lines, at least

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield `items` with a bar in JupyterLab, or a line each (done, time left) in a headless run."""
    if not os.environ.get(LINES):
        yield from tqdm(items, total=total, desc=label, unit="", mininterval=1)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last < QUIET:  # read from the store: nothing to report
            continue
        last, spent = now, now - started
        print(f"{MARK}{label} {done}/{total}, {spent:.0f} s, {spent / done * (total - done):.0f} s left", flush=True)
