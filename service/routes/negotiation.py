"""Which format an answer has: the `format` field, else `Accept`, else the route's default."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from service.errors import InvalidRequestError, NotAcceptableError

MEDIA_TYPES = {
    "json": "application/json",
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "apng": "image/apng",
    "npy": "application/x-npy",
    "bytes": "application/octet-stream",
}


def one_of(formats: Sequence[str]) -> Any:
    """Document a `format` field; `choose_format` checks it, and says what is possible."""
    return Field(json_schema_extra={"enum": list(formats)})


def choose_format(
    asked: str | None, accept: str | None, possible: Sequence[str], default: str
) -> str:
    """Choose the format of an answer.

    Args:
        asked: The request's `format` field.
        accept: The `Accept` header.
        possible: Formats that the route can make, best first.
        default: What an unspecific client gets.

    Raises:
        InvalidRequestError: The route cannot make the format that the field asks for.
        NotAcceptableError: `Accept` allows none of the possible formats.
    """
    if asked is not None:
        if asked not in possible:
            raise InvalidRequestError.of_field(
                "format", f"{asked!r} is not possible here; possible: {', '.join(possible)}"
            )
        return asked
    if not accept:
        return default
    ranges = parse_accept(accept)
    ordered = [default, *(name for name in possible if name != default)]
    best = max(ordered, key=lambda name: _quality(MEDIA_TYPES[name], ranges))
    if _quality(MEDIA_TYPES[best], ranges) == (0.0, 0):
        raise NotAcceptableError(accept, [MEDIA_TYPES[name] for name in possible])
    return best


def parse_accept(accept: str) -> list[tuple[str, float]]:
    """Split `Accept` or a header like it into names in lower case and their qualities, 0 to 1."""
    ranges = []
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = min(max(float(parameter[2:]), 0.0), 1.0)
                except ValueError:
                    quality = 0.0
        ranges.append((media_range, quality))
    return ranges


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    # The most specific range that matches decides: its quality, then how specific it is.
    kind = media_type.partition("/")[0]
    for specificity, candidate in ((2, media_type), (1, f"{kind}/*"), (0, "*/*")):
        for media_range, quality in ranges:
            if media_range == candidate:
                return (quality, specificity) if quality else (0.0, 0)
    return (0.0, 0)
