"""What bundles run in without the service, where this machine has it, and the service itself."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptheta_client import Client
from service.manifest import version_folders
from tests.service.process import REPOSITORY, running

EMBEDDING = REPOSITORY / "docs/embedding"
STORE = REPOSITORY / "model_store"

UInt8Array = NDArray[np.uint8]
Node = Callable[..., bytes]


def newest(model: str) -> Path:
    """Return the folder of a model's newest version, which is what the service answers with."""
    return [folder for name, _, folder in version_folders(STORE) if name == model][-1]


@pytest.fixture(scope="session")
def service() -> Iterator[Client]:
    """Return a client of a server of the repository's own models."""
    with running(STORE) as url, Client(url) as client:
        yield client


@pytest.fixture(scope="session")
def node() -> Node:
    """Return a function that runs Node in docs/embedding/ and returns what it writes."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no Node: install it (Debian, Ubuntu: apt-get install nodejs npm)")

    def run(*arguments: str, data: str = "") -> bytes:
        done = subprocess.run(
            [program, *arguments],
            cwd=EMBEDDING,
            check=False,
            capture_output=True,
            input=data.encode(),
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


@pytest.fixture(scope="session")
def packages() -> Path:
    """Return where the packages of npm are."""
    folder = EMBEDDING / "node_modules"
    if not (folder / "onnxruntime-web").is_dir():
        pytest.skip("the packages of npm are not installed: run `npm ci` in docs/embedding/")
    return folder


@pytest.fixture
def draw_in_node(node: Node, packages: Path) -> Callable[..., UInt8Array]:
    """Return a function that draws images of a bundle in Node, as (n, H, W)."""

    def draw(model: str, **request: Any) -> UInt8Array:
        picture = node("node.mjs", str(newest(model)), json.dumps(request))
        kind, size, largest, content = picture.split(b"\n", maxsplit=3)
        assert (kind, largest) == (b"P5", b"255")
        width, height = map(int, size.split())
        pixels = np.frombuffer(content, np.uint8)
        return pixels.reshape(-1, height // request.get("n", 1), width)

    return draw
