"""The ASGI application: routes, one error shape, request ids."""

import asyncio
import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service import __version__
from service.errors import (
    InferenceFailedError,
    MalformedRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ProblemError,
)
from service.gate import Gate, mark
from service.openapi import document_routes
from service.routes import (
    classify,
    complete,
    encode,
    health,
    inference_v2,
    interpolate,
    log_prob,
    models,
    models_v2,
    openai_images,
    page,
    sample,
    server_v2,
)
from service.routes.documentation import PROBLEM
from service.routes.endpoint import (
    Answer,
    Endpoint,
    allowed_methods,
    exchange_of,
    json_bytes,
    service_of,
)
from service.service import Service
from service.settings import Settings
from service.transport import EXCHANGE

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("service.access")

# How much of a refused body is read and thrown away, and for how long.
_MAX_DISCARDED_BYTES = 256 * 2**20
_MAX_DISCARD_S = 2.0

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_request_numbers = itertools.count(1)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

DESCRIPTION = """
Generative image models: sample, interpolate, and ask how likely an image is.

Every model is a deterministic function of noise: the same request with the same seed gives the
same bytes. Likelihoods are natural logarithms, in nats per image.
"""


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """Make the application; its lifespan loads the models and drains at the end.

    Args:
        settings: What the operator chose.
        service: What loads its models elsewhere; by default the lifespan does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if service is None:
            app.state.service.start()
        yield
        await app.state.service.stop()

    app = Application(
        title="ptheta",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # ours needs no other host
        redoc_url=None,
        # Stable names for the methods of generated clients.
        generate_unique_id_function=lambda route: route.name,
        exception_handlers={
            ProblemError: _render_problem,
            HTTPException: _render_http_exception,
            Exception: _render_bug,
        },
    )
    app.state.service = service or Service(settings)
    accounts = app.state.service.accounts
    app.gate = None if accounts is None else Gate(accounts)
    modules = (
        *(sample, complete, interpolate, log_prob, classify, encode, models, health, page),
        *(openai_images, inference_v2, models_v2, server_v2),  # the last refuses what is left
    )
    routers = [routes.router for routes in modules]
    for router in routers:
        app.include_router(router)
    app.short_ways = _short_ways(routers)
    # FastAPI hides the routes of its routers.
    app.state.routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for route in app.state.routes:
        for method in getattr(route, "methods", None) or ():
            app.state.service.metrics.add_route(method, getattr(route, "path", ""))
    document_routes(app)
    return app


class Application(FastAPI):
    """FastAPI, inside of what every request needs: an id, one error shape, a line in the log.

    Pure ASGI: Starlette's BaseHTTPMiddleware would hide that a client has gone.

    Attributes:
        short_ways: Handlers of routes without path parameters, by method and path. They are
            reached without FastAPI's own layers, which cost more than drawing the noise of an
            image; the same handlers and the same error shape serve both ways.
        gate: Asks for API keys; None where none are configured.
    """

    short_ways: dict[tuple[str, str], Handler]
    gate: Gate | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the server."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # As GET to all of us; the server, which keeps the scope as it came, sends no body.
            scope = {**scope, "method": "GET"}
        service: Service = self.state.service
        # A copy: a server may give the same one to all requests.
        state = {"service": service, "request_id": _request_id(scope)}
        scope["state"] = {**scope.get("state", {}), **state}
        scope["app"] = self
        gate = self.gate
        handle = self.short_ways.get((scope["method"], scope["path"]))
        delivery = Delivery(service, scope, receive, send, handle is not None, gate)
        try:
            if gate is not None and (answer := await _stop(gate, Request(scope))) is not None:
                await answer(scope, receive, delivery.send)
            elif handle is None:
                await super().__call__(scope, receive, delivery.send)
            else:
                request = Request(scope, receive, send)
                response = await _respond(handle, request)
                if not delivery.send_at_once(request, response):
                    await response(scope, receive, delivery.send)
        except Exception:
            if not delivery.is_done:
                raise
            # It has been answered and logged. Raised any further, it would make the server cut
            # the connection under the client's next request.
        finally:
            delivery.end()


class Delivery:
    """Hands on the answer to one request, and counts it once.

    Args:
        service: Hears of it.
        scope: Of the request.
        receive: ASGI's.
        send: ASGI's.
        is_short: Whether the path is that of a route.
        gate: Marks the answer, where there are API keys.
    """

    __slots__ = (
        *("_began", "_closes", "_gate", "_is_short", "_receive", "_scope", "_seconds"),
        *("_send", "_service", "_status", "is_done"),
    )

    def __init__(
        self,
        service: Service,
        scope: Scope,
        receive: Receive,
        send: Send,
        is_short: bool,
        gate: Gate | None,
    ) -> None:
        self._began = time.perf_counter()
        self._service = service
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_short = is_short
        self._gate = gate
        self._status = 0
        self._seconds = 0.0
        self._closes: bool | None = None
        self.is_done = False

    async def send(self, message: Message) -> None:
        """Hand a message of the answer on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"].append((b"x-request-id", self._request_id.encode()))
            if self._closes_connection():
                message["headers"].append((b"connection", b"close"))
            if self._gate is not None:
                mark(message)
        elif not message.get("more_body"):
            if _leaves_body_unread(self._scope):
                await self._send({**message, "more_body": True})
                await _discard_body(self._receive)
                message = {"type": "http.response.body"}
            self._count()  # first, so that whoever has an answer finds it in the metrics
        await self._send(message)

    def send_at_once(self, request: Request, response: Response) -> bool:
        """Hand an answer on without a message, if it is a good one and our server can.

        Returns:
            Whether that was possible.
        """
        exchange = exchange_of(request)
        if (
            exchange is None
            or not isinstance(response, Answer)
            or self._gate is not None
            or not request.scope["state"]["watch"].body_is_read
            or not exchange.takes_whole_answer
            or self._closes_connection()
        ):
            return False
        lines = response.lines(self._request_id)
        self._status = response.status_code
        self._count()
        exchange.answer(lines, response.body)
        return True

    def end(self) -> None:
        """Count the request even if nobody answered it, and log it."""
        # An exchange and its scope hold each other; apart, both are gone at once, not when Python
        # next looks for such pairs among thousands of others.
        self._scope.get("extensions", {}).pop(EXCHANGE, None)
        if not self.is_done:
            self._count()
        if access_logger.isEnabledFor(logging.INFO):
            _log_access(self._scope, self._status, self._seconds)

    @property
    def _request_id(self) -> str:
        request_id: str = self._scope["state"]["request_id"]
        return request_id

    def _closes_connection(self) -> bool:
        # Where another process goes on, or has more time; asked once, since that counts it.
        if self._closes is None:
            service = self._service
            self._closes = service.phase != "serving" or service.sheds_connection()
        return self._closes

    def _count(self) -> None:
        self.is_done = True
        scope = self._scope
        route = scope["path"] if self._is_short else _route_of(scope)
        self._seconds = time.perf_counter() - self._began
        self._service.metrics.on_request(scope["method"], route, self._status, self._seconds)


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    record = {
        "request_id": scope["state"]["request_id"],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(1000 * seconds, 2),
    }
    if "key" in scope["state"]:  # the name of one, never the key
        record["key"] = scope["state"]["key"]
    access_logger.info(json_bytes(record).decode())


def _leaves_body_unread(scope: Scope) -> bool:
    # Only where the connection ends with the answer: otherwise the server throws the rest away.
    if getattr(scope["state"].get("watch"), "body_is_read", False):
        return False
    headers = Headers(scope=scope)
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    is_last = headers.get("connection", "").lower() == "close"
    return has_body and is_last


async def _discard_body(receive: Receive) -> None:
    """Take in the rest of a refused body for a while, after the answer has been sent.

    A client that is still sending when its connection closes sees a broken pipe instead.
    """
    left = _MAX_DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_MAX_DISCARD_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _route_of(scope: Scope) -> str:
    # The template, not the path: a client must not choose how many time series there are.
    return str(getattr(scope.get("route"), "path", ""))


async def _stop(gate: Gate, request: Request) -> Response | None:
    try:
        gate.enter(request.scope)
    except ProblemError as error:
        return await _render_problem(request, error)
    return gate.preflight(request.scope)


async def _respond(handle: Handler, request: Request) -> Response:
    try:
        return await handle(request)
    except ProblemError as error:
        return await _render_problem(request, error)
    except Exception as error:
        return await _render_bug(request, error)


def _short_ways(routers: Iterable[APIRouter]) -> dict[tuple[str, str], Handler]:
    return {
        (method, route.path): route.get_route_handler()
        for router in routers
        for route in router.routes
        if isinstance(route, Endpoint) and "{" not in route.path
        for method in route.methods or ()
    }


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return f"{_process_id()}-{next(_request_numbers):x}"


@cache
def _process_id() -> str:
    return secrets.token_hex(6)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process_id.cache_clear)


async def _render_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    service_of(request).metrics.on_refusal(error.slug)
    content = error.content(request.scope["state"]["request_id"])
    if request.scope["path"].startswith(openai_images.PREFIX):
        content["error"] = openai_images.describe_error(error)
    return Response(
        json_bytes(content), status_code=error.status, headers=error.headers, media_type=PROBLEM
    )


async def _render_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            problem: ProblemError = NotFoundError(f"there is nothing at {path}; see /docs")
        case 405:
            problem = MethodNotAllowedError(path, request.method, allowed_methods(request))
        case _:
            problem = MalformedRequestError("the request cannot be read")
    return await _render_problem(request, problem)


async def _render_bug(request: Request, error: Exception) -> Response:
    logger.error("request %s failed", request.scope["state"]["request_id"], exc_info=error)
    return await _render_problem(request, InferenceFailedError())
