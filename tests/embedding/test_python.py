"""Bundles in Python, as docs/embedding.md shows it: the pixels of the service."""

import re
from typing import Any

import pytest

from ptheta_client import Client
from tests.service.process import REPOSITORY

PAGE = (REPOSITORY / "docs/embedding.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Run what the page shows, and return what it makes."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        exec(compile(code, "docs/embedding.md", "exec"), made)
    return made


def test_garments_have_the_pixels_of_the_service(shown: dict[str, Any], service: Client) -> None:
    expected = service.sample("dcgan-fashion", seed=7, n=16)
    assert (shown["garments"] == expected.images).all()


def test_digits_have_the_pixels_of_the_service(shown: dict[str, Any], service: Client) -> None:
    expected = service.sample("nade-mnist", seed=7, n=16)
    assert (shown["digits"] == expected.images).all()


def test_completions_have_the_pixels_of_the_service(shown: dict[str, Any], service: Client) -> None:
    digit = shown["digits"][0]
    expected = service.complete(digit, "nade-mnist", known_rows=14, seed=7, n=16)
    assert (shown["completions"] == expected.images).all()
