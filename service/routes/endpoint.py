"""Requests in, answers out: bodies with limits, validation, departed clients."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar, get_args, get_origin

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.batcher import Outcome
from service.errors import (
    InvalidRequestError,
    MalformedRequestError,
    PayloadTooLargeError,
    SlowRequestError,
    UnsupportedMediaTypeError,
)
from service.service import Service

ModelT = TypeVar("ModelT", bound=BaseModel)
Handler = Callable[..., Awaitable[Response]]

# What proxies log for a client that did not wait; nobody receives it.
CLIENT_CLOSED_REQUEST = 499

# Most answers are there sooner; only slower ones pay for a watch over their client.
_WATCH_AFTER_S = 0.02

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
            departure = request.state.departure = Departure(request)
            try:
                return await endpoint(request, **await bind(request))
            except asyncio.CancelledError:
                if not departure.happened:
                    raise
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            finally:
                departure.disarm()

        return handle


class Departure:
    """Cancels the work for a request when its client has gone.

    Args:
        request: The request; its body must have been read before `arm`.
    """

    def __init__(self, request: Request) -> None:
        self.happened = False
        self._request = request
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    def arm(self) -> None:
        """Begin to watch after a short while."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_WATCH_AFTER_S, self._start)

    def disarm(self) -> None:
        """End the watch."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()

    def _start(self) -> None:
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.happened = True
            self._task.cancel()


def service_of(request: Request) -> Service:
    """Return what serves the request."""
    service: Service = request.app.state.service
    return service


async def read_body(request: Request) -> bytes:
    """Read the body within the server's limits of size and time.

    Raises:
        PayloadTooLargeError: It is too large, told before it is read where its length is known.
        SlowRequestError: It came too slowly.
    """
    settings = service_of(request).settings
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_body_bytes:
        raise PayloadTooLargeError(settings.max_body_bytes)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > settings.max_body_bytes:
                    raise PayloadTooLargeError(settings.max_body_bytes)
                chunks.append(chunk)
    except TimeoutError as error:
        raise SlowRequestError(settings.body_timeout_s) from error
    request.state.departure.arm()
    return b"".join(chunks)


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


def validate_fields(fields: dict[str, Any], model: type[ModelT]) -> ModelT:
    """Read text fields into a request model; exceptions as of `validate_query`."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _as_problem(error) from error


def media_type_of(request: Request) -> str:
    """Return the body's media type in lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def timeout_s(request: Request, asked_ms: int | None) -> float:
    """Return the deadline of a request in seconds: its own, bounded by the server's longest."""
    settings = service_of(request).settings
    wanted = settings.default_timeout_s if asked_ms is None else asked_ms / 1000
    return min(wanted, settings.max_timeout_s)


def json_bytes(content: Any) -> bytes:
    """Encode an answer as JSON; bytes become base64."""
    return to_json(content, bytes_mode="base64", inf_nan_mode="constants")


def server_timing(*outcomes: Outcome[Any]) -> str:
    """Tell where the time went: milliseconds in the queue and in runs, rows of the batch."""
    queue_ms = 1000 * sum(outcome.queue_s for outcome in outcomes)
    infer_ms = 1000 * sum(outcome.run_s for outcome in outcomes)
    rows = max(outcome.batch_rows for outcome in outcomes)
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
            values[body[0]] = await read_json(request, body[1])
        if request.method in {"GET", "HEAD"}:
            request.state.departure.arm()
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
