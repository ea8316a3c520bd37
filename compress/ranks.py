"""The processes that `torchrun` or `accelerate launch` start for one run: who works, and where they meet.

One process is the usual case, and then nothing here does anything.
"""

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from compress.errors import StageError

Value = TypeVar("Value")


def join() -> None:
    """Meet the other processes of this run, if a launcher started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # The others wait while the first evaluates or quantises, which may take hours.
        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def count() -> int:
    """How many processes make this run together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def meet() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def as_first_says(value: Value) -> Value:
    """The first process's value, in all of them."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def require_one(doing: str) -> None:
    """
    Raises:
        StageError: several processes were started for something that one does.
    """
    if count() > 1:
        raise StageError(
            f"{doing} is done by one process. Give the same command without torchrun or accelerate launch: what "
            "several processes have done is kept, and the run goes on from here"
        )
