"""The file of API keys: what it may say, what is told of what it may not, and how keys are made."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.app import create_app
from service.gate import is_open
from service.keys import ANONYMOUS, Grant, digest_of, read_keys
from service.settings import Settings
from tests.service.conftest import Start
from tests.service.process import REPOSITORY

DIGEST = digest_of(b"open sesame")
SHOP = f'[keys.shop]\nsha256 = "{DIGEST}"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text)
    return path


def test_what_is_left_out_is_not_limited(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path, SHOP))
    assert keys.anonymous is None
    shop = keys.keys["shop"]
    assert (shop.routes, shop.models, shop.rows_per_minute) == (None, None, None)


def test_all_that_can_be_said(tmp_path: Path) -> None:
    limits = (
        'routes = ["sample"]\nmodels = ["a-b", "a-c@2"]\nrows_per_minute = 90\nburst_rows = 7\n'
    )
    keys = read_keys(write(tmp_path, f"{SHOP}{limits}[anonymous]\nrows_per_minute = 0.5\n"))
    shop = keys.keys["shop"]
    assert shop.sha256 == DIGEST
    assert shop.routes == {"sample"}
    assert shop.models == {"a-b", "a-c@2"}
    assert (shop.rows_per_minute, shop.most_rows) == (90, 7)
    assert keys.anonymous is not None
    assert keys.anonymous.most_rows == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no key"),
        ("[keys", "at end of document"),
        ("[keys.shop]", "keys.shop.sha256: Field required"),
        ('[keys.shop]\nsha256 = "secret"', "keys.shop.sha256: String should match"),
        (f'[keys."a b"]\nsha256 = "{DIGEST}"', "String should match"),
        (f'[keys.anonymous]\nsha256 = "{DIGEST}"', "no key can be named anonymous"),
        (f"{SHOP}{SHOP.replace('shop', 'other')}", "shop and other have the same key"),
        (f'{SHOP}routes = ["smaple"]', "keys.shop.routes.0: Input should be 'classify'"),
        (f'{SHOP}models = ["A"]', "keys.shop.models.0: String should match"),
        (f"{SHOP}rows_per_minute = 0", "keys.shop.rows_per_minute: Input should be greater"),
        (f"{SHOP}burst_rows = 5", "burst_rows without rows_per_minute"),
        (f"{SHOP}row_per_minute = 5", "keys.shop.row_per_minute: Extra inputs"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        read_keys(write(tmp_path, text))
    told = str(caught.value)
    assert told.startswith(f"{tmp_path}/keys.toml: ")
    assert "\n" not in told
    assert "secret" not in told  # whoever writes a key where its digest belongs


def test_a_file_that_is_not_there_ends_the_server_with_a_reason(
    start: Start, tmp_path: Path
) -> None:
    process = start(api_keys_file=tmp_path / "nowhere.toml")
    assert process.wait() == 2
    (told,) = process.log
    assert told == f"PTHETA_API_KEYS_FILE: {tmp_path}/nowhere.toml: No such file or directory\n"


def test_a_digest_may_be_written_in_capitals(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path, SHOP.replace(DIGEST, DIGEST.upper())))
    assert keys.keys["shop"].sha256 == DIGEST


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "service.keys", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["shop", "shop.eu-1"])
def test_a_key_is_made_that_its_entry_knows(tmp_path: Path, name: str) -> None:
    made = make(name)
    key = made.stderr.split()[-1]
    assert key not in made.stdout  # which goes to the file
    keys = read_keys(write(tmp_path, made.stdout))
    assert keys.keys[name].sha256 == digest_of(key.encode())
    assert len(key) > 40


def test_no_key_is_made_twice() -> None:
    assert make("shop").stdout != make("shop").stdout


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a b"], ["-h"], [ANONYMOUS]])
def test_a_name_that_cannot_be_is_refused(arguments: list[str]) -> None:
    made = make(*arguments)
    assert made.returncode == 2
    assert made.stdout == ""
    assert "usage: " in made.stderr


def test_the_routes_that_can_be_allowed_are_those_that_need_a_key() -> None:
    paths = [path for path in create_app(Settings()).openapi()["paths"] if not is_open(path)]
    schema = Grant.model_json_schema()["properties"]["routes"]["anyOf"][0]["items"]
    assert {path.split("/")[1] for path in paths} == set(schema["enum"])
