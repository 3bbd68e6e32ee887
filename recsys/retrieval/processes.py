"""Several processes that share a work, as torchrun starts them; one alone is the first of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from recsys.errors import InputError, WorkError

MEET = timedelta(minutes=10)
"""How long processes wait for each other to start."""
WAIT = timedelta(hours=12)
"""How long a process that is done waits for the slowest. One that ends early is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """One process among those that share a work."""

    rank: int
    """Which one this is, from 0."""
    count: int
    """How many there are."""
    group: Any = None
    """torch's process group, None for a process alone."""

    @property
    def is_first(self) -> bool:
        """True in one of them."""
        return self.rank == 0

    def total(self, number: int) -> int:
        """The sum of a number over all processes, which wait for each other here.

        Raises WorkError where another one has failed.
        """
        if self.group is None:
            return number
        sum_1 = torch.tensor([number])
        try:
            torch.distributed.all_reduce(sum_1, group=self.group)
        except RuntimeError as error:
            raise WorkError(
                f"another of the {self.count} processes failed, see its own message:"
                f" {str(error).splitlines()[0]}"
            ) from None
        return int(sum_1)


@contextmanager
def processes() -> Iterator[Processes]:
    """This process among those that torchrun started, by its RANK and WORLD_SIZE.

    Raises InputError where the others are not found.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1)
        return
    parallel = torch.distributed
    own = not parallel.is_initialized()
    try:
        if own:
            parallel.init_process_group("gloo", timeout=MEET)
        group = parallel.new_group(backend="gloo", timeout=WAIT)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE is {count}, but the processes do not find each other: start them with"
            f" torchrun ({str(error).splitlines()[0]})"
        ) from None
    try:
        yield Processes(parallel.get_rank(), count, group)
    finally:
        if own:
            parallel.destroy_process_group()
