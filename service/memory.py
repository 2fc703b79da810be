"""What runs have freed: shared by all threads, and given back now and then."""

import ctypes

# Of glibc's malloc.h.
_M_ARENA_MAX = -8


def share_freed_memory() -> bool:
    """Let all threads of the process use one heap, where glibc has one for each.

    The threads of a process take turns at large runs. Each would keep the most that any of its
    runs ever took; sharing costs them nothing, since they hardly ever allocate at the same moment.

    Returns:
        Whether this process has a glibc to tell.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt is not None and mallopt(_M_ARENA_MAX, 1))


def return_freed_memory() -> None:
    """Give whole pages that nobody uses back to the system, where there is a glibc to do it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
