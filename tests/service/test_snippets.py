"""The Python of the README's section on other clients runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.service.answers import pixels_of
from tests.service.server import Served

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "127.0.0.1:8000"


def snippet(module: str) -> str:
    """Return the one block of that section that imports a module."""
    text = README.read_text(encoding="utf-8")
    section = text.split("### Other clients\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (found,) = [block for block in blocks if re.search(rf"(import|from) {module}\b", block)]
    return str(found)


def run(module: str, server: Served) -> dict[str, Any]:
    code = snippet(module)
    assert ADDRESS in code
    names: dict[str, Any] = {}
    exec(code.replace(ADDRESS, f"127.0.0.1:{server.address[1]}"), names)
    names["client"].close()
    return names


@pytest.mark.timeout(120)
def test_tritonclient(shipped: Served) -> None:
    images = run("tritonclient", shipped)["images"]
    assert images.shape == (2, 1, 28, 28)
    assert (np.ptp(images, axis=(1, 2, 3)) > 0.5).all()


@pytest.mark.timeout(120)
def test_openai(shipped: Served) -> None:
    pictures = [pixels_of(picture) for picture in run("openai", shipped)["pictures"]]
    assert [picture.shape for picture in pictures] == [(256, 256)] * 2
    assert (pictures[0] != pictures[1]).any()
