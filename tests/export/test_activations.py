"""What a node puts out per row: inside loops too, constants aside."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from export.activations import activation_bytes, golden_inputs_of
from service.manifest import Role, read_manifest

DOUBLE = """
<ir_version: 10, opset_import: ["" : 18]>
widen (float[N, 3] x) => (float[N, 4] y)
{
    shape = Constant<value = int64[2] {5, 1000}>()
    zero = ConstantOfShape(shape)
    total = ReduceSum<keepdims = 0>(zero)
    wide = Concat<axis = 1>(x, x, x, x)
    axes = Constant<value = int64[1] {1}>()
    sums = ReduceSum<keepdims = 1>(wide, axes)
    parts = Concat<axis = 1>(sums, sums, sums, sums)
    y = Add(parts, total)
}
"""


def test_the_widest_node_is_found(tmp_path: Path) -> None:
    path = tmp_path / "generate.onnx"
    onnx.save(onnx.parser.parse_model(DOUBLE), path)
    x = np.ones((6, 3), np.float32)
    assert activation_bytes(path, {"x": x}) == 4 * 3 * 4
    assert activation_bytes(path, {"x": x[:2]}) == 4 * 3 * 4


def test_one_row_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two rows"):
        activation_bytes(tmp_path / "generate.onnx", {"x": np.ones((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("reference", "role", "widest"),
    [
        # behind the first transposed convolution
        ("dcgan-fashion/2", "generate", 96 * 14 * 14),
        ("gan-mnist/1", "generate", 784),
        # what the loop returns: the pixels, and the last state
        ("nade-mnist/2", "generate", 784 + 500),
        # the last feature map of the decoder, for one importance sample
        ("vae-mnist/1", "log_prob", 16 * 14 * 14),
    ],
)
def test_shipped_manifests_tell_it(reference: str, role: Role, widest: int) -> None:
    folder = Path("model_store") / reference
    graph = read_manifest(folder).graphs[role]
    assert graph.activation_bytes == 4 * widest
    inputs = golden_inputs_of(folder, role)
    assert activation_bytes(folder / graph.file, inputs) == 4 * widest
