"""A CPU shared with other programs, and memory that is used again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h, glibc's
SECONDS_TO_LOOK = 0.2  # how long the other programs' load is measured


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for_idle_cores() -> Iterator[None]:
    """Let torch use one thread per idle core, at least one, if it would use every core.

    A thread beside another busy program is slow, and all others wait for it at every operation: with one such program
    on two cores, two threads take more than twice as long as one (RESULTS.md, "Speed"). A number that was chosen by
    OMP_NUM_THREADS stays, and any below the number of cores.
    """
    count = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ and count == cores() > 1:
        count = max(1, min(count, round(idle_cores())))
    with use_threads(count):
        yield


def idle_cores() -> float:
    """How many of this process's cores are idle now; fractions add up."""
    percent = psutil.cpu_percent(SECONDS_TO_LOOK, percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(percent))
    return sum(1 - percent[core] / 100 for core in usable if core < len(percent))


def keep_freed_memory() -> None:
    """Keep freed memory in the process for the next batch (glibc only).

    Otherwise the pages of every activation, a few megabytes each, are returned and faulted in again at every batch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        return
    mallopt(M_MMAP_THRESHOLD, 8 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 2**30)
