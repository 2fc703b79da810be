"""POST /encode and POST /reconstruct: the latents of images, and what they decode to."""

from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.batcher import Rows
from service.errors import InvalidRequestError
from service.graph import LABEL
from service.images import encode_base64, encode_npy, encode_picture, enlarge
from service.model import Model
from service.routes.answers import EncodeAnswer, ReconstructAnswer
from service.routes.documentation import MODEL_HEADERS, answers
from service.routes.endpoint import (
    Endpoint,
    deadline,
    json_bytes,
    server_timing,
    service_of,
    timeout_s,
)
from service.routes.fields import Scale
from service.routes.labels import class_numbers, require_classes
from service.routes.negotiation import MEDIA_TYPES, choose_format
from service.routes.sheets import FORMATS, Columns, SheetFormat, check_sheet, encode_sheet
from service.routes.uploads import (
    ImageList,
    ImageOptions,
    Upload,
    decode_upload,
    document_body,
    read_upload,
)
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["encode"])

ENCODE_FORMATS = ("json", "npy")
_STATUSES = (400, 404, 406, 408, 413, 415, 422, 503, 504)


class EncodeRequest(ImageOptions, ImageList):
    """Which model encodes which images."""


class ReconstructOptions(ImageOptions):
    """Which model reconstructs, and how to show it."""

    format: SheetFormat | None = Field(
        default=None, description="Of the answer; left out, `Accept` decides."
    )
    columns: Columns = None
    scale: Scale = 1


class ReconstructRequest(ReconstructOptions, ImageList):
    """Which model reconstructs which images, and how to show them."""


@router.post(
    "/encode",
    response_class=Response,
    responses=answers(EncodeAnswer, *_STATUSES, formats=ENCODE_FORMATS[1:], headers=MODEL_HEADERS),
    openapi_extra=document_body(ImageOptions, EncodeRequest),
    summary="Find the latents of images",
)
async def create_latents(request: Request) -> Response:
    """Tell mean and log-variance of the posterior over latents, given each image."""
    service = service_of(request)
    upload = await read_upload(request, ImageOptions, EncodeRequest, "encode", "encode")
    model, options = upload.model, upload.options
    accept = request.headers.get("accept")
    answer_format = choose_format(options.format, accept, ENCODE_FORMATS, "json")
    _check(service, upload)

    def finish(outputs: Rows) -> bytes:
        if answer_format == "npy":
            return encode_npy(np.stack([outputs["mean"], outputs["log_var"]], axis=1))
        return _json_latents(model, outputs)

    limit_s = timeout_s(request, options.timeout_ms)
    async with deadline(limit_s):
        images = await decode_upload(request, upload)
        labels = _labels(upload, len(images))
        outcome = await model.encode(images, finish, labels=labels, timeout_s=limit_s)
    headers = {"X-Model": model.reference, "Server-Timing": server_timing(outcome)}
    return Response(outcome.value, headers=headers, media_type=MEDIA_TYPES[answer_format])


@router.post(
    "/reconstruct",
    response_class=Response,
    responses=answers(ReconstructAnswer, *_STATUSES, formats=FORMATS[1:], headers=MODEL_HEADERS),
    openapi_extra=document_body(ReconstructOptions, ReconstructRequest),
    summary="Encode images and decode them again",
)
async def create_reconstructions(request: Request) -> Response:
    """Show what the model decodes from the posterior's mean of each image."""
    service = service_of(request)
    upload = await read_upload(
        request, ReconstructOptions, ReconstructRequest, "reconstruct", "encode"
    )
    model, options = upload.model, upload.options
    answer_format = choose_format(options.format, request.headers.get("accept"), FORMATS, "json")
    _check(service, upload)

    def finish(made: Rows) -> bytes:
        pixels = made["pixels"]
        if answer_format == "json":
            return _json_images(model, pixels, options.scale)
        return encode_sheet(pixels, options.columns, options.scale, answer_format)

    limit_s = timeout_s(request, options.timeout_ms)
    async with deadline(limit_s):
        images = await decode_upload(request, upload)
        image = model.manifest.image
        check_sheet(image, len(images), options.columns, options.scale, answer_format)
        labels = _labels(upload, len(images))
        encoded = await model.encode(
            images, lambda outputs: outputs["mean"], labels=labels, timeout_s=limit_s
        )
        rows: dict[str, NDArray[Any]] = {"noise": encoded.value}
        if labels is not None:
            rows[LABEL] = labels
        decoded = await model.generate(rows, finish, wanted=("pixels",), timeout_s=limit_s)
    headers = {"X-Model": model.reference, "Server-Timing": server_timing(encoded, decoded)}
    return Response(decoded.value, headers=headers, media_type=MEDIA_TYPES[answer_format])


def _check(service: Service, upload: Upload[Any]) -> None:
    if upload.options.labels is not None:
        require_classes(service, upload.model)
    elif upload.model.manifest.labels:
        raise InvalidRequestError.of_field(
            "labels", f"{upload.model.reference} encodes an image given its class: say which"
        )


def _labels(upload: Upload[Any], num_images: int) -> NDArray[np.int64] | None:
    labels = upload.options.labels
    return None if labels is None else class_numbers(labels, upload.model, num_images)


def _json_latents(model: Model, outputs: Rows) -> bytes:
    pairs = zip(outputs["mean"].tolist(), outputs["log_var"].tolist(), strict=True)
    latents = [
        {"index": index, "mean": mean, "log_var": log_var}
        for index, (mean, log_var) in enumerate(pairs)
    ]
    manifest = model.manifest
    return json_bytes({"model": manifest.name, "version": manifest.version, "latents": latents})


def _json_images(model: Model, pixels: NDArray[np.uint8], scale: int) -> bytes:
    images = [
        {"index": index, "png": encode_base64(encode_picture(enlarge(picture, scale), "png"))}
        for index, picture in enumerate(pixels)
    ]
    manifest = model.manifest
    return json_bytes({"model": manifest.name, "version": manifest.version, "images": images})
