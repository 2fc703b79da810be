"""POST /log_prob: how likely images are."""

from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.anomaly import AnomalyScore, code_bits
from service.batcher import Rows
from service.errors import InvalidRequestError, UnsupportedOperationError
from service.images import encode_npy
from service.model import Model
from service.routes.answers import LogProbAnswer
from service.routes.documentation import MODEL_HEADERS, answers
from service.routes.endpoint import (
    Endpoint,
    deadline,
    json_bytes,
    server_timing,
    service_of,
    timeout_s,
)
from service.routes.estimators import ScoreOptions, check_rows, check_samples, estimator
from service.routes.labels import class_numbers, require_classes
from service.routes.negotiation import MEDIA_TYPES, choose_format
from service.routes.uploads import (
    ImageList,
    decode_upload,
    document_body,
    read_upload,
)
from service.scoring import per_dim_maps, result_of
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["score"])

FORMATS = ("json", "npy")

# Of each image how unusual it is, and its p-value.
Unusual = tuple[list[float], list[float]]


class LogProbOptions(ScoreOptions):
    """Which model scores, and how."""

    per_dim: bool = Field(default=False, description="The surprise of every pixel, in nats.")


class LogProbRequest(LogProbOptions, ImageList):
    """Which model scores which images, and how."""


@router.post(
    "/log_prob",
    response_class=Response,
    responses=answers(
        LogProbAnswer,
        *(400, 404, 406, 408, 413, 415, 422, 503, 504),
        formats=FORMATS[1:],
        headers=MODEL_HEADERS,
    ),
    openapi_extra=document_body(LogProbOptions, LogProbRequest),
    summary="Score images",
)
async def create_log_prob(request: Request) -> Response:
    """Tell the log-likelihood of images in nats: JSON, multipart files or a .npy array."""
    service = service_of(request)
    upload = await read_upload(request, LogProbOptions, LogProbRequest, "log_prob", "log_prob")
    model, options = upload.model, upload.options
    answer_format = choose_format(options.format, request.headers.get("accept"), FORMATS, "json")
    _check_options(service, model, options)
    num_samples = options.num_samples

    def finish(outputs: Rows) -> bytes:
        if answer_format == "npy":
            return _npy_answer(outputs, options)
        unusual = _unusual(anomaly, outputs["log_prob"], complexity)
        return _json_answer(model, options, outputs, unusual)

    limit_s = timeout_s(request, options.timeout_ms)
    anomaly = _anomaly_score(model, options) if answer_format == "json" else None
    complexity = None
    async with deadline(limit_s):
        images = await decode_upload(request, upload)
        if anomaly is not None:
            complexity = await service.workers.run(lambda: code_bits(images))
        if model.is_bound:
            check_rows(model, len(images), num_samples)
        labels = class_numbers(options.labels, model, len(images)) if options.labels else None
        outcome = await model.log_prob(
            images,
            finish,
            labels=labels,
            num_samples=num_samples,
            seed=options.seed,
            with_conditionals=options.per_dim,
            timeout_s=limit_s,
        )
    headers = {"X-Model": model.reference, "Server-Timing": server_timing(outcome)}
    return Response(outcome.value, headers=headers, media_type=MEDIA_TYPES[answer_format])


def _check_options(service: Service, model: Model, options: LogProbOptions) -> None:
    newest = service.catalog.newest()
    if options.per_dim and not model.has_conditionals:
        raise UnsupportedOperationError(
            f"{model.reference} has no conditionals to show per pixel",
            [other.manifest.name for other in newest if other.has_conditionals],
        )
    check_samples(service, model, options.num_importance_samples)
    if options.labels is not None:
        require_classes(service, model)
    elif model.manifest.labels:
        raise InvalidRequestError.of_field(
            "labels", f"{model.reference} scores p(x given label): say of which class"
        )


def _npy_answer(outputs: Rows, options: LogProbOptions) -> bytes:
    if options.per_dim:
        return encode_npy(per_dim_maps(outputs["conditional_log_prob"]))
    return encode_npy(outputs["log_prob"].astype(np.float64))


def _anomaly_score(model: Model, options: LogProbOptions) -> AnomalyScore | None:
    # Scores of a bound are calibrated for one sample: more of them give another distribution.
    if options.num_samples > 1:
        return None
    if model.manifest.image.values != "binary":
        return model.anomaly.get("none")
    return model.anomaly.get(options.binarize or "threshold")


def _unusual(
    anomaly: AnomalyScore | None, log_prob: NDArray[Any], complexity: NDArray[Any] | None
) -> Unusual | None:
    if anomaly is None or complexity is None:
        return None
    scores = anomaly.scores(log_prob.astype(np.float64), complexity)
    return scores.tolist(), anomaly.p_values(scores).tolist()


def _json_answer(
    model: Model, options: LogProbOptions, outputs: Rows, unusual: Unusual | None
) -> bytes:
    manifest = model.manifest
    num_samples = options.num_samples
    results = [
        result_of(index, float(log_prob), manifest.image)
        for index, log_prob in enumerate(outputs["log_prob"])
    ]
    if model.is_bound and num_samples > 1:
        for result, std_error in zip(results, outputs["std_error"].tolist(), strict=True):
            result["std_error"] = std_error
    if unusual is not None:
        for result, score, p_value in zip(results, *unusual, strict=True):
            result["anomaly_score"], result["p_value"] = score, p_value
    if options.per_dim:
        for result, surprise in zip(
            results, per_dim_maps(outputs["conditional_log_prob"]), strict=True
        ):
            result["per_dim"] = surprise.tolist()
    is_binary = manifest.image.values == "binary"
    return json_bytes(
        {
            "model": manifest.name,
            "version": manifest.version,
            "density": manifest.density,
            **estimator(model, num_samples),
            "num_dims": manifest.image.num_dims,
            "preprocess": {"binarize": (options.binarize or "threshold") if is_binary else None},
            "results": results,
        }
    )
