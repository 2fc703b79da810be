"""The service does what its OpenAPI document says: Schemathesis asks, a real process answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.gate import is_open
from service.keys import digest_of
from tests.conformance.store import write_complete_store
from tests.service.process import REPOSITORY, running

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent

# The document alone decides how many cases there are; this is a backstop against asking nothing.
MIN_CASES = 1500

KEY = "key-of-conformance"


def ask(url: str, folder: Path, *options: str) -> tuple[str, set[tuple[str, str]]]:
    """Let Schemathesis ask a server, and return its report and what was answered."""
    environment = {
        "SCHEMATHESIS_HOOKS": "tests.conformance.hooks",
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "*",
        "ANSWERED": str(folder / "answered"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--seed", "1", "--no-color"),
            *("--continue-on-failure", *options),
        ],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert re.search(r"Selected: (\d+)/\1\n", report), report  # every operation
    lines = (folder / "answered").read_text().splitlines()
    return report, {(line.split()[0], line.split()[1]) for line in lines}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store that reaches every kind of answer."""
    folder = tmp_path / "store"
    folder.mkdir()
    return write_complete_store(folder)


def test_no_answer_breaks_the_document(store: Path, tmp_path: Path) -> None:
    with running(store, default_model="tiny-latent", max_rows=64) as url:
        report, answered = ask(url, tmp_path)
    names = {name for _, name in answered}
    assert names == {name for status, name in answered if status == "200"}
    cases = re.search(r"(\d+) generated", report)
    assert cases is not None
    assert int(cases[1]) >= MIN_CASES, report


def test_every_operation_asks_for_the_key_that_the_document_says(
    store: Path, tmp_path: Path
) -> None:
    """Schemathesis' own check sends each request again without the key, and with another."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.conformance]\nsha256 = "{digest_of(KEY.encode())}"\n')
    settings = {"default_model": "tiny-latent", "max_rows": 64, "api_keys_file": keys}
    options = ["--phases", "examples,coverage", "--mode", "positive", "--max-examples", "1"]
    # Both ways, or it would make a key up for the other one.
    options += ["--header", f"Authorization: Bearer {KEY}", "--header", f"X-API-Key: {KEY}"]
    with running(store, **settings) as url:
        _, answered = ask(url, tmp_path, *options)
        names = {
            operation["operationId"]
            for path, methods in httpx.get(f"{url}/openapi.json").json()["paths"].items()
            for operation in methods.values()
            if not is_open(path)
        }
        told = httpx.get(f"{url}/metrics", headers={"X-API-Key": KEY}).text
    assert {name for status, name in answered if status == "200"} >= names
    refused = re.findall(r'route="([^"]*)",status="401"', told)
    assert len(refused) > 10, told
