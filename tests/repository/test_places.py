"""No file in git names a package registry, or a folder of the machine it was written on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Put together from pieces, so that this file passes its own test.
REGISTRIES = [
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("files", "python" + "hosted", "org"),
        ("download", "pytorch", "org"),
        ("conda", "anaconda", "org"),
        ("registry", "npmjs", "org"),
        ("deb", "debian", "org"),
        ("crates", "io"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
    )
]
HOMES = ("home", "root", "work", "Users")
FORBIDDEN = re.compile(
    "|".join(
        [
            *map(re.escape, REGISTRIES),
            rf"(?<![\w.])/(?:{'|'.join(HOMES)})/(?!me/)\w",
            r"\b[A-Z]:\\{1,2}Users\b",
        ]
    ).encode()
)


def files() -> list[Path]:
    """List what is in git or about to be."""
    answer = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in answer.stdout.split("\0") if name]


def test_no_file_names_a_place_of_its_author() -> None:
    # ONNX files too: exporters like to keep stack traces with paths.
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in files()
        if path.is_file()
        for match in FORBIDDEN.finditer(path.read_bytes())
    ]
    assert not found


@pytest.mark.parametrize(
    "text", [*REGISTRIES, *(f"cd /{home}/someone" for home in HOMES), "C:" + r"\Users\someone"]
)
def test_such_places_are_found(text: str) -> None:
    assert FORBIDDEN.search(text.encode())
