"""Operators that a bundle's graphs may use: those our exporter writes, and their like.

All of them are functions of their input tensors alone. Left out is whatever calls code or opens
files of its own (`PythonOp`, `ATen`, `EPContext`, `RegisterCustomOps` libraries), reads pictures or
text by other parsers (`ImageDecoder`, `StringNormalizer`), generates texts (`BeamSearch`) or loops.
Gathered from exports of every make the tests have (OpenAI ViT, SigLIP, EVA-02, EfficientNet,
ConvNeXt, FastViT, nano; fp32, fp16, int8, int8-weights), from the ladders' graphs and from
onnxruntime-training's artifacts; export checks each bundle against this list before anyone else
does.
"""

from __future__ import annotations

DEFAULT_DOMAINS = ("", "ai.onnx")

_ARITHMETIC = """
    Abs Add And Ceil Clip Cos Div Equal Erf Exp Floor Greater GreaterOrEqual Less LessOrEqual Log
    Max Mean Min Mod Mul Neg Not Or Pow Reciprocal Round Sign Sin Sqrt Sub Sum Where Xor
"""
_ACTIVATIONS = """
    Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax Mish PRelu Relu Selu Sigmoid Softmax
    Softplus Tanh
"""
_LAYERS = """
    AveragePool BatchNormalization Conv DequantizeLinear Einsum Gemm GlobalAveragePool
    GlobalMaxPool GroupNormalization InstanceNormalization LayerNormalization
    LpNormalization MatMul MatMulInteger MaxPool QuantizeLinear
"""
_SHAPES = """
    ArgMax ArgMin Cast CastLike Concat Constant ConstantOfShape CumSum DepthToSpace Expand Flatten
    Gather GatherElements GatherND Identity NonZero OneHot Pad Range Reshape ScatterElements
    ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unsqueeze
"""
_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
"""
# onnxruntime's own (domain com.microsoft): fused operators, gradients and optimisers
_MICROSOFT = """
    AdamWOptimizer BiasGelu BroadcastGradientArgs ConcatTraining ConvGrad DivGrad FastGelu
    FastGeluGrad FusedConv FusedGemm FusedMatMul GatherElementsGrad GatherGrad Gelu GeluGrad
    InPlaceAccumulatorV2 InplaceClipGradNorm LayerNormalizationGrad LogSoftmaxGrad
    LogSoftmaxGrad_13 MatMulIntegerToFloat MultiHeadAttention QuickGelu QuickGeluGrad
    ReduceSumTraining ReluGrad SGDOptimizerV2 Scale
    SigmoidGrad SkipLayerNormalization SliceGrad SoftmaxGrad SoftmaxGrad_13 SplitTraining TanhGrad
    ZeroGradient
"""
ALLOWED: dict[str, frozenset[str]] = {
    "ai.onnx": frozenset(
        " ".join((_ARITHMETIC, _ACTIVATIONS, _LAYERS, _SHAPES, _REDUCTIONS)).split()
    ),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}


def is_allowed(domain: str, operator: str) -> bool:
    """Whether a bundle's graph may have a node of this operator."""
    return operator in ALLOWED.get("ai.onnx" if domain in DEFAULT_DOMAINS else domain, ())
