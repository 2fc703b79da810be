"""What a user can meet is described in the README or in docs/."""

import re
from pathlib import Path

import pytest

from service.app import create_app
from service.errors import all_problems
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text() -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def settings() -> list[str]:
    return [f"PTHETA_{name.upper()}" for name in Settings.model_fields]


def slugs() -> list[str]:
    return sorted({problem.slug for problem in all_problems()})


def routes() -> list[str]:
    return list(create_app(Settings()).openapi()["paths"])


def metrics() -> list[str]:
    return re.findall(
        r"^# TYPE (\S+)", Metrics().render(is_ready=True).decode(), flags=re.MULTILINE
    )


@pytest.mark.parametrize("name", [*settings(), *slugs(), *metrics()])
def test_it_is_described(name: str, text: str) -> None:
    # As a whole word: `ptheta_ready` is not described by `ptheta_ready_rows`.
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)


@pytest.mark.parametrize("path", routes())
def test_the_route_is_described(path: str, text: str) -> None:
    # A route goes on with a query or a further segment of its own: /models is not /models/{name}.
    assert re.search(rf"{re.escape(path)}(?![\w/{{-])", text)
