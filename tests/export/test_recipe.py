from pathlib import Path

import pytest

from export.model import family_names
from export.recipe import Recipe, read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_named_after_their_file(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.family in family_names()


def test_a_recipe_is_the_same_after_a_trip_through_json() -> None:
    recipe = read_recipe("nade-mnist")
    assert Recipe.model_validate_json(recipe.model_dump_json(indent=2)) == recipe


def test_overrides_replace_single_fields() -> None:
    recipe = read_recipe(
        "nade-mnist", ["training.epochs=3", "model.hidden=7", "data.source=/a/b=c.npz"]
    )
    assert recipe.training.epochs == 3
    assert recipe.model["hidden"] == 7
    assert recipe.data.source == "/a/b=c.npz"
    assert recipe.training.batch_size == read_recipe("nade-mnist").training.batch_size


def test_an_override_may_create_a_section() -> None:
    assert read_recipe("bernoulli-mnist", ["film.frames=5"]).film.frames == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "not of the form section.field=value"),
        ("training.epochs=0", "greater than 0"),
        ("training.epoch=3", "Extra inputs"),
        ("name.first=x", "name is no section"),
        ("model={", "not YAML"),
        ("name=Not A Name", "should match pattern"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe("nade-mnist", [override])


def test_a_recipe_may_lie_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\nfamily: nade\ndescription: Mine.\ndata: {source: x.npz}\n"
        "training: {epochs: 1, batch_size: 2}\n"
    )
    assert read_recipe(str(path)).name == "own"


@pytest.mark.parametrize("text", ["", "- a list", "a: {"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"own.yaml"):
        read_recipe(str(path))


def test_a_pretraining_differs_in_its_bits_and_steps_only() -> None:
    recipe = read_recipe("row-lstm-mnist")
    before = recipe.before()
    assert before is not None
    assert before.before() is None
    assert (before.protocol, recipe.protocol) == ("mnist-fixed", "mnist-dynamic")
    assert before.training.epochs == 12
    assert before.data.num_validation == recipe.data.num_validation

    fields = recipe.model_dump()
    fields["pretraining"]["binarization"] = "none"
    with pytest.raises(ValueError, match="8-bit images cannot start a model of binary ones"):
        Recipe.model_validate(fields)


def test_an_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match=r"nade-mnist.*or give a .yaml path"):
        read_recipe("unheard-of")


@pytest.mark.parametrize(
    ("source", "binarization", "protocol"),
    [
        ("mnist", "fixed", "mnist-fixed"),
        ("mnist", "dynamic", "mnist-dynamic"),
        ("/home/me/cats", "none", "cats-8-bit"),
    ],
)
def test_the_protocol_names_data_and_binarization(
    source: str, binarization: str, protocol: str
) -> None:
    overrides = [f"data.source={source}", f"data.binarization={binarization}"]
    assert read_recipe("nade-mnist", overrides).protocol == protocol


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        ({"binarization": "fixed"}, "mnist-fixed"),
        ({}, "mnist-8-bit"),
        ({"pool": 2, "dequantize": True}, "mnist-pool2-dequantized"),
        ({"crop": 3, "binarization": "dynamic"}, "mnist-crop3-dynamic"),
    ],
)
def test_the_protocol_names_what_was_done_to_the_images(
    data: dict[str, object], protocol: str
) -> None:
    fields = read_recipe("nade-mnist").model_dump() | {"data": {"source": "mnist"} | data}
    assert Recipe.model_validate(fields).protocol == protocol


def test_binary_images_are_not_dequantized() -> None:
    with pytest.raises(ValueError, match="dequantize and mutation need binarization: none"):
        read_recipe("nade-mnist", ["data.dequantize=true"])
