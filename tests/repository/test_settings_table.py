"""The configuration table of the README says what the settings are."""

from pathlib import Path

import pytest

from service.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_the_readme_tells_default_and_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    default = str(field.default)
    if field.default is None:
        default = "–"
    elif isinstance(field.default, bool):
        default = f"`{default.lower()}`"
    else:
        default = f"`{default}`"
    assert f"| `PTHETA_{name.upper()}` | {default} | {field.description} |" in README
