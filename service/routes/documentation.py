"""What the OpenAPI document says of answers."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.routes.negotiation import MEDIA_TYPES

BINARY = {"type": "string", "format": "binary"}
PROBLEM = "application/problem+json"

_TEMPLATE = "#/components/schemas/{model}"


class FieldProblem(BaseModel):
    """One invalid field."""

    pointer: str = Field(examples=["/n"])
    detail: str = Field(examples=["Input should be greater than or equal to 1"])


class OpenAIError(BaseModel):
    """An error as OpenAI's clients show it."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="The field to blame.")
    code: str = Field(description="The problem's type.")


class Problem(BaseModel):
    """An error, by RFC 9457."""

    type: str = Field(description="A slug of the closed list.", examples=["invalid-request"])
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do.")
    request_id: str
    error: str | OpenAIError = Field(
        description="The detail again, for Open Inference Protocol clients; under /v1 an object, "
        "for OpenAI's."
    )
    errors: list[FieldProblem] | None = None
    alternatives: list[str] | None = Field(
        default=None, description="Models that can do what this one cannot."
    )


def media(*formats: str) -> dict[str, Any]:
    """Describe binary answers of some formats."""
    return {MEDIA_TYPES[name]: {"schema": BINARY} for name in formats}


_DESCRIPTIONS = {
    304: "The client's copy is still right.",
    400: "The body cannot be read.",
    401: "An API key is needed.",
    403: "The API key does not allow this.",
    404: "No such model or version.",
    406: "No such format.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "Unsupported media type.",
    422: "A field breaks its rule, or the model cannot do this.",
    429: "The quota of the API key is used up; see Retry-After.",
    500: "Our fault; the log has the cause under the request id.",
    503: "Overloaded, loading or shutting down; see Retry-After.",
    504: "The deadline passed.",
}

_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {
        "description": "The request's, if it had one; else a new one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "X-Model": {
        "description": "What answered, as name@version.",
        "schema": {"type": "string", "pattern": "^[a-z0-9-]+@[0-9]+$"},
    },
    "Server-Timing": {
        "description": "Milliseconds in the queue and in runs, rows of the largest batch.",
        "schema": {"type": "string"},
    },
    "X-Seed": {
        "description": "What the images were drawn from; not where latents were given.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,20}$"},
    },
    "ETag": {
        "description": "Name of the answer for If-None-Match; none where it is random.",
        "schema": {"type": "string"},
    },
    "Cache-Control": {
        "description": "How long the answer stays right: for ever, given seed and version.",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {
        "description": "How to send a key.",
        "schema": {"type": "string", "pattern": "^Bearer "},
    },
    "Retry-After": {
        "description": "Whole seconds until it is worth while to try again.",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
    },
}

# Headers of refusals.
_REFUSAL_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

# Not in every such answer; all others are.
_OPTIONAL_HEADERS = {"X-Seed", "ETag"}

MODEL_HEADERS = ("X-Model", "Server-Timing")
CACHE_HEADERS = ("ETag", "Cache-Control")


def answers(
    content: Any,
    *statuses: int,
    formats: Sequence[str] = (),
    headers: Sequence[str] = (),
) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of a route.

    Args:
        content: Type of the JSON in the 200 answer; or, of an answer that is never JSON, its media
            types.
        statuses: What else it may answer.
        formats: In which other formats the 200 answer comes.
        headers: Of the 200 answer, and of 304 those that both have.
    """
    is_json = not isinstance(content, dict)
    described: dict[int | str, dict[str, Any]] = {
        200: {
            "content": media(*formats) if is_json else content | media(*formats),
            "headers": _headers(*headers),
        }
    }
    if is_json:
        described[200]["model"] = content
    for status in (*statuses, 500):
        described[status] = refusal(status) if status >= 400 else _described(status, CACHE_HEADERS)
    return described


def refusal(status: int) -> dict[str, Any]:
    """Describe the answer that refuses a request with some status."""
    content = {PROBLEM: {"schema": reference(Problem)}}
    return _described(status, _REFUSAL_HEADERS.get(status, ())) | {"content": content}


def _described(status: int, headers: Sequence[str]) -> dict[str, Any]:
    return {"description": _DESCRIPTIONS[status], "headers": _headers(*headers)}


def _headers(*names: str) -> dict[str, Any]:
    return {
        name: _HEADERS[name] | {"required": name not in _OPTIONAL_HEADERS}
        for name in ("X-Request-ID", *names)
    }


def without_null(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return schemas of fields for a query or a form, where null cannot be said.

    Args:
        schemas: By the names of the fields.
    """
    return {name: _without_null(schema) for name, schema in schemas.items()}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    ways: list[dict[str, Any]] = [way for way in schema.get("anyOf", ()) if way != {"type": "null"}]
    rest = {
        key: value
        for key, value in schema.items()
        if key != "anyOf" and not (key == "default" and value is None)
    }
    if len(ways) == 1:
        return ways[0] | rest
    return rest | {"anyOf": ways} if ways else rest


_referenced: dict[str, type[BaseModel]] = {}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Refer to a model that FastAPI does not see in any signature."""
    _referenced[model.__name__] = model
    return {"$ref": _TEMPLATE.format(model=model.__name__)}


def referenced_schemas() -> dict[str, Any]:
    """Return the schemas of all models that were referred to, and of their parts, by name."""
    schemas: dict[str, Any] = {}
    for name, model in _referenced.items():
        schema = model.model_json_schema(ref_template=_TEMPLATE)
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    return schemas
