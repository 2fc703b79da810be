"""Examples for the OpenAPI document that run as they are: of what is served, in its shape.

Where a store has no model for an operation, there is no example of it.
"""

from typing import Any

from service.catalog import Catalog
from service.manifest import Manifest, Operation
from service.model import Model
from service.tensors import inputs_of

Json = dict[str, Any]


def body_examples(catalog: Catalog) -> dict[str, list[Json]]:
    """Return bodies of requests, by the name of the operation."""
    examples: dict[str, list[Json]] = {
        "create_sample": [*_samples(catalog)],
        "create_completion": [
            {"model": model.name, "image": _image(model), "known_rows": model.image.shape[1] // 2}
            for model in _able(catalog, "complete")
        ],
        "create_interpolation": [
            {"model": model.name, "anchors": [{"seed": 1}, {"seed": 2}]}
            for model in _able(catalog, "interpolate")
        ],
        "create_classification": [
            {"model": model.name, "images": [_image(model)]} for model in _able(catalog, "classify")
        ],
        "generate_images": [
            {"model": model.name, "prompt": model.labels[0] if model.labels else "", "n": 2}
            for model in _able(catalog, "sample")
        ],
    }
    operations: dict[str, Operation] = {
        "create_log_prob": "log_prob",
        "create_latents": "encode",
        "create_reconstructions": "reconstruct",
    }
    for name, operation in operations.items():
        examples[name] = [
            {"model": model.name, "images": [_image(model)]}
            | ({"labels": [model.labels[0]]} if model.labels else {})
            for model in _able(catalog, operation)
        ]
    model = next(iter(catalog.newest()), None)
    if model is not None:
        examples["infer"] = examples["infer_version"] = [{"inputs": _tensors(model)}]
    return {name: bodies[:3] for name, bodies in examples.items()}


def path_examples(catalog: Catalog) -> dict[str, Json]:
    """Return parameters of paths: of a model, of OpenAI's name for it, and of a graph."""
    model = next(iter(catalog.newest()), None)
    if model is None:
        return {}
    version, name = str(model.manifest.version), model.manifest.name
    return {
        "model": {"name": name, "version": version, "file": "card"},
        "graph": {"name": f"{name}.generate", "version": version},
    }


def query_examples(catalog: Catalog) -> dict[str, Json]:
    """Return queries of GET requests, by the name of the operation."""
    examples: dict[str, Json] = {"show_sample": {"seed": 7, "n": 4}}
    walkers = _able(catalog, "interpolate")
    if walkers:
        examples["show_interpolation"] = {"model": walkers[0].name, "seeds": [1, 2, 3]}
    return examples


def _able(catalog: Catalog, operation: Operation) -> list[Manifest]:
    manifests = [model.manifest for model in catalog.newest()]
    return [manifest for manifest in manifests if operation in manifest.operations]


def _samples(catalog: Catalog) -> list[Json]:
    latent = [m for m in _able(catalog, "sample") if m.noise.latent and not m.labels]
    exact = [m for m in _able(catalog, "log_prob") if m.density == "exact"]
    return [
        *({"model": model.name, "n": 4, "seed": 7} for model in latent[:1]),
        *({"model": model.name, "n": 2, "include": ["log_prob"]} for model in exact[:1]),
    ]


def _image(manifest: Manifest) -> list[Any]:
    """Draw a bright stroke on a dark ground."""
    channels, height, width = manifest.image.shape
    dark, bright = (0, 255) if channels == 1 else ([0] * 3, [255] * 3)
    return [
        [
            bright
            if height // 4 <= row < height // 2 and width // 2 <= column < 3 * width // 4
            else dark
            for column in range(width)
        ]
        for row in range(height)
    ]


def _tensors(model: Model) -> list[Json]:
    tensors: list[Json] = []
    for tensor in inputs_of(model, "generate").values():
        if tensor.is_optional:
            continue
        size = 1
        for axis in tensor.row_shape:
            size *= axis
        datatype = "FP32" if tensor.dtype == "float32" else "INT64"
        shape = [1, *tensor.row_shape]
        tensors.append(
            {"name": tensor.name, "datatype": datatype, "shape": shape, "data": [0] * size}
        )
    return tensors
