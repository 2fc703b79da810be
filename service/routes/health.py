"""GET /livez, /readyz and /metrics: for supervisors, load balancers and Prometheus."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.routes.answers import Liveness, Readiness
from service.routes.documentation import answers
from service.routes.endpoint import Endpoint, json_bytes, service_of
from service.routes.negotiation import MEDIA_TYPES

router = APIRouter(route_class=Endpoint, tags=["health"])


@router.get("/livez", response_class=Response, responses=answers(Liveness), summary="Alive?")
async def livez(request: Request) -> Response:
    """Answer as long as the process can."""
    return Response(json_bytes({"status": "alive"}), media_type=MEDIA_TYPES["json"])


@router.get(
    "/readyz",
    response_class=Response,
    responses=answers(Readiness)
    | {503: {"description": "Not ready; says why.", "model": Readiness}},
    summary="Ready for traffic?",
)
async def readyz(request: Request) -> Response:
    """Answer 200 once every model is verified, loaded and warm, and until shutdown begins."""
    service = service_of(request)
    reason = service.unreadiness()
    content: dict[str, object] = {"status": "ready" if reason is None else "not ready"}
    if reason is not None:
        content["reason"] = reason
    content["models"] = service.catalog.references()
    if service.catalog.broken:
        content["broken"] = service.catalog.broken
    return Response(
        json_bytes(content),
        status_code=200 if reason is None else 503,
        media_type=MEDIA_TYPES["json"],
        headers={"Cache-Control": "no-store"},
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=answers({"text/plain": {"schema": {"type": "string"}}}),
    summary="Metrics for Prometheus",
)
async def metrics(request: Request) -> Response:
    """Tell requests, rows, queues, batches, runs and refusals."""
    service = service_of(request)
    content = service.metrics.render(is_ready=service.unreadiness() is None)
    return Response(content, media_type=CONTENT_TYPE_LATEST)
