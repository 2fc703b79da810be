"""API keys: the file that names them, and what each may do.

    [keys.shop]                     # the name that logs and metrics show
    sha256 = "9f86d081…"            # of the key, in hex; the key itself is nowhere
    routes = ["sample", "models"]   # first parts of paths; left out, all
    models = ["dcgan-fashion"]      # left out, all
    rows_per_minute = 600           # left out, any number
    burst_rows = 64                 # at once, after a rest; left out, those of a minute

    [anonymous]                     # who sends no key; left out, nobody
    routes = ["sample"]

`python -m service.keys shop >> keys.toml` adds a new key.
"""

import hashlib
import math
import re
import secrets
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

ANONYMOUS = "anonymous"

_NAME = r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?"

Route = Literal[
    "classify",
    "complete",
    "encode",
    "interpolate",
    "log_prob",
    "metrics",
    "models",
    "reconstruct",
    "sample",
    "v1",
    "v2",
]
"""First part of the paths that need a key; what is not here needs one that may do everything."""

Reference = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*(@[1-9][0-9]{0,8})?$")
]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)]
Name = Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]


class Grant(BaseModel):
    """What a caller may do; what is left out is not limited.

    Attributes:
        routes: First parts of the paths that it may ask.
        models: Names of models, or `name@version`.
        rows_per_minute: Rows that its requests may run through graphs, on average.
        burst_rows: Most rows at once; by default those of a minute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    routes: frozenset[Route] | None = None
    models: frozenset[Reference] | None = None
    rows_per_minute: float | None = Field(default=None, gt=0, le=1e9)
    burst_rows: int | None = Field(default=None, ge=1, le=10**9)

    @model_validator(mode="after")
    def _burst_has_a_rate(self) -> Self:
        if self.burst_rows is not None and self.rows_per_minute is None:
            raise ValueError("burst_rows without rows_per_minute has no meaning")
        return self

    @property
    def most_rows(self) -> int:
        """Rows that may be run at once after a rest; only where `rows_per_minute` is given."""
        return self.burst_rows or math.ceil(self.rows_per_minute or 0)


class KeyGrant(Grant):
    """What the owner of a key may do.

    Attributes:
        sha256: Of the key in UTF-8, in hex. A key of 32 random bytes cannot be found from it.
    """

    sha256: Digest


class KeyFile(BaseModel):
    """All keys, and what may be done without one.

    Attributes:
        keys: By their names.
        anonymous: What those may do who send no key; None for nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: dict[Name, KeyGrant] = {}
    anonymous: Grant | None = None

    @model_validator(mode="after")
    def _callers_can_be_told_apart(self) -> Self:
        if ANONYMOUS in self.keys:
            raise ValueError(f"no key can be named {ANONYMOUS}")
        names: dict[str, str] = {}
        for name, grant in self.keys.items():
            other = names.setdefault(grant.sha256, name)
            if other != name:
                raise ValueError(f"{other} and {name} have the same key")
        if not self.keys and self.anonymous is None:
            raise ValueError("there is no key, so that nobody could ask for anything")
        return self


def read_keys(path: Path) -> KeyFile:
    """Read a file of keys.

    Raises:
        ValueError: It cannot be read, or says what has no meaning; tells in one line.
    """
    try:
        return KeyFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        told = [
            ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise ValueError(f"{path}: {'; '.join(told)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{path}: {reason}") from error


def digest_of(key: bytes) -> str:
    """Return what the file knows a key by."""
    return hashlib.sha256(key).hexdigest()


def main() -> None:
    """Make a key: shown once on stderr, and as an entry for the file on stdout."""
    names = sys.argv[1:]
    if len(names) != 1 or not re.fullmatch(_NAME, names[0]) or names[0] == ANONYMOUS:
        print(
            "usage: python -m service.keys NAME >> keys.toml\n"
            "NAME: lower-case letters, digits, and - _ . between them",
            file=sys.stderr,
        )
        sys.exit(2)
    key = f"ptheta_{secrets.token_urlsafe(32)}"
    print(f"the key, which nothing will show again: {key}", file=sys.stderr)
    quoted = f'"{names[0]}"' if "." in names[0] else names[0]
    print(f'\n[keys.{quoted}]\nsha256 = "{digest_of(key.encode())}"')


if __name__ == "__main__":
    main()
