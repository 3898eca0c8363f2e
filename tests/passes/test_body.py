"""The function body's quantisation, seen through a weight that shows the codes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes.fuse import _function, template
from plugins.svdq_linear.reference import quantize_activation
from plugins.svdq_linear.spec import DOMAIN, GELU_SHIFT, OP_TYPE, Variant

GROUP = 64


def show(variant: Variant, x: np.ndarray) -> np.ndarray:
    """y of a layer whose weight is the identity: the dequantised activation itself, rounded to x's type."""
    dtype = ir.DataType.from_numpy(x.dtype)
    constants = {
        "qweight": np.eye(GROUP, dtype=np.int8).astype(ml_dtypes.int4),
        "wscale": np.ones((GROUP, 1), x.dtype),
        "inv_smooth": np.ones(GROUP, x.dtype),
        "bias": np.zeros(GROUP, x.dtype),
    }
    values = [ir.Value(name=n, const_value=ir.tensor(v, name=n)) for n, v in constants.items()]
    given = ir.Value(name="x", shape=ir.Shape(["M", GROUP]), type=ir.TensorType(dtype))
    pattern = template(variant, GROUP)
    node = ir.node(
        OP_TYPE, [given, *values], variant.attributes(0), domain=DOMAIN, overload=pattern.overload, num_outputs=1
    )
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(dtype)
    graph = ir.Graph(
        [given], node.outputs, nodes=[node], initializers=values, opset_imports={"": 21, DOMAIN: 1}, name="g"
    )
    model = ir.Model(graph, ir_version=10, functions=[_function(pattern)])
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("exponent", [-7.0, -6.5, -5.0, 0.0, 3.0])
@pytest.mark.parametrize(
    "variant",
    [Variant(branch=False), Variant(act_bits=8, branch=False),
     Variant(act_signed=False, act_shift=GELU_SHIFT, branch=False)],
)  # fmt: skip
def test_codes_are_the_oracle_s_down_to_subnormal_scales(variant: Variant, exponent: float) -> None:
    """There, a scale that was rounded down leaves quotients beyond the range: they must be clipped, -8 never occurs."""
    x = (np.random.default_rng(2).standard_normal((200, GROUP)) * 10**exponent).astype(np.float16)
    codes, scale = quantize_activation(x, np.ones(GROUP, np.float16), variant, np.float16)
    expected = (codes.astype(np.float64) * scale.astype(np.float64)).astype(np.float16)
    assert (show(variant, x) == expected).all()
