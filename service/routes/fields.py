"""Fields that several requests share."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LARGEST_EXACT_INTEGER = 2**53


class RequestModel(BaseModel):
    """A request: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _seed_from_text(value: Any) -> Any:
    # JavaScript loses integers above 2⁵³, so those may come as text.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    return value


def _split_commas(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part for part in value.split(",") if part)
    return tuple(value) if isinstance(value, list) else value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


Seed = Annotated[
    int,
    BeforeValidator(_seed_from_text, json_schema_input_type=int | str),
    Field(ge=0, lt=2**64, description="Integer, or text of digits where it exceeds 2⁵³."),
]
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
CommaSeparated = BeforeValidator(_split_commas)
Unique = AfterValidator(_unique)


def seed_for_json(seed: int) -> int | str:
    """Return a seed as clients can read it back: as text above 2⁵³."""
    return seed if seed <= _LARGEST_EXACT_INTEGER else str(seed)
