"""What the OpenAPI document says of answers."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.routes.negotiation import MEDIA_TYPES

BINARY = {"type": "string", "format": "binary"}
PROBLEM = "application/problem+json"


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


PICTURES = {"application/json": {"schema": {"type": "object"}}} | media(
    "png", "webp", "jpeg", "npy"
)
ANIMATIONS = {"application/json": {"schema": {"type": "object"}}} | media(
    "png", "gif", "webp", "apng", "npy"
)

_DESCRIPTIONS = {
    304: "The client's copy is still right.",
    400: "The body cannot be read.",
    404: "No such model or version.",
    406: "No such format.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "Unsupported media type.",
    422: "A field breaks its rule, or the model cannot do this.",
    500: "Our fault; the log has the cause under the request id.",
    503: "Overloaded, loading or shutting down; see Retry-After.",
    504: "The deadline passed.",
}


def answers(content: dict[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of a route.

    Args:
        content: Media types of the 200 answer.
        statuses: What else it may answer.
    """
    described: dict[int | str, dict[str, Any]] = {200: {"content": content}}
    for status in (*statuses, 500):
        described[status] = {"description": _DESCRIPTIONS[status]}
        if status >= 400:
            schema = {"$ref": "#/components/schemas/Problem"}
            described[status]["content"] = {PROBLEM: {"schema": schema}}
    return described
