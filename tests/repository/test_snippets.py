"""The Python that the README and docs/ show runs as it stands."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.process import REPOSITORY, running

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.relative_to(REPOSITORY)}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
    )
]
ADDRESS = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return where the repository's own models are served, as host:port."""
    with running(REPOSITORY / "model_store") as url:
        yield url.removeprefix("http://")


@pytest.mark.parametrize("code", SNIPPETS)
def test_it_runs(code: str, address: str, tmp_path: Path) -> None:
    # From a checkout, but where what it writes does no harm.
    for name in ("model_store", "service", "ptheta_client"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "-W", "error", "-c", code.replace(ADDRESS, address)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_some() -> None:
    text = "".join(str(snippet.values) for snippet in SNIPPETS)
    assert "ptheta_client" in text
    assert "onnxruntime" in text
    assert "tritonclient" in text
    assert "openai" in text
