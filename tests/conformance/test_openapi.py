"""The service does what its OpenAPI document says: Schemathesis asks, a real process answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.store import write_complete_store
from tests.service.process import REPOSITORY, running

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent

# The document alone decides how many cases there are; this is a backstop against asking nothing.
MIN_CASES = 1500


def test_no_answer_breaks_the_document(tmp_path: Path) -> None:
    environment = {
        "SCHEMATHESIS_HOOKS": "tests.conformance.hooks",
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "*",
        "ANSWERED": str(tmp_path / "answered"),
    }
    (tmp_path / "store").mkdir()
    store = write_complete_store(tmp_path / "store")
    with running(store, default_model="tiny-latent", max_rows=64) as url:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(HERE / "schemathesis.toml")),
                *("run", f"{url}/openapi.json", "--seed", "1", "--no-color"),
                "--continue-on-failure",
            ],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert re.search(r"Selected: (\d+)/\1\n", report), report  # every operation
    lines = (tmp_path / "answered").read_text().splitlines()
    answered = {tuple(line.split()) for line in lines}
    names = {name for _, name in answered}
    assert names == {name for status, name in answered if status == "200"}
    cases = re.search(r"(\d+) generated", report)
    assert cases is not None
    assert int(cases[1]) >= MIN_CASES, report
