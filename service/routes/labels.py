"""Class labels in requests: names or numbers, checked against the classes of the model."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic.config import JsonDict

from service.errors import InvalidRequestError, UnsupportedOperationError
from service.model import Model
from service.service import Service

IntArray = NDArray[np.int64]
Label = int | str

_MAX_LISTED = 50
_MAX_LABELS = 65_536
_LABEL_SCHEMA: JsonDict = {"type": ["integer", "string"]}


def _as_sequence(value: Any) -> Any:
    # One label may stand alone; in a query several are joined by commas.
    if isinstance(value, str):
        return tuple(value.split(","))
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


Labels = Annotated[
    tuple[Label, ...],
    BeforeValidator(_as_sequence),
    Field(min_length=1, max_length=_MAX_LABELS),
    WithJsonSchema(
        {
            "anyOf": [
                _LABEL_SCHEMA,
                {
                    "type": "array",
                    "items": _LABEL_SCHEMA,
                    "minItems": 1,
                    "maxItems": _MAX_LABELS,
                },
            ],
            "description": "Class names or numbers: one, or n.",
        }
    ),
]


def require_classes(
    service: Service, model: Model, consequence: str = "it takes no labels"
) -> None:
    """Refuse labels where the model has no classes.

    Args:
        service: Knows which other models have some.
        model: The model that is asked for.
        consequence: What follows for the client.

    Raises:
        UnsupportedOperationError: It has none; tells which models have.
    """
    if not model.manifest.labels:
        raise UnsupportedOperationError(
            f"{model.reference} is not conditional: {consequence}",
            [other.manifest.name for other in service.catalog.newest() if other.manifest.labels],
        )


def class_numbers(labels: Sequence[Label], model: Model, num_rows: int) -> IntArray:
    """Turn labels into one class number per row.

    Args:
        labels: One for all rows, or one for each. Text is the name of a class; where no class has
            that name, digits are a number, since a query has no other way to give one.
        model: A class-conditional model.
        num_rows: Number of rows.

    Returns:
        Shape (num_rows,).

    Raises:
        InvalidRequestError: There is no such class, or there are neither one label nor num_rows.
    """
    classes = model.manifest.labels
    known: dict[Label, int] = {str(number): number for number in range(len(classes))}
    known |= {number: number for number in range(len(classes))}
    known |= {name: number for number, name in enumerate(classes)}
    for position, label in enumerate(labels):
        if label not in known:
            text = f"{model.reference} has no class {_shown(label)}; it has: {_listed(classes)}"
            raise InvalidRequestError(f"labels: {text}", [(f"/labels/{position}", text)])
    if len(labels) not in {1, num_rows}:
        raise InvalidRequestError.of_field(
            "labels", f"give one label, or one for each of the {num_rows}, not {len(labels)}"
        )
    numbers = np.array([known[label] for label in labels], dtype=np.int64)
    return np.broadcast_to(numbers, (num_rows,)).copy()


def _shown(label: Label) -> str:
    text = repr(label)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _listed(classes: Sequence[str]) -> str:
    names = [f"{number} ({name})" for number, name in enumerate(classes[:_MAX_LISTED])]
    return ", ".join([*names, *(["…"] if len(classes) > _MAX_LISTED else [])])
