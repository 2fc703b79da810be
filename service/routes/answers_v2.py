"""What JSON answers of the Open Inference Protocol hold; see `answers.py`."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class TensorData(TypedDict):
    """An output of a graph."""

    name: str
    datatype: Annotated[str, Field(description="FP32, INT64, …")]
    shape: Annotated[list[int], Field(description="Axis 0 is the batch.")]
    parameters: NotRequired[
        Annotated[
            dict[Literal["binary_data_size"], int],
            Field(description="Bytes of this output after the JSON."),
        ]
    ]
    data: NotRequired[Annotated[list[Any], Field(description="Flat, row by row.")]]


class InferAnswer(TypedDict):
    """Outputs of a graph."""

    model_name: str
    model_version: str
    id: NotRequired[Annotated[str, Field(description="The request's.")]]
    outputs: list[TensorData]


class TensorMetadata(TypedDict):
    """An input or output of a graph."""

    name: str
    datatype: Annotated[str, Field(description="FP32, INT64, …")]
    shape: Annotated[list[int], Field(description="−1 where each request chooses.")]


class GraphMetadata(TypedDict):
    """The tensors of a graph."""

    name: Annotated[str, Field(description="<model>.<graph>")]
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class GraphReadiness(TypedDict):
    """A graph that can be asked."""

    name: Annotated[str, Field(description="<model>.<graph>")]
    ready: Literal[True]


class TensorConfig(TypedDict):
    """An input or output of a graph, as Triton's clients know it."""

    name: str
    data_type: Annotated[str, Field(description="TYPE_FP32, TYPE_INT64, …")]
    dims: Annotated[list[int], Field(description="Without the batch; −1 where requests choose.")]
    reshape: NotRequired[dict[str, list[int]]]
    optional: NotRequired[bool]


class GraphConfig(TypedDict):
    """Limits of a graph, as Triton's clients know them."""

    name: Annotated[str, Field(description="<model>.<graph>")]
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: Annotated[int, Field(ge=1, description="Rows per request.")]
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: dict[str, Any]
    default_model_filename: str


class Duration(TypedDict):
    """How often, and how long all together."""

    count: Annotated[int, Field(ge=0)]
    ns: Annotated[int, Field(ge=0, description="Nanoseconds.")]


class InferenceStatistics(TypedDict):
    """Where the time of a graph's calls went."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class GraphStatistics(TypedDict):
    """What all processes have done with a graph."""

    name: Annotated[str, Field(description="<model>.<graph>")]
    version: str
    last_inference: Annotated[int, Field(ge=0, description="Milliseconds since 1970.")]
    inference_count: Annotated[int, Field(ge=0, description="Rows.")]
    execution_count: Annotated[int, Field(ge=0, description="Runs.")]
    inference_stats: InferenceStatistics
    batch_stats: list[Any]


class StatisticsAnswer(TypedDict):
    """What all processes have done with graphs."""

    model_stats: list[GraphStatistics]


class ServerMetadata(TypedDict):
    """The server, by the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class ServerLiveness(TypedDict):
    """The server is alive."""

    live: Literal[True]


class ServerReadiness(TypedDict):
    """Whether the server is ready."""

    ready: bool
    live: Literal[True]
    error: NotRequired[Annotated[str, Field(description="Why it is not ready.")]]


class ListedGraph(TypedDict):
    """A graph, or a bundle that is broken."""

    name: Annotated[str, Field(description="<model>.<graph>; a broken bundle's model alone.")]
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: Annotated[str, Field(description="Why it is not available.")]
