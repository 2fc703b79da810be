"""The service runs without torch and the offline code, the client without either."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
OFFLINE = {"export", "lightning", "onnx", "onnxscript", "torch"}
MODULES = sorted((ROOT / "service").rglob("*.py"))
CLIENT = sorted((ROOT / "ptheta_client").rglob("*.py"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def test_a_started_service_has_loaded_nothing_offline() -> None:
    code = """
import json, sys
import service.__main__
from service.app import create_app
from service.settings import Settings
create_app(Settings()).openapi()
print(json.dumps(sorted(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(answer.stdout)}
    assert "service" in loaded
    assert not loaded & OFFLINE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_of_the_service_names_offline_code(path: Path) -> None:
    # Also imports in functions and behind `TYPE_CHECKING`, which a start does not reach.
    imported = {name.partition(".")[0] for name in imports(ast.parse(path.read_bytes()))}
    assert not imported & OFFLINE


@pytest.mark.parametrize("path", CLIENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_client_needs_its_own_extra_alone(path: Path) -> None:
    wanted = {Requirement(each).name for each in EXTRAS["client"]}
    modules = {"PIL" if name == "pillow" else name for name in wanted} | sys.stdlib_module_names
    imported = {name.partition(".")[0] for name in imports(ast.parse(path.read_bytes()))}
    assert imported <= modules | {"ptheta_client"}


def test_the_service_does_without_the_client() -> None:
    wanted = {Requirement(each).name for each in EXTRAS["core"]}
    assert "httpx" not in wanted
    assert not any("ptheta_client" in path.read_text(encoding="utf-8") for path in MODULES)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module


def test_the_runtime_keeps_no_record_of_what_is_loaded(tmp_path: Path) -> None:
    graph = next((ROOT / "model_store").glob("*/1/generate.onnx"))
    code = f"""
from pathlib import Path
from service.graph import Session
Session(Path({str(graph)!r}))
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"CI", "PYTHONPATH"}
    }
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    environment["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
