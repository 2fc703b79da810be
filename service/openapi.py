"""The OpenAPI document: what FastAPI writes, mended where it cannot know better."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from fastapi import FastAPI

from service.catalog import Catalog
from service.examples import body_examples, path_examples, query_examples
from service.gate import KEY_HEADER, is_open
from service.routes.documentation import referenced_schemas, refusal, without_null

Document = dict[str, Any]

_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}

_MODEL_NAME = {
    "schema": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
    "description": "Name of a model; /models lists them.",
}
_GRAPH_NAME = {
    "schema": {"type": "string", "pattern": r"^[a-z0-9-]+\.(generate|log_prob|encode)$"},
    "description": "`<model>.<graph>`; POST /v2/repository/index lists them.",
}
_OPENAI_NAME = {
    "schema": {"type": "string", "pattern": "^[a-z0-9-]+(@[0-9]+)?$"},
    "description": "`name` of a model, or `name@version`.",
}
_VERSION = {
    "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
    "description": "Number of a version.",
}
_FILE = {
    "schema": {"type": "string", "enum": ["card", "preview", "film"]},
    "description": "The model card, a picture of samples, or a film of the training.",
}


# From the answer of one operation to the next; the names are those of the handlers.
_MODEL, _VERSION_OF = "$response.body#/model", "$response.body#/version"
_PICTURE = "$response.body#/images/0/png"
_LINKS: dict[str, dict[str, Document]] = {
    "list_models": {
        "show_model": {"parameters": {"name": "$response.body#/models/0/name"}},
        "create_sample": {"requestBody": {"model": "$response.body#/models/0/name"}},
        "show_sample": {"parameters": {"query.model": "$response.body#/models/0/name"}},
    },
    "show_model": {
        "show_version": {
            "parameters": {"name": "$response.body#/name", "version": _VERSION_OF},
        },
        "show_version_file": {
            "parameters": {
                "name": "$response.body#/name",
                "version": _VERSION_OF,
                "file": "card",
            },
        },
        "show_file": {"parameters": {"name": "$response.body#/name", "file": "preview"}},
        "show_openai_model": {"parameters": {"name": "$response.body#/name"}},
        "create_sample": {"requestBody": {"model": "$response.body#/name"}},
    },
    "create_sample": {
        "show_sample": {
            "parameters": {"query.model": _MODEL, "query.seed": "$response.body#/seed"}
        },
        "show_model": {"parameters": {"name": _MODEL}},
        "create_completion": {"requestBody": {"model": _MODEL, "image": _PICTURE, "known_rows": 1}},
        **{
            name: {"requestBody": {"model": _MODEL, "images": [_PICTURE]}}
            for name in (
                "create_log_prob",
                "create_classification",
                "create_latents",
                "create_reconstructions",
            )
        },
    },
    "create_latents": {
        "create_interpolation": {
            "requestBody": {
                "model": _MODEL,
                "anchors": [{"latent": "$response.body#/latents/0/mean"}, {"seed": 1}],
            }
        },
        "create_sample": {
            "requestBody": {"model": _MODEL, "latents": ["$response.body#/latents/0/mean"]}
        },
    },
    "create_reconstructions": {
        "create_log_prob": {"requestBody": {"model": _MODEL, "images": [_PICTURE]}},
    },
    "list_openai_models": {
        "show_openai_model": {"parameters": {"name": "$response.body#/data/0/id"}},
        "generate_images": {"requestBody": {"model": "$response.body#/data/0/id", "prompt": ""}},
    },
    "list_graphs": {
        name: {"parameters": {"name": "$response.body#/0/name"}}
        for name in ("show_graph", "show_graph_ready", "show_config", "show_statistics", "infer")
    }
    | {
        name: {
            "parameters": {
                "name": "$response.body#/0/name",
                "version": "$response.body#/0/version",
            }
        }
        for name in (
            "show_graph_version",
            "show_graph_version_ready",
            "show_version_config",
            "show_version_statistics",
            "infer_version",
        )
    },
}


def document_routes(app: FastAPI) -> None:
    """Let an application write the document as this module mends it."""
    generate = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _mend(generate())
            accounts = app.state.service.accounts
            if accounts is not None:
                _add_keys(app.openapi_schema, is_optional=accounts.anonymous is not None)
        document = deepcopy(app.openapi_schema)
        _add_examples(document, app.state.service.catalog)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _add_examples(document: Document, catalog: Catalog) -> None:
    bodies, queries = body_examples(catalog), query_examples(catalog)
    paths = path_examples(catalog)
    for path, operation in _operations(document):
        name = operation["operationId"]
        examples = {
            f"{number}": {"value": body} for number, body in enumerate(bodies.get(name, ()), 1)
        }
        if examples:
            operation["requestBody"]["content"]["application/json"]["examples"] = examples
        given = paths.get("graph" if path.startswith("/v2/") else "model", {})
        for parameter in operation.get("parameters", ()):
            known = given if parameter["in"] == "path" else queries.get(name, {})
            if parameter["name"] in known:
                parameter["example"] = known[parameter["name"]]


def _mend(document: Document) -> Document:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= referenced_schemas()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _write_integers(document)
    for path, operation in _operations(document):
        responses = operation["responses"]
        # FastAPI adds its own 422 to every operation with parameters that documents none.
        if "HTTPValidationError" in str(responses.get("422")):
            del responses["422"]
        for parameter in operation.get("parameters", ()):
            _mend_parameter(path, parameter)
        links = _LINKS.get(operation["operationId"])
        if links:
            responses["200"]["links"] = {
                name: {"operationId": name} | link for name, link in links.items()
            }
    return document


def _add_keys(document: Document, *, is_optional: bool) -> None:
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
    }
    ways: list[Document] = [{"bearer": []}, {"header": []}]
    document["security"] = [*ways, {}] if is_optional else ways
    for path, operation in _operations(document):
        if is_open(path):
            operation["security"] = []
        else:
            operation["responses"] |= {str(status): refusal(status) for status in (401, 403, 429)}


def _write_integers(part: Any) -> None:
    """Write bounds as the integers that they are; 2⁶⁴ written as a float is another number."""
    if isinstance(part, list):
        for item in part:
            _write_integers(item)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in _BOUNDS and isinstance(value, float) and value.is_integer():
                part[key] = int(value)
            else:
                _write_integers(value)


def _operations(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _mend_parameter(path: str, parameter: dict[str, Any]) -> None:
    if parameter["in"] == "path":
        names = {"/v2/": _GRAPH_NAME, "/v1/": _OPENAI_NAME}
        known = {"version": _VERSION, "file": _FILE, "name": names.get(path[:4], _MODEL_NAME)}
        parameter |= known[parameter["name"]]
        return
    schema = without_null({"": parameter["schema"]})[""]
    # A query says a list, and what may be one, as values that are joined by commas.
    for way in schema.get("anyOf", ()):
        if way.get("type") == "array":
            schema = way | {key: value for key, value in schema.items() if key != "anyOf"}
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": False}
        if "string" in schema.get("items", {}).get("type", ()):
            schema["items"] = schema["items"] | {"type": "string", "pattern": "^[^,]+$"}
    parameter["schema"] = schema
    if "description" in schema:
        parameter.setdefault("description", schema["description"])
