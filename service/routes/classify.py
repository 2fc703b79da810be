"""POST /classify: which class an image belongs to, by Bayes' rule."""

from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidRequestError
from service.images import encode_npy
from service.model import Model
from service.routes.answers import ClassifyAnswer
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
from service.routes.negotiation import MEDIA_TYPES, choose_format
from service.routes.uploads import (
    ImageList,
    decode_upload,
    document_body,
    read_upload,
)
from service.scoring import class_probs

router = APIRouter(route_class=Endpoint, tags=["score"])

FORMATS = ("json", "npy")


class ClassifyRequest(ScoreOptions, ImageList):
    """Which class-conditional model classifies which images."""


@router.post(
    "/classify",
    response_class=Response,
    responses=answers(
        ClassifyAnswer,
        *(400, 404, 406, 408, 413, 415, 422, 503, 504),
        formats=FORMATS[1:],
        headers=MODEL_HEADERS,
    ),
    openapi_extra=document_body(ScoreOptions, ClassifyRequest),
    summary="Classify images",
)
async def create_classification(request: Request) -> Response:
    """Tell p(label given x) by Bayes' rule from log p(x given label), all labels equally likely."""
    service = service_of(request)
    upload = await read_upload(request, ScoreOptions, ClassifyRequest, "classify", "log_prob")
    model, options = upload.model, upload.options
    answer_format = choose_format(options.format, request.headers.get("accept"), FORMATS, "json")
    check_samples(service, model, options.num_importance_samples)
    if options.labels is not None:
        raise InvalidRequestError.of_field("labels", "are what is asked here: leave them out")

    def finish(log_prob: NDArray[np.floating]) -> bytes:
        probs = class_probs(log_prob)
        if answer_format == "npy":
            return encode_npy(probs)
        return _json_answer(model, options, log_prob, probs)

    limit_s = timeout_s(request, options.timeout_ms)
    async with deadline(limit_s):
        images = await decode_upload(request, upload)
        check_rows(model, len(images) * len(model.manifest.labels), options.num_samples)
        outcome = await model.log_prob_of_classes(
            images, finish, num_samples=options.num_samples, seed=options.seed, timeout_s=limit_s
        )
    headers = {"X-Model": model.reference, "Server-Timing": server_timing(outcome)}
    return Response(outcome.value, headers=headers, media_type=MEDIA_TYPES[answer_format])


def _json_answer(
    model: Model,
    options: ScoreOptions,
    log_prob: NDArray[np.floating],
    probs: NDArray[np.float64],
) -> bytes:
    manifest = model.manifest
    results: list[dict[str, Any]] = []
    for index, (scores, shares) in enumerate(zip(log_prob, probs, strict=True)):
        is_ok = bool(np.isfinite(shares).all())
        status = "non_finite" if np.isnan(scores).any() else "ok" if is_ok else "neg_inf"
        results.append(
            {
                "index": index,
                "label": manifest.labels[int(scores.argmax())] if is_ok else None,
                "probs": dict(zip(manifest.labels, shares.tolist(), strict=True)),
                "log_prob": dict(zip(manifest.labels, scores.tolist(), strict=True)),
                "status": status,
            }
        )
    return json_bytes(
        {
            "model": manifest.name,
            "version": manifest.version,
            "density": manifest.density,
            **estimator(model, options.num_samples),
            "results": results,
        }
    )
