"""POST /v2/models/{name}/infer: the raw tensors of a graph, by the Open Inference Protocol."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.batcher import Rows
from service.errors import UnsupportedMediaTypeError
from service.routes.answers_v2 import InferAnswer
from service.routes.documentation import BINARY, MODEL_HEADERS, answers, reference
from service.routes.endpoint import (
    JSON_TYPES,
    Answer,
    Endpoint,
    header,
    media_type_of,
    read_body,
    server_timing,
    service_of,
    timeout_s,
)
from service.routes.models_v2 import find_graph, name_of
from service.routes.negotiation import MEDIA_TYPES
from service.routes.tensors_v2 import (
    HEADER_LENGTH,
    InferRequest,
    choose_outputs,
    decompress,
    encode,
    parse,
)
from service.tensors import check_inputs, inputs_of, outputs_of, run_tensors

router = APIRouter(route_class=Endpoint, tags=["open inference protocol"])

JSON, BYTES = MEDIA_TYPES["json"], MEDIA_TYPES["bytes"]

# Larger bodies are read in a thread, beside the event loop.
_MAX_QUICK_BYTES = 65_536

_ANSWERS = answers(
    InferAnswer,
    *(400, 404, 408, 413, 415, 422, 503, 504),
    formats=("bytes",),
    headers=MODEL_HEADERS,
)
_BODY = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "schema": {"type": "integer", "minimum": 1},
            "description": "Bytes of JSON that the body begins with; without it, all are.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": reference(InferRequest)},
            BYTES: {"schema": BINARY},
        },
    },
}


@router.post(
    "/v2/models/{name}/infer",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=_BODY,
    summary="Run a graph",
)
async def infer(request: Request, name: str) -> Response:
    """Run the newest version of a graph, named `<model>.<graph>`, on tensors."""
    return await _infer(request, name, None)


@router.post(
    "/v2/models/{name}/versions/{version}/infer",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=_BODY,
    summary="Run a graph of a version",
)
async def infer_version(request: Request, name: str, version: str) -> Response:
    """Run one version of a graph, named `<model>.<graph>`, on tensors."""
    return await _infer(request, name, version)


async def _infer(request: Request, name: str, version: str | None) -> Response:
    settings = service_of(request).settings
    model, role = find_graph(service_of(request), name, version)
    media_type = media_type_of(request)
    if media_type not in {*JSON_TYPES, BYTES}:
        raise UnsupportedMediaTypeError(media_type, [JSON, BYTES])
    model.graphs[role].batcher.admit(num_rows=1)  # a full queue need not even read the body
    body = await read_body(request)
    encoding = (header(request, b"content-encoding") or "").strip().lower()
    header_length = header(request, HEADER_LENGTH.encode())

    def read() -> tuple[InferRequest, Rows, dict[str, bool]]:
        content = decompress(body, encoding, settings.max_body_bytes)
        asked, arrays = parse(content, header_length, inputs_of(model, role))
        check_inputs(model, role, arrays, settings.max_rows, settings.max_importance_samples)
        return asked, arrays, choose_outputs(asked, outputs_of(model, role))

    is_quick = not encoding and len(body) <= _MAX_QUICK_BYTES
    asked, arrays, chosen = read() if is_quick else await asyncio.to_thread(read)
    head = {"model_name": name_of(model, role), "model_version": str(model.manifest.version)}
    if asked.id is not None:
        head["id"] = asked.id
    timeout_us = asked.parameters.timeout
    outcome = await run_tensors(
        model,
        role,
        arrays,
        lambda outputs: encode(head, outputs, chosen),
        timeout_s=timeout_s(request, timeout_us / 1000 if timeout_us else None),
    )
    content, num_json_bytes = outcome.value
    headers = {"x-model": model.reference, "server-timing": server_timing(outcome)}
    if any(chosen.values()):
        headers[HEADER_LENGTH] = str(num_json_bytes)
    return Answer(content, BYTES if any(chosen.values()) else JSON, headers)
