"""GET /v2/models/…: tensors, limits and statistics of graphs, by the Open Inference Protocol."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.catalog import Catalog
from service.errors import UnknownModelError
from service.manifest import Role
from service.metrics import GraphTotals
from service.model import Model
from service.routes.answers_v2 import GraphConfig, GraphMetadata, GraphReadiness, StatisticsAnswer
from service.routes.documentation import answers
from service.routes.endpoint import Endpoint, json_bytes, service_of
from service.routes.negotiation import MEDIA_TYPES
from service.routes.tensors_v2 import DATATYPES
from service.service import Service
from service.settings import Settings
from service.tally import Total
from service.tensors import VARIABLE, Tensor, inputs_of, outputs_of

router = APIRouter(route_class=Endpoint, tags=["open inference protocol"])

_NOTHING = Total(0, 0.0, 0.0)


def name_of(model: Model, role: Role) -> str:
    """Name a graph as the protocol wants it: `nade-mnist.log_prob`."""
    return f"{model.manifest.name}.{role}"


def find_graph(service: Service, name: str, version: str | None) -> tuple[Model, Role]:
    """Find the graph that a path names.

    Args:
        service: What is served.
        name: `<model>.<graph>`.
        version: Its version; None for the newest.

    Raises:
        UnknownModelError: There is no such graph; tells those that there are.
        ModelLoadingError: The models are not loaded yet.
        DrainingError: The server is shutting down.
    """
    service.require_serving()
    model_name, _, wanted_role = name.rpartition(".")
    numbers = service.catalog.versions(model_name)
    for number in numbers[-1:] if version is None else numbers:
        if version in {None, str(number)}:
            model = service.find(f"{model_name}@{number}")
            for role in model.graphs:
                if role == wanted_role:
                    return model, role
    shown = name if version is None else f"{name} version {version}"
    raise UnknownModelError(shown, _graph_names(service.catalog))


def json_answer(content: Any, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(json_bytes(content), status_code=status, media_type=MEDIA_TYPES["json"])


@router.get(
    "/v2/models/stats",
    response_class=Response,
    responses=answers(StatisticsAnswer, 503),
    summary="Statistics of all graphs",
)
async def list_statistics(request: Request) -> Response:
    """Tell what all processes have done with every graph."""
    service = service_of(request)
    service.require_serving()
    models = service.models()
    return json_answer({"model_stats": [_statistics(m, role) for m in models for role in m.graphs]})


@router.get(
    "/v2/models/{name}",
    response_class=Response,
    responses=answers(GraphMetadata, 404, 503),
    summary="Describe a graph",
)
async def show_graph(request: Request, name: str) -> Response:
    """Tell the tensors of the newest version of a graph, named `<model>.<graph>`."""
    return _metadata(service_of(request), name, None)


@router.get(
    "/v2/models/{name}/versions/{version}",
    response_class=Response,
    responses=answers(GraphMetadata, 404, 503),
    summary="Describe a graph of a version",
)
async def show_graph_version(request: Request, name: str, version: str) -> Response:
    """Tell the tensors of one version of a graph."""
    return _metadata(service_of(request), name, version)


@router.get(
    "/v2/models/{name}/ready",
    response_class=Response,
    responses=answers(GraphReadiness, 404, 503),
    summary="Is a graph ready?",
)
async def show_graph_ready(request: Request, name: str) -> Response:
    """Answer 200 for a graph that can be asked; all that are loaded can."""
    return _ready(service_of(request), name, None)


@router.get(
    "/v2/models/{name}/versions/{version}/ready",
    response_class=Response,
    responses=answers(GraphReadiness, 404, 503),
    summary="Is a graph of a version ready?",
)
async def show_graph_version_ready(request: Request, name: str, version: str) -> Response:
    """Answer 200 for a version of a graph that can be asked."""
    return _ready(service_of(request), name, version)


@router.get(
    "/v2/models/{name}/config",
    response_class=Response,
    responses=answers(GraphConfig, 404, 503),
    summary="Configuration of a graph",
)
async def show_config(request: Request, name: str) -> Response:
    """Tell the limits of the newest version of a graph, and which inputs are optional."""
    return _config(service_of(request), name, None)


@router.get(
    "/v2/models/{name}/versions/{version}/config",
    response_class=Response,
    responses=answers(GraphConfig, 404, 503),
    summary="Configuration of a graph of a version",
)
async def show_version_config(request: Request, name: str, version: str) -> Response:
    """Tell the limits of one version of a graph, and which inputs are optional."""
    return _config(service_of(request), name, version)


@router.get(
    "/v2/models/{name}/stats",
    response_class=Response,
    responses=answers(StatisticsAnswer, 404, 503),
    summary="Statistics of a graph",
)
async def show_statistics(request: Request, name: str) -> Response:
    """Tell what all processes have done with the newest version of a graph."""
    model, role = find_graph(service_of(request), name, None)
    return json_answer({"model_stats": [_statistics(model, role)]})


@router.get(
    "/v2/models/{name}/versions/{version}/stats",
    response_class=Response,
    responses=answers(StatisticsAnswer, 404, 503),
    summary="Statistics of a graph of a version",
)
async def show_version_statistics(request: Request, name: str, version: str) -> Response:
    """Tell what all processes have done with one version of a graph."""
    model, role = find_graph(service_of(request), name, version)
    return json_answer({"model_stats": [_statistics(model, role)]})


def _graph_names(catalog: Catalog) -> list[str]:
    return sorted({name_of(model, role) for model in catalog.models() for role in model.graphs})


def _ready(service: Service, name: str, version: str | None) -> Response:
    find_graph(service, name, version)
    return json_answer({"name": name, "ready": True})


def _metadata(service: Service, name: str, version: str | None) -> Response:
    model, role = find_graph(service, name, version)

    def describe(tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor.name,
                "datatype": DATATYPES[tensor.dtype],
                "shape": [VARIABLE, *tensor.row_shape],
            }
            for tensor in tensors.values()
        ]

    versions = service.catalog.versions(model.manifest.name)
    return json_answer(
        {
            "name": name,
            "versions": [str(number) for number in versions],
            "platform": "onnx_onnxv1",
            "inputs": describe(inputs_of(model, role)),
            "outputs": describe(outputs_of(model, role)),
        }
    )


def _config(service: Service, name: str, version: str | None) -> Response:
    model, role = find_graph(service, name, version)
    settings = service.settings

    def describe(tensor: Tensor) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "data_type": f"TYPE_{DATATYPES[tensor.dtype]}",
            # A number per row is written this way: Triton knows no empty shape.
            "dims": tensor.row_shape or [1],
            **({} if tensor.row_shape else {"reshape": {"shape": []}}),
        }

    inputs = inputs_of(model, role).values()
    return json_answer(
        {
            "name": name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "version_policy": {"all": {}},
            "max_batch_size": settings.max_rows,
            "input": [describe(tensor) | {"optional": tensor.is_optional} for tensor in inputs],
            "output": [describe(tensor) for tensor in outputs_of(model, role).values()],
            "dynamic_batching": _batching(model, role, settings),
            "default_model_filename": model.manifest.graphs[role].file,
        }
    )


def _batching(model: Model, role: Role, settings: Settings) -> dict[str, Any]:
    rows = min(settings.max_rows, model.manifest.graphs[role].max_batch_rows)
    return {
        "preferred_batch_size": [rows],
        "max_queue_delay_microseconds": _micro(settings.max_wait_s),
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": _micro(settings.default_timeout_s),
            "allow_timeout_override": True,
        },
    }


def _micro(seconds: float) -> int:
    return round(1e6 * seconds)


def _statistics(model: Model, role: Role) -> dict[str, Any]:
    totals: GraphTotals = model.graphs[role].metrics.totals

    def told(total: Total) -> dict[str, int]:
        return {"count": total.count, "ns": round(1e9 * total.seconds)}

    return {
        "name": name_of(model, role),
        "version": str(model.manifest.version),
        "last_inference": round(1000 * totals.success.last_s),
        "inference_count": totals.num_rows,
        "execution_count": totals.num_runs,
        "inference_stats": {
            "success": told(totals.success),
            "fail": told(totals.fail),
            "queue": told(totals.queue),
            # What comes before and after the graph is part of its run and not measured apart.
            "compute_input": told(_NOTHING),
            "compute_infer": told(totals.compute),
            "compute_output": told(_NOTHING),
            "cache_hit": told(_NOTHING),
            "cache_miss": told(_NOTHING),
        },
        "batch_stats": [],
    }
