"""What families share, in a graph: the same bits in every batch, and steps that are steps."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.convert import realigned, write_graph
from export.graph import Graph
from export.layers import in_fours, out_of_fours
from export.operators import is_positive


class Product(nn.Module):
    """Rows times a column, (N, H) -> (N, 1)."""

    def __init__(self, num_terms: int) -> None:
        super().__init__()
        self.column = nn.Buffer(torch.randn(num_terms, 1, generator=torch.manual_seed(0)))

    def forward(self, rows: Tensor) -> Tensor:
        fours = in_fours(rows)
        return out_of_fours(torch.addmm(fours[:, :1], fours, self.column), rows)


@pytest.mark.parametrize("num_terms", [3, 20, 500, 512])
def test_rows_in_fours_have_the_same_sums_in_every_batch(tmp_path: Path, num_terms: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((70, num_terms), dtype=np.float32)
    module, path = Product(num_terms), tmp_path / "graph.onnx"
    write_graph(module, ["product"], {"rows": rows[:7]}, path)
    graph = Graph(path, len(rows))
    together = graph({"rows": rows})["product"]
    np.testing.assert_allclose(together, module(torch.from_numpy(rows)).numpy(), atol=1e-4)
    for batch in (*range(1, 10), 15, 17, 33, 62, 63, 64, 65):
        for start in range(0, len(rows) - batch + 1, 3):
            part = realigned(rows[start : start + batch])
            alone = graph({"rows": part})["product"]
            assert alone.tobytes() == together[start : start + batch].tobytes(), (batch, start)


class Step(nn.Module):
    """Whether a product with 1 and a shift is positive, (N, 1) and (N, 1) -> (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Buffer(torch.ones(1, 1))

    def forward(self, rows: Tensor, shifts: Tensor) -> Tensor:
        return is_positive(torch.addmm(shifts, rows, self.one))


def test_a_step_is_0_or_1_for_every_number(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    numbers = np.array([0, -0.0, 1e-37, 1e-7, 0.3, 1, 80, 1e30, np.inf], dtype=np.float32)
    rows, shifts = (axis.reshape(-1, 1) for axis in np.meshgrid([*numbers, *-numbers], numbers))
    finite = (np.isfinite(rows) | np.isfinite(shifts) | (rows > 0))[:, 0]  # not ∞ - ∞
    inputs = {"rows": rows[finite], "shifts": shifts[finite]}
    write_graph(Step(), ["step"], inputs, path)
    assert {node.op_type for node in onnx.load(path).graph.node} == {"Gemm", "HardSigmoid"}
    expected = inputs["rows"] + inputs["shifts"] > 0
    for start in range(len(expected)):
        part = {name: values[start:] for name, values in inputs.items()}
        np.testing.assert_array_equal(Graph(path)(part)["step"], expected[start:])
    drawn = Step()(*map(torch.from_numpy, inputs.values()))
    np.testing.assert_array_equal(drawn.numpy(), expected)
