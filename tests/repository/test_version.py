"""One version everywhere."""

import re
import tomllib
from pathlib import Path

import service
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]


def test_pyproject_reads_the_version_from_the_service() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in document["project"]["dynamic"]
    assert document["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "service.__version__"}


def test_the_api_tells_it() -> None:
    assert create_app(Settings()).openapi()["info"]["version"] == service.__version__


def test_the_changelog_begins_with_it() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## \[?([0-9][^\]\s]*)", changelog, flags=re.MULTILINE)
    assert first is not None
    assert first[1] == service.__version__


def test_the_image_tells_it() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG VERSION={service.__version__}\n" in dockerfile
