"""What Schemathesis is told beside the document; read by `schemathesis run`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schemathesis
from pydantic import BaseModel, TypeAdapter, ValidationError
from schemathesis import Case, CheckContext, GenerationMode, HookContext, Response

from service.app import create_app
from service.routes.classify import ClassifyRequest
from service.routes.complete import CompleteRequest
from service.routes.encode import EncodeRequest, ReconstructRequest
from service.routes.interpolate import InterpolateRequest
from service.routes.log_prob import LogProbRequest
from service.routes.openai_images import ImageGenerationRequest
from service.routes.sample import SampleRequest
from service.routes.server_v2 import IndexRequest
from service.routes.tensors_v2 import InferRequest
from service.settings import Settings

BODIES: dict[str, type[BaseModel]] = {
    "create_sample": SampleRequest,
    "create_completion": CompleteRequest,
    "create_interpolation": InterpolateRequest,
    "create_log_prob": LogProbRequest,
    "create_classification": ClassifyRequest,
    "create_latents": EncodeRequest,
    "create_reconstructions": ReconstructRequest,
    "generate_images": ImageGenerationRequest,
    "list_graphs": IndexRequest,
    "infer": InferRequest,
    "infer_version": InferRequest,
}

ANSWERS: dict[str, TypeAdapter[Any]] = {
    route.name: TypeAdapter(route.responses[200]["model"])
    for route in create_app(Settings()).state.routes
    if "model" in getattr(route, "responses", {}).get(200, {})
}

SHORT_MS = 5000

# Where a line is written for each answer, so that the test knows what was reached.
ANSWERED = Path(os.environ["ANSWERED"])


def _name(case: Case) -> str:
    name: str = case.operation.definition.raw["operationId"]
    return name


def _is_negative(case: Case, location: str) -> bool:
    return case.meta is not None and any(
        where.value == location and component.mode.is_negative
        for where, component in case.meta.components.items()
    )


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Send fields in the query or in the body, never in both.

    OpenAPI cannot say that the query of an upload goes with one media type of its body.
    """
    is_upload = "application/x-npy" in case.operation.definition.raw.get("requestBody", {}).get(
        "content", {}
    )
    if case.headers and not _is_negative(case, "header"):
        # How much of the body is JSON: any other number than the right one is an error.
        case.headers.pop("Inference-Header-Content-Length", None)
    if is_upload and case.media_type != "application/x-npy" and not _is_negative(case, "query"):
        case.query = {}


@schemathesis.hook
def after_call(context: HookContext, case: Case, response: Response) -> None:
    """Note what was reached."""
    with ANSWERED.open("a") as file:
        file.write(f"{response.status_code} {_name(case)}\n")


@schemathesis.check
def answers_hold_nothing_else(ctx: CheckContext, response: Response, case: Case) -> None:
    """What the document does not name is in no answer; clients may still expect more one day."""
    is_json = response.headers.get("content-type") == ["application/json"]
    if response.status_code == 200 and is_json:
        ANSWERS[_name(case)].validate_json(response.content, strict=True, extra="forbid")


@schemathesis.check
def schema_says_what_validation_does(ctx: CheckContext, response: Response, case: Case) -> None:
    """A body that the document allows is one that the request model takes."""
    model = BODIES.get(_name(case))
    is_positive = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    if model is None or not is_positive or response.status_code != 422:
        return
    if case.media_type != "application/json" or not isinstance(case.body, Mapping):
        return
    try:
        model.model_validate_json(response.request.body or b"{}", strict=True)
    except ValidationError as error:
        # To a schema 7.0 is an integer. Validation refuses it on purpose: a client that sends its
        # integers as floats has lost the last digits of a large seed without noticing.
        refused = [problem for problem in error.errors() if problem["type"] != "int_type"]
        assert not refused, f"The document allows what validation refuses: {refused}"


@schemathesis.check
def deadlines_are_missed_only_if_short(ctx: CheckContext, response: Response, case: Case) -> None:
    """A 504 answers only those who asked for it."""
    if response.status_code != 504:
        return
    body = case.body if isinstance(case.body, Mapping) else {}
    asked_ms = body.get("timeout_ms") or (case.query or {}).get("timeout_ms")
    timeout_us = (body.get("parameters") or {}).get("timeout")
    limit_ms = int(asked_ms) if asked_ms else (timeout_us or 0) / 1000
    assert 0 < limit_ms < SHORT_MS, f"504 with a deadline of {limit_ms} ms"
