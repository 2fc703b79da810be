"""What runs have freed: shared by all threads, and given back now and then."""

import ctypes
import os
from collections.abc import Mapping

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8

# Python makes a new class for a function of it each time that one is asked for.
_libc = ctypes.CDLL(None) if os.name == "posix" else None
_mallopt = getattr(_libc, "mallopt", None)
_malloc_trim = getattr(_libc, "malloc_trim", None)

LARGEST_ACTIVATION = 2**20
"""Most that a node of a graph should put out in one run, in bytes."""

# Larger blocks go back to the system as soon as they are freed, and come from there page by page,
# which costs a convolution a third of its time. A run plans one block for all that lives at a time,
# such as the input and the output of a layer and its workspace: up to three times the largest of
# them. It must be kept.
LARGEST_KEPT_BLOCK = 13 * 2**18

# While models are loaded, larger blocks get pages of their own: weights, which stay, and copies of
# them, which do not, would otherwise leave holes between each other.
_SMALLEST_WEIGHTS = 2**16

# What is free at the end of the heap goes back by itself only from this size on, so that the heap
# does not shrink after each run and grow before the next.
_LARGEST_FREE_END = 5 * 2**21


def tell_malloc(options: Mapping[int, int]) -> bool:
    """Set options of glibc's malloc for this process.

    Args:
        options: Values by the numbers of malloc.h.

    Returns:
        Whether this process has a glibc, and it took all of them.
    """
    if _mallopt is None:
        return False
    took = [_mallopt(number, value) for number, value in options.items()]
    return all(took)


def bound_freed_memory() -> bool:
    """Keep little of what is freed, and let all threads of the process share it.

    glibc has a heap for each thread. The threads of a process take turns at large runs, and each
    would keep the most that any of its runs ever took; sharing one costs them nothing, since they
    hardly ever allocate at the same moment. And it lets the blocks that it keeps grow with those
    that it sees, up to 32 MiB: what is allocated between them then tears the heap to pieces that
    fit nothing, and it grows for as long as the load lasts.

    Returns:
        Whether this process has a glibc to tell.
    """
    return tell_malloc(
        {
            _M_ARENA_MAX: 1,
            _M_MMAP_THRESHOLD: _SMALLEST_WEIGHTS,
            M_TRIM_THRESHOLD: _LARGEST_FREE_END,
        }
    )


def keep_blocks_of_runs() -> None:
    """End the time of loading: give what it has freed back, and keep what runs will free."""
    return_freed_memory()
    tell_malloc({_M_MMAP_THRESHOLD: LARGEST_KEPT_BLOCK})


def return_freed_memory() -> None:
    """Give whole pages that nobody uses back to the system, where there is a glibc to do it."""
    if _malloc_trim is not None:
        _malloc_trim(0)
