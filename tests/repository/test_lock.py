"""The lock pins every dependency of the service, by hash, and names no place to get it from."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def locked() -> list[tuple[Requirement, list[str]]]:
    """Read the lock as (requirement, hashes); a name may have one entry per marker."""
    lines = re.sub(r"^\s*#.*\n", "", LOCK, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    split = [re.split(r"\s--hash=", line) for line in lines if line.strip()]
    return [(Requirement(first), [each.strip() for each in rest]) for first, *rest in split]


def test_every_requirement_is_pinned_with_hashes() -> None:
    assert locked()
    for requirement, hashes in locked():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_it_names_no_place() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-i|-f|--(?!hash=))", LOCK, flags=re.MULTILINE)


def test_it_fits_pyproject() -> None:
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked():
        pin = str(requirement.specifier).removeprefix("==")
        versions.setdefault(requirement.name, []).append(pin)
    for wanted in map(Requirement, EXTRAS["service"]):
        assert wanted.name in versions, f"{wanted}: run `make lock`"
        assert all(map(wanted.specifier.contains, versions[wanted.name])), (
            f"{wanted}: run `make lock`"
        )


def test_it_has_no_torch() -> None:
    names = {requirement.name for requirement, _ in locked()}
    assert not names & {"torch", "lightning", "onnx", "onnxscript"}
