"""The ASGI application: routes, one error shape, request ids."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.errors import (
    InferenceFailedError,
    MalformedRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ProblemError,
)
from service.metrics import Metrics
from service.routes import complete, health, interpolate, log_prob, models, sample
from service.routes.documentation import PROBLEM, Problem
from service.routes.endpoint import Endpoint, json_bytes
from service.service import Service
from service.settings import Settings

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("service.access")

# How much of a refused body is read and thrown away, and for how long.
_MAX_DISCARDED_BYTES = 256 * 2**20
_MAX_DISCARD_S = 2.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

DESCRIPTION = """
Generative image models: sample, interpolate, and ask how likely an image is.

Every model is a deterministic function of noise: the same request with the same seed gives the
same bytes. Likelihoods are natural logarithms, in nats per image.
"""


def create_app(settings: Settings) -> FastAPI:
    """Make the application; its lifespan loads the models and drains at the end.

    Args:
        settings: What the operator chose.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service.start()
        yield
        await app.state.service.stop()

    app = FastAPI(
        title="ptheta",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        exception_handlers={
            ProblemError: _render_problem,
            HTTPException: _render_http_exception,
        },
    )
    app.state.service = Service(settings)
    routers = [
        routes.router for routes in (sample, complete, interpolate, log_prob, models, health)
    ]
    for router in routers:
        app.include_router(router)
    app.add_middleware(RequestContext, handlers=_plain_handlers(routers))
    app.add_route("/", _front_page, include_in_schema=False)
    _document_problem(app)
    return app


class RequestContext:
    """Gives every request an id, logs its end, and shortens the way to plain routes.

    Pure ASGI: Starlette's BaseHTTPMiddleware would hide that a client has gone.

    Args:
        app: The rest of the application.
        handlers: Routes without path parameters, by method and path. They are reached without
            FastAPI's own layers, which cost more than drawing the noise of an image; the same
            handlers and the same error shape serve both ways.
    """

    def __init__(
        self, app: ASGIApp, handlers: Mapping[tuple[str, str], Callable[..., Any]]
    ) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        extra = [(b"x-request-id", request_id.encode())]
        if scope["app"].state.service.phase == "draining":
            extra.append((b"connection", b"close"))
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].extend(extra)
            elif not message.get("more_body") and _leaves_body_unread(scope):
                await send({**message, "more_body": True})
                await _discard_body(receive)
                message = {"type": "http.response.body"}
            await send(message)

        handle = self._handlers.get((scope["method"], scope["path"]))
        try:
            if handle is None:
                await self._app(scope, receive, send_with_id)
            else:
                await _serve(handle, Request(scope, receive, send), send_with_id)
        except Exception as error:
            if status:
                raise
            # Left to Starlette, it would be raised again after the answer, and the connection
            # be cut under the client's next request.
            response = await _render_bug(Request(scope), error)
            await response(scope, receive, send_with_id)
        finally:
            route = scope["path"] if handle is not None else _route_of(scope)
            self._note(scope, route, status, time.perf_counter() - began)

    def _note(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        metrics: Metrics = scope["app"].state.service.metrics
        method = scope["method"] if route else "other"
        metrics.requests.labels(method, route, status).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if access_logger.isEnabledFor(logging.INFO):
            record = {
                "request_id": scope["state"]["request_id"],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 2),
            }
            access_logger.info(json_bytes(record).decode())


def _leaves_body_unread(scope: Scope) -> bool:
    # Only where the connection ends with the answer: otherwise the server throws the rest away.
    headers = Headers(scope=scope)
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    is_last = headers.get("connection", "").lower() == "close"
    return has_body and is_last and not getattr(scope["state"].get("watch"), "body_is_read", False)


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


async def _serve(handle: Callable[..., Any], request: Request, send: Send) -> None:
    try:
        response = await handle(request)
    except ProblemError as error:
        response = await _render_problem(request, error)
    except Exception as error:
        response = await _render_bug(request, error)
    await response(request.scope, request.receive, send)


def _plain_handlers(routers: Iterable[APIRouter]) -> dict[tuple[str, str], Callable[..., Any]]:
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
    return secrets.token_hex(8)


async def _render_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    request.app.state.service.metrics.rejections.labels(error.slug).inc()
    content: dict[str, Any] = {
        "type": error.slug,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "error": error.detail,
        "request_id": request.state.request_id,
        **error.extensions,
    }
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
            problem = MethodNotAllowedError(f"{path} does not answer {request.method}; see /docs")
        case _:
            problem = MalformedRequestError("the request cannot be read")
    response = await _render_problem(request, problem)
    response.headers.update(error.headers or {})
    return response


async def _render_bug(request: Request, error: Exception) -> Response:
    logger.error("request %s failed", request.state.request_id, exc_info=error)
    return await _render_problem(request, InferenceFailedError())


async def _front_page(request: Request) -> Response:
    return RedirectResponse("docs")


def _document_problem(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas["Problem"] = schema
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        # FastAPI adds its own 422 to every operation with parameters that documents none.
        for path in document["paths"].values():
            for operation in path.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
