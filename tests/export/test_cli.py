import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from export.__main__ import main
from export.recipe import recipe_names
from service.manifest import read_manifest, sha256_of

TINY = ["--set", "model.hidden=5", "--set", "training.batch_size=10", "--threads", "1"]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHETA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PTHETA_DATA", str(tmp_path / "data"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for kind in ("circles", "squares"):
        (folder / kind).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 256, (9, 9), dtype=np.uint8)
            PillowImage.fromarray(pixels).save(folder / kind / f"{index}.png")
    return folder


def test_from_a_folder_of_pictures_to_a_published_model(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(pictures), "--set", "data.size=6", "--name", "shapes"]
    store = ["--store", str(tmp_path / "store")]
    training = ["train", "nade-mnist", *data, *TINY, "--set", "training.epochs=2"]

    assert main([*training, "--stop-after", "1"]) == 0
    assert "has epochs left" in capsys.readouterr().out
    assert main(["publish", "shapes", *store]) == 1
    assert "has done 1 of 2 epochs" in capsys.readouterr().err

    assert main(training) == 0
    assert "next: python -m export convert shapes" in capsys.readouterr().out
    assert main(["convert", "shapes"]) == 0
    assert "agrees with torch" in capsys.readouterr().out
    assert main(["evaluate", "shapes"]) == 0
    assert "nll" in capsys.readouterr().out
    assert main(["publish", "shapes", *store]) == 0
    assert "is published" in capsys.readouterr().out

    folder = tmp_path / "store" / "shapes" / "1"
    manifest = read_manifest(folder)
    assert manifest.image.shape == (1, 6, 6)
    assert manifest.training.recipe["data"]["source"] == "pictures"
    for graph in manifest.graphs.values():
        assert sha256_of(folder / graph.file) == graph.sha256
    for name, sha256 in manifest.files.items():
        assert sha256_of(folder / name) == sha256

    assert main(["list", *store]) == 0
    assert "recipes of your own: shapes" in capsys.readouterr().out


def test_list_shows_every_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--store", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in recipe_names():
        assert any(line.startswith(name) and "not published" in line for line in lines)


def test_data_shows_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert "missing: data fetch mnist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "unheard-of"], "no recipe 'unheard-of'; shipped ones:"),
        (["train", "nade-mnist"], "run `python -m export data fetch mnist`"),
        (["train", "nade-mnist", "--set", "training.epochs=x"], "training.epochs: Input should"),
        (["train", "nade-mnist", "--name", "No Name"], "name: String should match pattern"),
        (["train", "nade-mnist", "--set", "model.hiden=3", "--data", "DATA"], "hiden: Extra"),
        (["train", "nade-mnist", "--data", "/nowhere"], "nor an .npz file nor a folder"),
        (["convert", "nothing"], "there is no run"),
        (["evaluate", "nothing"], "there is no run"),
        (["publish", "nothing"], "there is no run"),
        (["data", "fetch", "emoji32"], "cannot be downloaded"),
        (["data", "fetch", "unheard-of"], "no data set 'unheard-of'"),
        (["data", "fetch", "mnist", "--mirror", "http://127.0.0.1:1/"], "no mirror gave train"),
    ],
)
def test_a_mistake_of_the_user_is_one_clear_line(
    arguments: list[str], message: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(pictures) if a == "DATA" else a for a in arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("arguments", [[], ["unheard-of"], ["train", "x", "--threads", "0"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m export" in capsys.readouterr().err


def test_a_run_stopped_in_its_pretraining_cannot_be_published_yet(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images of one's own are those of the pretraining, too."""
    changes = ["model.num_layers=1", "model.hidden=2", "model.head=2", "data.size=6"]
    changes += ["training.epochs=1", "training.batch_size=8"]
    changes += ["pretraining.training.epochs=2", "pretraining.training.batch_size=8"]
    training = ["train", "row-lstm-mnist", "--name", "shapes", "--data", str(pictures)]
    training += [part for change in changes for part in ("--set", change)]
    assert main([*training, "--stop-after", "2"]) == 0
    assert "has epochs left" in capsys.readouterr().out
    assert main(["publish", "shapes", "--store", str(tmp_path / "store")]) == 1
    assert "or is still in its pretraining" in capsys.readouterr().err
    assert main(training) == 0
    assert "next: python -m export convert shapes" in capsys.readouterr().out


def test_a_data_path_that_looks_like_a_number_stays_a_path(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "nade-mnist", "--data", "2024"]) == 1
    assert "data.source '2024' is neither" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; import runpy\n"
    code += "try: runpy.run_module('export', run_name='__main__')\n"
    code += "except SystemExit: sys.exit('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "The usual order: train, convert, evaluate, publish" in answer.stdout
