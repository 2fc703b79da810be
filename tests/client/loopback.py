"""A server on this machine that answers by a script, to see what a client does about it."""

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Step:
    """What to do with one request.

    Attributes:
        hangs_up: Close the connection instead of answering.
    """

    status: int = 200
    content: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"
    hangs_up: bool = False


@dataclass(frozen=True)
class Received:
    """A request as the server saw it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def refusal(slug: str, status: int = 503, retry_after: str | None = "1", **more: Any) -> Step:
    """Return a problem as the service tells it."""
    content = {"type": slug, "title": slug, "status": status, "detail": f"because {slug}"} | more
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Step(status, content, headers, "application/problem+json")


class Loopback:
    """A running server; each request gets the next step, and the last one for ever after."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.received: list[Received] = []
        self._steps = list(steps)
        self._lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                step = loopback._take(Received(self.command, self.path, headers, body))
                if step.hangs_up:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                is_text = isinstance(step.content, str)
                content = (step.content if is_text else json.dumps(step.content)).encode()
                self.send_response(step.status)
                for name, value in step.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", step.media_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _answer  # noqa: N815 - the names that the library calls

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, received: Received) -> Step:
        with self._lock:
            self.received.append(received)
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
