"""How far a loop is: a bar in JupyterLab, now and then a short line in a headless run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

# Set for the kernel of a headless run: progress is printed as lines that begin so, instead of drawn as a bar.
LINES = "XMEM_PROGRESS_LINES"
MARK = "progress: "
QUIET = 10.0  # seconds between the lines of one bar, at least

Item = TypeVar("Item")


class Bar:
    """Counts to `total`, and goes then; `shown=False` is silent, as are the first seconds of a headless run."""

    def __init__(self, total: int, label: str, shown: bool = True, leave: bool = False) -> None:
        self._lines = shown and bool(os.environ.get(LINES))
        self._bar = tqdm(total=total, desc=label, unit="", leave=leave, mininterval=1, disable=self._lines or not shown)
        self._label, self._total = label, total
        self._started = self._last = time.monotonic()

    def reach(self, done: int) -> None:
        """So many are done."""
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._lines and now - self._last >= QUIET:
            self._last, spent = now, now - self._started
            left = spent / done * (self._total - done)
            print(f"{MARK}{self._label} {done}/{self._total}, {spent:.0f} s, {left:.0f} s left", flush=True)
        if done == self._total:
            self._bar.close()


def note(text: str) -> None:
    """Say something in between."""
    print(f"{MARK}{text}" if os.environ.get(LINES) else text, flush=True)


def progress(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield `items` with a bar that counts those the caller is done with."""
    bar = Bar(len(items), label, leave=True)
    for done, item in enumerate(items, 1):
        yield item
        bar.reach(done)
