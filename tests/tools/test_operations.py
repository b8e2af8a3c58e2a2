"""Operations of a graph, against counts by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from edgeladder.core.config import LadderConfig, PromptConfig
from edgeladder.core.manifest import TapRecord
from edgeladder.host.compile.extent import symbol
from edgeladder.host.compile.graph import CONTRIB, Graph
from edgeladder.host.model.ladder import Ladder
from tools.bench import operations
from tools.bench.operations import Count

B = symbol("B")


def test_a_tiny_graph_counted_by_hand():
    graph = Graph("tiny")
    graph.add_input("x", (B, 3))
    graph.add_input("w", (3, 5))
    product = graph.emit("MatMul", ["x", "w"], (B, 5))  # B * 3 * 5
    active = graph.emit("Relu", [product], (B, 5))  # B * 5
    turned = graph.emit("Transpose", [active], (5, B), perm=[1, 0])
    square = graph.emit("Gemm", [turned, turned], (B, B), transA=1, transB=1)  # B * B * 5
    total = graph.emit("ReduceSum", [square, "axes"], (B, 1), keepdims=1)  # reads B * B
    graph.emit("Softmax", [total], (B, 1), axis=-1)  # reads B
    assert operations.count(graph, {"B": 2}) == Count(2 * 15 + 4 * 5, 2 * 5 + 4 + 2)


@pytest.mark.parametrize(
    ("left", "flags", "inner"),
    [
        ((4, 7, 6), {}, 6),
        ((4, 6, 7), {"transA": 1}, 6),
        ((7, 4, 6), {"transBatchA": 1}, 6),
        ((6, 4, 7), {"transA": 1, "transBatchA": 1}, 6),
    ],
)
def test_products_that_read_their_operand_turned(left, flags, inner):
    graph = Graph("fused")
    graph.add_input("a", left)
    graph.add_input("b", (4, inner, 2))
    graph.emit("FusedMatMul", ["a", "b"], (4, 7, 2), domain=CONTRIB, **flags)
    assert operations.count(graph, {}) == Count(4 * 7 * 2 * inner, 0)


def ladder(kind, length, tokens=3):
    config = LadderConfig(
        width=8, heads=2, hidden=2, prompts=PromptConfig(kind=kind, length=length)
    )
    taps = [TapRecord(name=f"tap_{k}", block=k, tokens=tokens, width=12) for k in range(2)]
    return Ladder(config, taps, taps, 6)


def test_what_prompts_add_to_a_picture():
    """Two rungs of width 8, three tokens: T m d for the scores and T m d for what is read."""
    base = operations.cost(ladder("none", 1))
    for kind in ("token", "diffusion"):
        found = operations.cost(ladder(kind, 5))
        assert (found.forward - base.forward).products == 2 * 2 * (3 * 5 * 8)
        assert found.once.products > base.once.products and found.training.products
    # queries of their own, and an output projection: 2 T d^2 more
    cross = operations.cost(ladder("cross", 5))
    assert (cross.forward - base.forward).products == 2 * (2 * 3 * 5 * 8 + 2 * 3 * 8 * 8)


def test_prompts_as_rows_are_a_longer_block():
    down = 2 * 12 * 8  # of a token: what projects the taps is no part of the rungs
    base, longer = (operations.cost(ladder("none", 1, tokens)).forward for tokens in (3, 3 + 5))
    assert (longer - base).products == operations.as_rows(ladder("none", 1), 5) + 5 * down


def test_prompts_in_a_block_of_a_backbone():
    """Two prompts in a block of three tokens and width 4: 12 d^2 a row; 25 scores for 9, twice."""
    deep, diffused = 2 * 12 * 16 + 2 * 4 * (25 - 9), 2 * 3 * 2 * 4
    assert operations.rows(3, 4, 16, 2) == deep
    line = operations.in_a_block(3, 4, [2])[-1]
    assert line == f"| 2 | +{deep} | +{diffused} | {100 * (diffused / deep - 1):.1f} % |"
