"""What the processes of one `accelerate launch` say to each other. Alone, a process says nothing.

They know of each other once an `accelerate.Accelerator` has been made.
"""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def several() -> bool:
    """Whether this is one of several processes that work on the same model."""
    # asks torch, not Accelerate: its state would fix this process's device for good
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return not several() or dist.get_rank() == 0


def told(value: Value) -> Value:
    """The main process's `value`, on every process; all must call, and wait for the main one."""
    if not several():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
