"""The format is the field's, else the header's, else the route's."""

import pytest

from service.errors import InvalidRequestError, NotAcceptableError
from service.routes.negotiation import MEDIA_TYPES, choose_format

POSSIBLE = ("json", "png", "webp", "npy")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "json"),
        ("", "json"),
        ("*/*", "json"),
        ("image/png", "png"),
        ("IMAGE/PNG", "png"),
        ("image/*", "png"),
        ("image/png, image/webp", "png"),
        ("image/webp, image/png", "png"),
        ("image/png;q=0.5, image/webp", "webp"),
        ("image/png;q=0.5, image/webp;q=0.6", "webp"),
        ("image/*;q=0.5, application/x-npy", "npy"),
        ("*/*;q=0.1, image/webp", "webp"),
        ("image/png;q=0, */*", "json"),
        ("application/json;q=0, */*", "png"),
        ("text/html, image/png;q=0.1", "png"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "json"),
        ("image/png;level=1;q=0.3, image/webp;q=0.2", "png"),
        ("image/png;q=nonsense, image/webp;q=0.2", "webp"),
        (" image/webp ", "webp"),
        ("image/webp;q=2, image/png", "png"),
    ],
)
def test_the_most_wanted_of_the_possible_formats_is_chosen(accept: str | None, chosen: str) -> None:
    assert choose_format(None, accept, POSSIBLE, "json") == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "image/gif", "image/png;q=0", "*/*;q=0", "nonsense", ",", ";", "image"]
)
def test_what_cannot_be_made_is_not_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptableError) as raised:
        choose_format(None, accept, POSSIBLE, "json")
    assert raised.value.extensions["possible"] == [MEDIA_TYPES[name] for name in POSSIBLE]


@pytest.mark.parametrize("accept", [None, "text/html", "image/webp", "image/png;q=0"])
def test_the_field_wins_over_any_header(accept: str | None) -> None:
    assert choose_format("png", accept, POSSIBLE, "json") == "png"


def test_a_format_that_is_not_possible_here_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="json, png, webp, npy"):
        choose_format("gif", None, POSSIBLE, "json")
