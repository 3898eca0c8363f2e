"""What TensorRT 10.3's ONNX parser takes, as data: operators, their types, and conditions that a graph shows.

10.3 is the project's floor (JetPack 6.1 and 6.2); later parsers take more. The facts are those of docs/operators.md and
the importers of onnx/onnx-tensorrt at 10.1-GA (96e7811, 2024-06-17), read on 2026-11-21. Its changelog adds for 10.2 no
operator, and for 10.3 (2024-08-07) only that Slice takes axes that are no constants. Later versions lifted some of the
conditions below (on axes of Pad in 10.4, of Squeeze and Unsqueeze in 10.7); docs/operators.md of 10.15 still has every
row of this table.

Not listed, and so refused, although the parser has them: control flow, recurrent layers, Q/DQ (what is quantised goes
through the plugin), random numbers, and operators whose conditions a graph does not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

VERSION = "10.3"
OPSETS = range(9, 21)  # "in the inclusive range of opset 9 to opset 20"
MAX_RANK = 8  # nvinfer1::Dims::MAX_DIMS

_D = ir.DataType
FLOATS = frozenset({_D.FLOAT, _D.FLOAT16, _D.BFLOAT16})
NUMBERS = FLOATS | {_D.INT32, _D.INT64}
ALL = NUMBERS | {_D.BOOL}  # UINT8 only as a network's input or output, which we do not need

# DOUBLE weights and casts become FLOAT when they are imported (WeightsContext::convertDouble, convertDtype).
IMPORTED_AS = {_D.DOUBLE: _D.FLOAT}


@dataclass(frozen=True)
class Operator:
    """Types and conditions of one operator.

    types       element types of its data
    data        names of the type variables in ONNX's definition that are its data; none: that of the first input
    constant    positions of inputs that must be constants
    attributes  {name: values that it may have}; others are free
    outputs     how many outputs it may have; None: any number
    """

    types: frozenset[ir.DataType]
    data: tuple[str, ...] = ()
    constant: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    outputs: int | None = None


def _rows(names: str, operator: Operator) -> dict[str, Operator]:
    return dict.fromkeys(names.split(), operator)


OPERATORS: dict[str, Operator] = {
    **_rows(
        "Acos Acosh Asin Asinh Atan Atanh BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh Einsum Elu Erf "
        "Exp Floor Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid HardSwish IsInf LRN LeakyRelu "
        "Log LogSoftmax LpNormalization MatMul MeanVarianceNormalization PRelu Reciprocal Round Selu Sigmoid Sin Sinh "
        "Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu",
        Operator(FLOATS),
    ),
    **_rows(
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod "
        "Mul Neg Range Relu ScatterElements Shrink Sign SpaceToDepth Sub Sum",
        Operator(NUMBERS),
    ),
    **_rows(
        "Concat Expand Flatten Gather GatherElements GatherND Identity Reshape ReverseSequence Shape Size Slice Split "
        "Tile Transpose Trilu",
        Operator(ALL),
    ),
    **_rows(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare",
        Operator(NUMBERS, constant=(1,)),
    ),
    **_rows("And Not Or Xor", Operator(frozenset({_D.BOOL}))),
    **_rows("Cast CastLike", Operator(ALL, data=("T1", "T2"))),
    **_rows(
        "AveragePool LpPool MaxPool",
        Operator(FLOATS, attributes={"dilations": ((1,), (1, 1), (1, 1, 1))}, outputs=1),
    ),
    "Constant": Operator(ALL),  # sparse and string values have none of these types
    "ConstantOfShape": Operator(ALL, data=("T2",)),
    "CumSum": Operator(FLOATS, constant=(1,)),
    # The table says BF16, too; the importer accepts FLOAT and HALF alone.
    "InstanceNormalization": Operator(frozenset({_D.FLOAT, _D.FLOAT16})),
    "LayerNormalization": Operator(FLOATS, outputs=1),
    "Mish": Operator(frozenset({_D.FLOAT, _D.FLOAT16})),
    "NonZero": Operator(frozenset({_D.FLOAT, _D.FLOAT16})),
    "Pad": Operator(NUMBERS, constant=(3,)),
    "Pow": Operator(FLOATS, data=("T", "T1")),
    "Resize": Operator(
        FLOATS,
        attributes={
            "antialias": (0,),
            "coordinate_transformation_mode": (
                "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
            ),
            "keep_aspect_ratio_policy": ("stretch",),
            "mode": ("nearest", "linear"),
        },
    ),  # fmt: skip
    "ScatterND": Operator(NUMBERS, attributes={"reduction": ("none",)}),
    "Squeeze": Operator(ALL, constant=(1,)),
    "TopK": Operator(NUMBERS, attributes={"sorted": (1,)}),
    "Unsqueeze": Operator(ALL, constant=(1,)),
    "Where": Operator(ALL, data=("T",)),
}  # fmt: skip
