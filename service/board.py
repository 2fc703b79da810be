"""What the processes of one server know of each other: a few bytes of shared memory."""

import mmap

_DRAINING, _ABANDONED = 1, 2


class Board:
    """Whether the server drains, and which of its processes are ready.

    Made before the processes are forked, and then the same memory in all of them. Every process
    writes its own byte alone, so that no lock is needed.

    Args:
        num_processes: How many there will be.
    """

    def __init__(self, num_processes: int = 1) -> None:
        self.num_processes = num_processes
        self._bytes = mmap.mmap(-1, 1 + num_processes)

    @property
    def is_draining(self) -> bool:
        """Whether the server as a whole is shutting down."""
        return self._bytes[0] != 0

    def drain(self) -> None:
        """Tell all processes that the server is shutting down."""
        self._bytes[0] = max(self._bytes[0], _DRAINING)

    @property
    def is_abandoned(self) -> bool:
        """Whether the server is to end without finishing what is in flight."""
        return self._bytes[0] == _ABANDONED

    def abandon(self) -> None:
        """Tell all processes to end at once."""
        self._bytes[0] = _ABANDONED

    def post(self, position: int, *, ready: bool) -> None:
        """Tell all processes whether one of them is ready.

        Args:
            position: Which, from 0.
            ready: Whether it answers requests.
        """
        self._bytes[1 + position] = ready

    @property
    def num_missing(self) -> int:
        """Number of processes that are not ready."""
        return self._bytes[1 : 1 + self.num_processes].count(0)
