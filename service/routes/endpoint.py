"""Requests in, answers out: bodies with limits, validation, departed clients."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar, get_args, get_origin

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from service.batcher import Outcome
from service.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    MalformedRequestError,
    PayloadTooLargeError,
    SlowRequestError,
    UnsupportedMediaTypeError,
)
from service.service import Service
from service.transport import EXCHANGE, Exchange

# What a GET route answers is public: other sites may show its pictures and read its JSON. There
# are no cookies that could be borrowed, and a POST from elsewhere is left to the browser to refuse.
PUBLIC = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
}

ModelT = TypeVar("ModelT", bound=BaseModel)
Handler = Callable[..., Awaitable[Response]]

# What proxies log for a client that did not wait; nobody receives it.
CLIENT_CLOSED_REQUEST = 499

# Most answers are there sooner; only slower ones pay for a watch over their client.
_WATCH_AFTER_S = 0.05
_BODY_CHECK_S = 0.25

# `curl -d` sends JSON under the name of a form unless told otherwise.
JSON_TYPES = {"", "application/json", "application/x-www-form-urlencoded"}


class Endpoint(APIRoute):
    """A route that fills its function's parameters itself, so that every error has the one shape.

    FastAPI documents the parameters. Their meaning here: a request model is the JSON body, or the
    query where it is annotated so; a `str` is part of the path.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that binds, calls, and stops when the client departs."""
        endpoint: Handler = self.endpoint
        bind = _binder(endpoint)

        async def handle(request: Request) -> Response:
            watch = request.scope["state"]["watch"] = Watch(request)
            try:
                watch.require_client()
                return await endpoint(request, **await bind(request))
            except asyncio.CancelledError:
                watch.acknowledge()
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            finally:
                watch.end()

        return handle


class Watch:
    """Ends the work for a request whose body does not come or whose client has gone.

    Our own server tells of departures; under another, a task waits for them, which only requests
    that take some time pay for.

    Args:
        request: The request, in whose task this is created.
    """

    def __init__(self, request: Request) -> None:
        self.body_is_read = request.method in {"GET", "HEAD"}
        self._request: Request | None = request
        self._task = asyncio.current_task()
        self._reason: type[SlowRequestError] | type[ClientDisconnect] | None = None
        self._departure: asyncio.Task[None] | None = None
        self._body_timeout_s = service_of(request).settings.body_timeout_s
        exchange = self._exchange = exchange_of(request)
        self._departures = None if exchange is None else exchange.departures
        if self._departures is not None:
            self._departures.add(self._depart)
        self._timer: asyncio.TimerHandle | None = None
        if exchange is None or not (self.body_is_read or exchange.has_whole_body):
            loop = asyncio.get_running_loop()
            self._body_deadline = loop.time() + self._body_timeout_s
            self._timer = loop.call_later(_WATCH_AFTER_S, self._look)

    def require_client(self) -> None:
        """Refuse to work for a client who went before this watch began.

        Raises:
            ClientDisconnect: That is so, as far as is known.
        """
        if self._exchange is not None and self._exchange.has_gone:
            raise ClientDisconnect

    def acknowledge(self) -> None:
        """Take note of a cancellation of the request's task.

        Raises:
            SlowRequestError: The watch cancelled it because the body was too slow.
            asyncio.CancelledError: Somebody else cancelled it.
        """
        if self._reason is None:
            raise asyncio.CancelledError
        assert self._task is not None
        self._task.uncancel()
        if self._reason is SlowRequestError:
            raise SlowRequestError(self._body_timeout_s)

    def end(self) -> None:
        """Stop watching, and let go of the request, whose scope holds this."""
        self._request = self._task = self._exchange = None
        if self._timer is not None:
            self._timer.cancel()
        if self._departures is not None:
            self._departures.discard(self._depart)
        if self._departure is not None:
            self._departure.cancel()

    def _look(self) -> None:
        if self.body_is_read:
            if self._departures is None:
                self._departure = asyncio.create_task(self._wait_for_departure())
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._body_deadline:
            self._cancel(SlowRequestError)
        else:
            # While the body comes, its reader notices a departure by itself.
            self._timer = loop.call_later(_BODY_CHECK_S, self._look)

    async def _wait_for_departure(self) -> None:
        request = self._request
        assert request is not None
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._cancel(ClientDisconnect)

    def _depart(self) -> None:
        if self.body_is_read:
            self._cancel(ClientDisconnect)

    def _cancel(self, reason: type[SlowRequestError] | type[ClientDisconnect]) -> None:
        self._reason = reason
        if self._task is not None:
            self._task.cancel()


def service_of(request: Request) -> Service:
    """Return what serves the request."""
    service: Service = request.scope["state"]["service"]
    return service


def exchange_of(request: Request) -> Exchange | None:
    """Return what our own server can do for the request; None under another server."""
    exchange: Exchange | None = request.scope.get("extensions", {}).get(EXCHANGE)
    return exchange


def allowed_methods(request: Request) -> list[str]:
    """List the methods that the routes at a request's path answer, but those that refuse."""
    methods: set[str] = set()
    for route in request.app.state.routes:
        if hasattr(route, "methods") and not route.path.endswith(":path}"):
            match, _ = route.matches(request.scope)
            if match is not Match.NONE:
                methods |= route.methods or set()
    return sorted(methods)


async def read_body(request: Request) -> bytes:
    """Read the body within the server's limits of size and time.

    Raises:
        PayloadTooLargeError: It is too large, told before it is read where its length is known.
        ClientDisconnect: The client went away in the middle.
    """
    settings = service_of(request).settings
    length = header(request, b"content-length") or ""
    if length.isdigit() and int(length) > settings.max_body_bytes:
        raise PayloadTooLargeError(settings.max_body_bytes)
    watch: Watch = request.scope["state"]["watch"]
    exchange = exchange_of(request)
    if exchange is not None and exchange.has_whole_body:
        body = exchange.take_body()
        if len(body) > settings.max_body_bytes:
            raise PayloadTooLargeError(settings.max_body_bytes)
    else:
        body = await _receive_body(request, settings.max_body_bytes)
    watch.body_is_read = True
    if exchange is not None:
        exchange.listen()
    return body


async def _receive_body(request: Request, max_bytes: int) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            raise PayloadTooLargeError(max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_json(request: Request, model: type[ModelT]) -> ModelT:
    """Read a JSON body into a request model; an empty body is an empty object.

    Raises:
        MalformedRequestError: The body is no JSON.
        UnsupportedMediaTypeError: The body says that it is something else.
        InvalidRequestError: A field breaks its rule.
    """
    media_type = media_type_of(request)
    if media_type not in JSON_TYPES and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError(media_type, ["application/json"])
    return validate_json(await read_body(request) or b"{}", model)


def validate_json(body: bytes, model: type[ModelT]) -> ModelT:
    """Parse JSON into a request model; exceptions as of `read_json`."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _as_problem(error) from error


def validate_query(request: Request, model: type[ModelT]) -> ModelT:
    """Read query parameters into a request model; numbers come as text here.

    Raises:
        InvalidRequestError: A parameter breaks its rule or is given twice.
    """
    items = request.query_params.multi_items()
    fields = dict(items)
    if len(fields) < len(items):
        raise InvalidRequestError("a query parameter is given twice; give each once")
    return validate_fields(fields, model)


def refuse_query(request: Request) -> None:
    """Refuse query parameters where the body has all fields, rather than pass over them.

    Raises:
        InvalidRequestError: There is one.
    """
    if request.scope["query_string"]:
        raise InvalidRequestError(
            f"?{next(iter(request.query_params), '')}: the query is not read here; give all "
            "fields in the body"
        )


def validate_fields(fields: dict[str, Any], model: type[ModelT]) -> ModelT:
    """Read text fields into a request model; exceptions as of `validate_query`."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _as_problem(error) from error


def header(request: Request, name: bytes) -> str | None:
    """Return the first header of a name in lower case; a third of the price of Starlette's way."""
    for candidate, value in request.scope["headers"]:
        if candidate == name:
            return bytes(value).decode("latin-1")
    return None


def media_type_of(request: Request) -> str:
    """Return the body's media type in lower case, without parameters."""
    return (header(request, b"content-type") or "").partition(";")[0].strip().lower()


def timeout_s(request: Request, asked_ms: float | None) -> float:
    """Return the deadline of a request in seconds: its own, bounded by the server's longest."""
    settings = service_of(request).settings
    wanted = settings.default_timeout_s if asked_ms is None else asked_ms / 1000
    return min(wanted, settings.max_timeout_s)


@asynccontextmanager
async def deadline(limit_s: float) -> AsyncIterator[None]:
    """Bound several waits together.

    Args:
        limit_s: Seconds for all of them.

    Raises:
        DeadlineExceededError: They took longer.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceededError(limit_s) from error


def json_bytes(content: Any) -> bytes:
    """Encode an answer as JSON, which has no infinity: what is not finite becomes null."""
    return to_json(content, inf_nan_mode="null")


class Answer(Response):
    """A good answer: Starlette's, but for the work that its constructor does for odd cases.

    Args:
        content: The body.
        media_type: Its type.
        headers: Further headers, their names in lower case; no value has a line break.
    """

    def __init__(self, content: bytes, media_type: str, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.body: bytes = content
        self.background = None
        self._fields = {
            "content-length": str(len(content)),
            "content-type": media_type,
            **headers,
        }
        lines = "".join([f"{name}: {value}\r\n" for name, value in self._fields.items()])
        if lines.count("\n") > len(self._fields):
            raise ValueError(f"a header has a line break: {self._fields}")
        self._lines = lines.encode("latin-1")

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        """The headers as ASGI sends them."""
        return [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in self._fields.items()
        ]

    def lines(self, request_id: str) -> bytes:
        """Return the headers as HTTP/1.1 sends them, a line each."""
        return b"%bx-request-id: %b\r\n" % (self._lines, request_id.encode())


def server_timing(*outcomes: Outcome[Any]) -> str:
    """Tell where the time went: milliseconds in the queue and in runs, rows of the batch."""
    queue_ms = infer_ms = 0.0
    rows = 0
    for outcome in outcomes:
        queue_ms += 1000 * outcome.queue_s
        infer_ms += 1000 * outcome.run_s
        rows = max(rows, outcome.batch_rows)
    return f'queue;dur={queue_ms:.2f}, infer;dur={infer_ms:.2f}, batch;desc="{rows} rows"'


def _binder(endpoint: Handler) -> Callable[[Request], Awaitable[dict[str, Any]]]:
    _, *parameters = inspect.signature(endpoint, eval_str=True).parameters.values()
    query, body, path = None, None, []
    for parameter in parameters:
        annotation = parameter.annotation
        if get_origin(annotation) is Annotated:
            query = (parameter.name, get_args(annotation)[0])
        elif issubclass(annotation, BaseModel):
            body = (parameter.name, annotation)
        else:
            path.append(parameter.name)

    async def bind(request: Request) -> dict[str, Any]:
        values: dict[str, Any] = {name: request.path_params[name] for name in path}
        if query is not None:
            values[query[0]] = validate_query(request, query[1])
        if body is not None:
            refuse_query(request)
            values[body[0]] = await read_json(request, body[1])
        return values

    return bind


def _as_problem(error: ValidationError) -> InvalidRequestError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return MalformedRequestError(f"the body is no JSON: {problems[0]['msg']}")
    fields = [
        ("/" + "/".join(str(part) for part in problem["loc"]), problem["msg"])
        for problem in problems
    ]
    listed = "; ".join(f"{pointer}: {text}" for pointer, text in fields[:3])
    more = f"; and {len(fields) - 3} more" if len(fields) > 3 else ""
    return InvalidRequestError(f"{listed}{more}", fields[:20])
