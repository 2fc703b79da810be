"""Fields that several requests share."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.config import JsonDict

_LARGEST_EXACT_INTEGER = 2**53


class RequestModel(BaseModel):
    """A request: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _seed_from_text(value: Any) -> Any:
    # JavaScript loses integers above 2⁵³, so those may come as text.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    return value


def _split_commas(value: Any, info: ValidationInfo) -> Any:
    # In JSON, a list is a list; in a query or a form, all values are text.
    if isinstance(value, str) and info.mode == "python":
        return tuple(value.split(",")) if value else ()
    return tuple(value) if isinstance(value, list) else value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _digits_up_to(largest: int) -> str:
    """Return a pattern of the decimal numbers from 0 to `largest`."""
    digits = str(largest)
    ways = [f"[0-9]{{1,{len(digits) - 1}}}", digits]
    for position, digit in enumerate(digits):
        if position and digit != "0":
            rest = len(digits) - position - 1
            ways.append(f"{digits[:position]}[0-{int(digit) - 1}][0-9]{{{rest}}}")
    return f"^({'|'.join(ways)})$"


NUM_SEEDS = 2**64

Seed = Annotated[
    int,
    BeforeValidator(_seed_from_text),
    Field(ge=0, lt=NUM_SEEDS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "exclusiveMaximum": NUM_SEEDS},
                {"type": "string", "pattern": _digits_up_to(NUM_SEEDS - 1)},
            ],
            "description": "Integer, or text of digits where it exceeds 2⁵³.",
        }
    ),
]
MODEL = "`name` for the newest version, or `name@version`; left out, the server's default."

ModelReference = Annotated[
    str,
    Field(
        max_length=80,
        pattern=r"^[a-z0-9-]+(@[0-9]{1,9})?$",
        description="`name` for the newest version, or `name@version`.",
    ),
]
TimeoutMs = Annotated[
    int, Field(gt=0, le=86_400_000, description="Deadline in milliseconds, queueing included.")
]
Scale = Annotated[int, Field(ge=1, le=16, description="Nearest-neighbour enlargement.")]
Truncation = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="Latents keep this share of their distance to the centre of the prior.",
    ),
]
# What an image may be in JSON; whether it is one of the model's is known once it is decoded.
_PIXEL: JsonDict = {"type": "integer", "minimum": 0, "maximum": 255}
_ROW: JsonDict = {"type": "array", "minItems": 1, "items": _PIXEL}
_COLOUR: JsonDict = {"type": "array", "minItems": 3, "maxItems": 3, "items": _PIXEL}
_COLOUR_ROW: JsonDict = {"type": "array", "minItems": 1, "items": _COLOUR}
IMAGE_SCHEMA: JsonDict = {
    "anyOf": [
        {"type": "array", "minItems": 1, "items": _ROW, "title": "Grey levels, (H, W)"},
        {"type": "array", "minItems": 1, "items": _COLOUR_ROW, "title": "Colours, (H, W, 3)"},
        {"type": "string", "minLength": 1, "format": "byte", "title": "A picture in base64"},
    ]
}
CommaSeparated = BeforeValidator(_split_commas)
Unique = AfterValidator(_unique)


def seed_for_json(seed: int) -> int | str:
    """Return a seed as clients can read it back: as text above 2⁵³."""
    return seed if seed <= _LARGEST_EXACT_INTEGER else str(seed)
