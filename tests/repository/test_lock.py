"""The locks pin every dependency of the service, by hash, and name no place to get it from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
LOCKS = {"service": "requirements.lock", "gpu": "requirements-gpu.lock"}

Locked = list[tuple[Requirement, list[str]]]

pytestmark = pytest.mark.parametrize("extra", LOCKS)


@pytest.fixture
def lock(extra: str) -> str:
    return (ROOT / LOCKS[extra]).read_text(encoding="utf-8")


@pytest.fixture
def locked(lock: str) -> Locked:
    """Read the lock as (requirement, hashes); a name may have one entry per marker."""
    lines = re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    split = [re.split(r"\s--hash=", line) for line in lines if line.strip()]
    return [(Requirement(first), [each.strip() for each in rest]) for first, *rest in split]


def wanted_by(extra: str) -> list[Requirement]:
    """List what an extra asks for; `ptheta[core]` stands for what that one asks for."""
    asked = map(Requirement, EXTRAS[extra])
    return [
        each
        for requirement in asked
        for each in (
            [wanted for inner in requirement.extras for wanted in wanted_by(inner)]
            if requirement.name == "ptheta"
            else [requirement]
        )
    ]


def test_every_requirement_is_pinned_with_hashes(locked: Locked) -> None:
    assert locked
    for requirement, hashes in locked:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_it_names_no_place(lock: str) -> None:
    assert "://" not in lock
    assert not re.search(r"^\s*(-i|-f|--(?!hash=))", lock, flags=re.MULTILINE)


def test_it_fits_pyproject(extra: str, locked: Locked) -> None:
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked:
        pin = str(requirement.specifier).removeprefix("==")
        versions.setdefault(requirement.name, []).append(pin)
    wanted = wanted_by(extra)
    assert len(wanted) > 5
    for each in wanted:
        assert each.name in versions, f"{each}: run `make lock`"
        assert all(map(each.specifier.contains, versions[each.name])), f"{each}: run `make lock`"


def test_it_has_no_torch(locked: Locked) -> None:
    names = {requirement.name for requirement, _ in locked}
    assert not names & {"torch", "lightning", "onnx", "onnxscript"}
