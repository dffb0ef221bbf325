"""How many threads torch takes."""

from __future__ import annotations

import os

import torch


def set_threads() -> int:
    """Give torch `XMEM_THREADS` threads, or two (or as many as there are); returns the number.

    The embedded model's products are too small for more. Workers side by side must share the cores: two
    processes with two threads each on two cores run many times slower than with one each.
    """
    threads = int(os.environ.get("XMEM_THREADS") or min(2, os.cpu_count() or 1))
    torch.set_num_threads(threads)
    return threads
