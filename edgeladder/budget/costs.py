"""What things cost in memory: coefficients fitted with `tools/bench/memory_grid.py`.

The grid's table, and which of its rows they were fitted on, are in docs/notes/memory.md.
"""

from __future__ import annotations

from dataclasses import dataclass

_MB = 1_000_000


@dataclass(frozen=True)
class Costs:
    """Fitted coefficients; bytes."""

    # training and evaluation
    node: int = 6_500  # of a loaded graph: kernels, shapes, names
    graph_file: float = 2.0  # times the file's size: the parsed model
    session: int = 1_300_000  # beside its nodes
    state_slack: float = 1.03  # allocator rounding on large buffers
    # beside the graph's own count, of a step: nano's needs as much at 10 and at 400 classes, alike
    # fused and recomputed; ViT-B/16's needs less. What holds it is not known
    picture_values: int = 50_000
    class_values: int = 27_000
    recompute: float = 1.4  # times the graph's own estimate: rungs overlap a little
    heap: int = 4 * _MB  # fragmentation and Python objects while training
    cache_reader: int = 2 * _MB  # index pages and one tensor in flight
    per_picture: int = 40  # place, label and order in the train worker
    per_view: int = 24  # key and place of a further view there
    sample_key: int = 120  # of a picture or a view in the precompute worker, until it is written
    start: int = 5 * _MB  # code and heap of opening the engine, before they settle
    evaluate_start: int = 3 * _MB  # further code at the start: heads, calibration, evaluation
    hot_code: int = 18 * _MB  # library code that training itself runs
    arena: int = 6 * _MB  # kept by onnxruntime's heap beside what is in use
    arena_share: float = 1.2  # of activations, lost to its rounding
    training_share: float = 1.25  # more of them alive in onnxruntime-training's own graph
    # precompute
    shard_buffer: int = 5 * _MB  # taps waiting for the next shard
    decoded_picture: int = 10 * _MB  # a picture of 2 megapixels while it is decoded
    decoded_pixel: float = 5.0  # 4 bytes of a decoded pixel, and its compressed file
    tokenizer: int = 12 * _MB  # its vocabulary
    tower_code: int = 14 * _MB  # library code and heap of opening and running segments
    segment_opening: float = 1.35  # times a segment's weights: its largest one is there twice
    stem_opening: float = 4.0  # a convolution's weights are reordered, with copies on the way
    # the same of a bottleneck, of whose convolutions one has half the weights (RN50x64's: 0.53)
    convolution_opening: float = 1.55
    token_table: float = 0.15  # of its bytes touched
    activation: float = 1.8  # times what export counts: inputs and outputs beside it, heap's gaps
    int8_activation: float = 1.45  # the same of int8 products, whose inputs wait as bytes
    map_activation: float = 1.28  # the same of a convolution's maps, see `tower_costs`
    whole_map_activation: float = 1.25  # and in a whole tower
    # predict and deploy
    loaded_head: float = 3.0  # times a head's stored fp16 arrays: themselves and in float32
    segment_session: int = 500_000
    resized_pixel: float = (
        64.0  # of a whole picture in a graph that resizes: float32 planes, thrice
    )


COSTS = Costs()

# an opened deployed file in shares of the model's fp32 bytes, from ViT-B/16: fp32 weights are used
# where the file was read to, fp16 ones are there twice, as read and widened once and for all, int8
# ones are copied as they are and widened a product at a time
DEPLOYED = {"fp32": 1.02, "fp16": 1.55, "int8-weights": 0.55}
