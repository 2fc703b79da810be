"""Several processes behind one port: one per core, since Python's lock binds a process to one.

The parent loads the models once and forks; the children share that memory, and each has a socket
of its own on the same port, over which the kernel spreads connections (SO_REUSEPORT). The parent
keeps the sockets open, so that connections wait, and are not refused, while a child that has died
is replaced. Whatever has a seed has the same bytes in every child.
"""

import gc
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from service.app import create_app
from service.banner import print_where_to_click
from service.board import Board
from service.server import Server
from service.service import Service
from service.settings import Settings

logger = logging.getLogger(__name__)

_ENDINGS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_ENDINGS, signal.SIGCHLD)
_BACKLOG = 2048
# A child that dies sooner is replaced only after this time, so that a lasting fault keeps no core.
_SHORTEST_LIFE_S = 1.0
# While the models are loaded a child says so; its last answers may take this long.
_LAST_WORDS_S = 0.5


def supervise(settings: Settings) -> int:
    """Serve with several processes until a signal ends them.

    Args:
        settings: What the operator chose.

    Returns:
        The exit status: 0 if all children drained as they should.

    Raises:
        OSError: The address cannot be listened on.
    """
    listeners = listen(settings.host, settings.port, settings.num_processes)
    board = Board(len(listeners))
    service = Service(settings, board)
    # The processes come and go together: the parent's log tells it once.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # While the models are loaded there is nothing to wait for, threads that read them included; the
    # doorkeeper ends with its parent.
    for number in _ENDINGS:
        signal.signal(number, lambda *_: os._exit(0))
    with _lifeline() as lifeline:
        crew = Crew(service, board, listeners, lifeline)
        doorkeeper = crew.fork(lambda: _keep_door(settings, listeners))
        for listener in listeners[0]:
            host, port = listener.getsockname()[:2]
            logger.info("running on http://%s:%d, %d processes", host, port, len(listeners))
        print_where_to_click(settings, listeners[0][0].getsockname()[1])
        service.load()
        os.kill(doorkeeper, signal.SIGTERM)
        app = create_app(settings, service)
        gc.collect()
        gc.freeze()  # the collector would write to, and so copy, memory that the children share
        _wait_for(doorkeeper)
        with _signals() as signals:
            return crew.run(app, signals)


def listen(host: str, port: int, num_processes: int) -> list[list[socket.socket]]:
    """Open sockets for several processes on the same addresses.

    Args:
        host: Name or address to listen on.
        port: Port; 0 for any.
        num_processes: How many.

    Returns:
        For each process a socket per address.

    Raises:
        OSError: An address is in use or not of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[list[socket.socket]] = [[] for _ in range(num_processes)]
    for family, address in dict.fromkeys((family, address[:2]) for family, *_, address in found):
        # Sockets that share a port share it with those of another server too, who would get half
        # of our clients. One that does not share is told that the port is taken.
        with socket.create_server(address, family=family):
            pass
        name: tuple[Any, ...] = address
        for own in listeners:
            own.append(
                socket.create_server(name[:2], family=family, backlog=_BACKLOG, reuse_port=True)
            )
            name = own[-1].getsockname()
    return listeners


class Crew:
    """The children that serve.

    Args:
        service: The loaded models.
        board: What the processes know of each other.
        listeners: On what each child listens.
        lifeline: Reading end of a pipe that ends with the parent, and its writing end.
    """

    def __init__(
        self,
        service: Service,
        board: Board,
        listeners: list[list[socket.socket]],
        lifeline: tuple[int, int],
    ) -> None:
        self._service = service
        self._board = board
        self._listeners = listeners
        self._lifeline = lifeline
        self._positions: dict[int, int] = {}
        self._born: dict[int, float] = {}

    def run(self, app: FastAPI, signals: Iterator[int]) -> int:
        """Keep all children alive until a signal, then drain.

        Args:
            app: What they serve.
            signals: Waits for the next signal.

        Returns:
            The exit status: 0 if all drained as they should.
        """
        for position in range(len(self._listeners)):
            self._start(app, position)
        status = 0
        is_told = False
        while self._positions:
            number = next(signals)
            if number in _ENDINGS:
                logger.info("shutting down")
                self._board.drain()
                # A second signal that finds the first still pending is one with it, so a child
                # that is short of time might hear of one interrupt only.
                if is_told and number == signal.SIGINT:
                    self._board.abandon()
                is_told = True
                for pid in self._positions:
                    os.kill(pid, number)
            for pid, child_status in self._reap():
                position = self._positions.pop(pid)
                if self._board.is_draining:
                    status = status or child_status
                else:
                    self._mourn(pid, position, child_status)
                    self._start(app, position)
        return status

    def fork(self, work: Callable[[], int]) -> int:
        """Run a function in a child, whose exit status it returns; returns the child's id.

        Signals that would end the child wait until the function lets them come.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return pid
        status = 1
        try:
            os.setpgid(0, 0)  # an interrupt from the terminal reaches the parent alone
            signal.set_wakeup_fd(-1)
            for number in _ENDINGS:  # after the server, which has handlers of its own
                signal.signal(number, lambda *_: os._exit(0))
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Signals stay blocked until the server has handlers: a child that ended at once would
            # leave connections to its listener without anybody to answer them.
            reading, writing = self._lifeline
            os.close(writing)
            threading.Thread(target=_end_with_parent, args=(reading,), daemon=True).start()
            status = work()
        except BaseException:
            logger.exception("a process failed")
        finally:
            logging.shutdown()
            os._exit(status)  # what the parent has opened is the parent's to close

    def _start(self, app: FastAPI, position: int) -> None:
        def work() -> int:
            self._service.serve(position)
            server = Server(app, self._service.settings)
            server.run(self._listeners[position])
            return 0 if server.started else 1

        pid = self.fork(work)
        self._positions[pid] = position
        self._born[pid] = time.monotonic()

    def _reap(self) -> Iterator[tuple[int, int]]:
        for pid in list(self._positions):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                yield pid, os.waitstatus_to_exitcode(status)

    def _mourn(self, pid: int, position: int, status: int) -> None:
        self._board.post(position, ready=False)
        logger.error("process %d ended with status %d; another takes its place", pid, status)
        lived_s = time.monotonic() - self._born.pop(pid)
        time.sleep(max(0.0, _SHORTEST_LIFE_S - lived_s))


def _keep_door(settings: Settings, listeners: list[list[socket.socket]]) -> int:
    # An application whose models nobody loads answers as it should while they are being loaded.
    app = create_app(settings, Service(settings))
    server = Server(app, settings.model_copy(update={"drain_window_s": 0}), closes_address=False)
    server.run([listener for own in listeners for listener in own])
    return 0


def _wait_for(doorkeeper: int) -> None:
    deadline = time.monotonic() + _LAST_WORDS_S
    while not os.waitpid(doorkeeper, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(doorkeeper, signal.SIGKILL)
        time.sleep(0.001)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written: this returns when the parent has gone
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signals() -> Iterator[Iterator[int]]:
    # Not by sigwait: libraries have threads that do not block signals, and would swallow them.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    try:
        yield (os.read(reading, 1)[0] for _ in itertools.repeat(None))
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)


@contextmanager
def _lifeline() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)
