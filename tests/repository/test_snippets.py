"""The Python and the requests that the README and docs/ show run as they stand."""

import os
import re
import shutil
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

# What asks the server at $B, without a key; of each page all in order: they use each other's files.
REQUESTS = [
    pytest.param("\n".join(blocks), id=str(page.relative_to(REPOSITORY)))
    for page in PAGES
    if (
        blocks := [
            block
            for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
            if '"$B/' in block and "$KEY" not in block
        ]
    )
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return where the repository's own models are served, as host:port."""
    with running(REPOSITORY / "model_store", default_timeout_s=280) as url:
        yield url.removeprefix("http://")


@pytest.mark.parametrize("code", SNIPPETS)
def test_it_runs(code: str, address: str, tmp_path: Path) -> None:
    # From a checkout, but where what it writes does no harm.
    for name in ("model_store", "service", "ptheta_client"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "-W", "error", "-c", code.replace(ADDRESS, address)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("requests", REQUESTS)
def test_the_requests_are_answered(requests: str, address: str, tmp_path: Path) -> None:
    script = f"""
        set -euo pipefail
        curl() {{ command curl -sS --noproxy '*' -w '%{{stderr}}%{{http_code}}\\n' "$@"; }}
        {requests}
    """
    script = re.sub(r"^\s*B=.*", "", script, flags=re.M)
    environment = os.environ | {"B": f"http://{address}"}
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, address)],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.split()) == {"200"}, done.stderr + done.stdout[-2000:]
    asked_for = set(re.findall(r" -o (\S+)", requests))
    assert {path.name for path in tmp_path.iterdir()} == asked_for


def test_there_are_some() -> None:
    text = "".join(str(snippet.values) for snippet in SNIPPETS)
    assert "ptheta_client" in text
    assert "onnxruntime" in text
    assert "tritonclient" in text
    assert "openai" in text
    assert {str(request.id) for request in REQUESTS} >= {"README.md", "docs/anomaly.md"}
