from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

from export.convert import check_graph, convert, export_graph, golden_inputs, prune, realigned
from export.data import load_split
from export.graph import Graph
from export.recipe import Recipe
from export.train import new_model
from service.images import to_pixels
from tests.export.conftest import GANS

Run = tuple[Recipe, Path]


def test_golden_arrays_replay(finished_run: Run) -> None:
    _, run = finished_run
    with np.load(run / "bundle" / "golden.npz") as golden:
        arrays = dict(golden)
    for path in (run / "bundle").glob("*.onnx"):
        graph = Graph(path)
        inputs = {name: arrays.pop(f"{path.stem}.{name}") for name in graph.inputs}
        for name, values in graph(inputs).items():
            np.testing.assert_array_equal(values, arrays.pop(f"{path.stem}.{name}"))
            assert len(values) == 8
    assert not arrays


@pytest.mark.parametrize("finished_run", ["nade"], indirect=True)
def test_golden_inputs_reach_everything_that_a_graph_can_do(finished_run: Run) -> None:
    _, run = finished_run
    with np.load(run / "bundle" / "golden.npz") as golden:
        assert len(set(golden["generate.temperature"])) == 8
        masks = golden["generate.known_mask"]
        known = golden["generate.known"] == golden["generate.image"]
    assert masks[::2, :, :4].all()
    assert not masks[::2, :, 4:].any()
    assert not masks[1::2].any()
    assert known[masks == 1].all()


def test_tensors_are_named_by_the_contract(finished_run: Run) -> None:
    recipe, run = finished_run
    generate = Graph(run / "bundle" / "generate.onnx")
    assert list(generate.outputs) == ["image"]
    assert all(shape[0] == "batch" for shape in generate.inputs.values())
    if recipe.family in GANS:
        assert list(generate.inputs) == ["noise", *["label"] * (recipe.family == "cgan")]
        assert not (run / "bundle" / "log_prob.onnx").exists()
    else:
        assert list(generate.inputs) == ["noise", "temperature", "known", "known_mask"]
        log_prob = Graph(run / "bundle" / "log_prob.onnx")
        assert list(log_prob.inputs) == ["image"]
        assert list(log_prob.outputs) == ["log_prob", "conditional_log_prob"]


def test_graphs_are_small_and_hold_no_path_of_a_machine(finished_run: Run) -> None:
    _, run = finished_run
    for path in (run / "bundle").glob("*.onnx"):
        content = path.read_bytes()
        assert not any(
            trace in content for trace in (b".py", b"stack_trace", b"site-packages", b"/export/")
        )
        weights = onnx.load(path).graph.initializer
        assert len(content) < 1.2 * sum(len(w.raw_data) for w in weights) + 12_000


def test_weights_are_stored_once(finished_run: Run) -> None:
    _, run = finished_run
    for path in (run / "bundle").glob("*.onnx"):
        large = [w.raw_data for w in onnx.load(path).graph.initializer if len(w.raw_data) > 400]
        assert len(large) == len(set(large))


def test_nothing_is_stored_that_nobody_reads() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    outer (bool choice, float[2] x) => (float[2] y)
    <float[2] read = {1, 2}, float[2] read_inside = {3, 4}, float[2] unread = {5, 6}> {
        size = Shape <start = 0, end = 1> (x)
        y = If (choice) <
            then_branch = yes () => (float[2] z) <float[2] lost = {7, 8}> { z = Add (x, read) },
            else_branch = no () => (float[2] z) { z = Add (x, read_inside) }
        >
    }"""
    content = onnx.parser.parse_model(text)
    prune(content.graph)
    assert [tensor.name for tensor in content.graph.initializer] == ["read", "read_inside"]
    _, branches = content.graph.node
    assert [len(branch.g.initializer) for branch in branches.attribute] == [0, 0]
    onnx.checker.check_model(content, full_check=True)


def test_graphs_have_no_random_operator(finished_run: Run) -> None:
    _, run = finished_run
    for path in (run / "bundle").glob("*.onnx"):
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert not {name for name in operators if "Random" in name or name == "Dropout"}


def test_the_graph_draws_what_the_film_showed_last(finished_run: Run) -> None:
    """Training, checkpoint and conversion hold the same weights, averaged ones included."""
    recipe, run = finished_run
    graph = Graph(run / "bundle" / "generate.onnx")
    model = new_model(recipe, load_split(recipe.data))
    inputs = graph.neutral_inputs(model.noise.prior, 6, model.num_classes)
    drawn = to_pixels(graph(inputs)["image"]).astype(int)
    with np.load(run / "film.npz") as film:
        # A grey level of 255 steps may fall to either side.
        assert np.abs(drawn - film["frames"][-1]).max() <= (1 if recipe.family in GANS else 0)


def test_batch_normalization_is_exported_with_running_statistics(
    make_recipe: Any, tmp_path: Path
) -> None:
    """Otherwise a row would depend on its batch."""
    recipe = make_recipe("dcgan")
    model = new_model(recipe, load_split(recipe.data))
    module = model.graphs()["generate"].train()
    noise = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    export_graph(module, "generate", {"noise": noise}, tmp_path / "generate.onnx")
    graph = Graph(tmp_path / "generate.onnx")
    together, alone = graph({"noise": noise})["image"], graph({"noise": noise[3:4]})["image"]
    assert together[3:4].tobytes() == alone.tobytes()


class Double(nn.Module):
    def forward(self, noise: Tensor) -> Tensor:
        return 2 * noise


class Triple(nn.Module):
    def forward(self, noise: Tensor) -> Tensor:
        return 3 * noise


class Strange(nn.Module):
    def forward(self, noise: Tensor, flavour: Tensor) -> Tensor:
        return noise * flavour


def test_a_graph_that_disagrees_with_torch_is_refused(tmp_path: Path) -> None:
    inputs = {"noise": np.ones((8, 3), dtype=np.float32)}
    export_graph(Double(), "generate", inputs, tmp_path / "generate.onnx")
    check_graph(tmp_path / "generate.onnx", Double(), inputs)
    with pytest.raises(ValueError, match=r"generate.onnx, batch 1, image: .* differ by up to 1,"):
        check_graph(tmp_path / "generate.onnx", Triple(), inputs)


@pytest.mark.parametrize(("num_wrong", "accepted"), [(1, True), (2, False)])
def test_as_large_a_share_of_rows_may_differ_as_is_spared(
    tmp_path: Path, num_wrong: int, accepted: bool
) -> None:
    class WrongAtTheEnd(nn.Module):
        def forward(self, noise: Tensor) -> Tensor:
            return torch.cat([2 * noise[:-num_wrong], 3 * noise[-num_wrong:]])

    inputs = {"noise": np.ones((8, 3), dtype=np.float32)}
    path = tmp_path / "generate.onnx"
    export_graph(Double(), "generate", inputs, path)
    with nullcontext() if accepted else pytest.raises(ValueError, match="batch 2, image: "):
        check_graph(path, WrongAtTheEnd(), inputs, spare_share=0.25)
    with pytest.raises(ValueError, match="batch 1, image: "):
        check_graph(path, WrongAtTheEnd(), inputs)


def test_nan_where_torch_has_none_is_refused(tmp_path: Path) -> None:
    inputs = {"noise": np.full((8, 3), np.inf, dtype=np.float32)}
    export_graph(Double(), "generate", inputs, tmp_path / "generate.onnx")

    class Nan(nn.Module):
        def forward(self, noise: Tensor) -> Tensor:
            return torch.where(noise.isinf(), torch.nan, noise)

    with pytest.raises(ValueError, match="image: ONNX Runtime and torch differ"):
        check_graph(tmp_path / "generate.onnx", Nan(), inputs)


def test_an_input_that_bundles_do_not_know_is_refused(make_recipe: Any) -> None:
    recipe = make_recipe("nade")
    split = load_split(recipe.data)
    with pytest.raises(ValueError, match=r"Strange.forward takes flavour; graphs take noise"):
        golden_inputs(new_model(recipe, split), Strange(), split.test)


def test_conversion_needs_a_checkpoint(make_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"last.ckpt is missing"):
        convert(make_recipe("nade"), tmp_path)


def test_a_realigned_copy_starts_off_the_boundary_of_a_register() -> None:
    values = np.arange(64, dtype=np.float32)
    copy = realigned(values)
    np.testing.assert_array_equal(copy, values)
    assert copy.ctypes.data % 16


def test_a_missing_graph_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `python -m export convert`"):
        Graph(tmp_path / "generate.onnx")


def test_a_graph_runs_many_rows_in_batches(finished_run: Run) -> None:
    recipe, run = finished_run
    path = run / "bundle" / "generate.onnx"
    model = new_model(recipe, load_split(recipe.data))
    inputs = Graph(path).neutral_inputs(model.noise.prior, 50, model.num_classes)
    small, large = Graph(path, 7)(inputs)["image"], Graph(path, 100)(inputs)["image"]
    assert small.tobytes() == large.tobytes()
