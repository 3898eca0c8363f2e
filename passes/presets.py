"""The presets: each reads top to bottom as a list of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import RemoveUnusedNodesPass

from passes.activation import AbsorbActivation
from passes.branch import LowRankBranch
from passes.clean import clean
from passes.concat import SplitConcatInputs
from passes.conv1x1 import Conv1x1ToLinear
from passes.fuse import FuseSvdqLinear
from passes.layers import Layer
from passes.lower import LowerToPlugin
from passes.opset import LowerOpset, PortableOpset
from passes.policy import WEIGHT_ONLY, Policy
from passes.qdq import Int4Qdq
from passes.siblings import MergeAttentionSiblings
from passes.solved import Solved
from passes.solver import Recipe
from passes.verify import VerifyGraph
from passes.verify_tensorrt import VerifyTensorRT
from plugins.svdq_linear.spec import GELU_SHIFT


def layered(policy: Policy) -> Sequential:
    """What defines the layers: all quantising presets begin so, and calibration and the solver go by it."""
    return Sequential(
        *clean(),
        Conv1x1ToLinear(policy),  # SANA's feed-forwards
        MergeAttentionSiblings(policy),  # q, k, v of one attention that read one tensor become one linear
        SplitConcatInputs(policy),  # proj_out of concat(attention, gelu) = sum of two linears
    )


def sixteen_bit(policy: Policy, solved: Solved) -> Sequential:
    """The baseline: nothing but cleaning. It stays at the exported opset: TensorRT 10.3 parses this very file."""
    return Sequential(*clean(), VerifyGraph())


def plain_four_bit(policy: Policy, solved: Solved) -> Sequential:
    """4-bit weights, no branch."""
    return Sequential(
        layered(policy),
        Int4Qdq(solved),
        AbsorbActivation(solved),
        FuseSvdqLinear(),
        RemoveUnusedNodesPass(),  # and the 16-bit weights that merging and splitting left behind
        PortableOpset(),
        VerifyGraph(at_least=len(solved)),
    )


def svdquant(policy: Policy, solved: Solved) -> Sequential:
    """4-bit residual weights and quantised activations, outliers absorbed by a 16-bit low-rank branch."""
    return Sequential(
        layered(policy),
        LowRankBranch(solved),  # y += (x @ down) @ up, in 16 bits
        Int4Qdq(solved),  # smoothing and 4-bit Q/DQ on the residual weight and on the activation
        AbsorbActivation(solved),
        FuseSvdqLinear(),  # the pattern → one svdq::SvdqLinear node whose function body = the pattern
        RemoveUnusedNodesPass(),  # and the 16-bit weights that merging and splitting left behind
        PortableOpset(),
        VerifyGraph(at_least=len(solved)),
    )


def plugin_form(reserve_rank: int = 0, at_least: int = 0, narrow: ir.DataType | None = None) -> Sequential:
    """What TensorRT parses, made of the portable form: its SvdqLinear calls become plugin nodes, its opset 20 again.

    `narrow`: T of the plugin nodes of a float32 graph."""
    return Sequential(
        LowerToPlugin(reserve_rank, narrow),  # weights in the kernel's layout, no functions, no INT4
        LowerOpset(),
        VerifyTensorRT(at_least),
    )


@dataclass(frozen=True)
class Preset:
    """A name, the bits of activations, how the solver is asked, and the passes. Weights are 4-bit but for fp16."""

    name: str
    title: str
    passes: Callable[[Policy, Solved], Sequential]
    quantises: bool = True
    base: Recipe = Recipe()
    unsigned_after_gelu: bool = False

    def recipe(self, layer: Layer, dtype: str, rank: int | None = None, group_size: int | None = None) -> Recipe:
        """How to solve one layer. `rank` and `group_size` replace the preset's own where it uses them.

        A weight-only layer (AdaLN modulations) is 4-bit weights, 16-bit activations, without branch or smoothing.
        """
        base = replace(self.base, dtype=dtype)
        if group_size is not None:
            base = replace(base, group_size=group_size)
        if rank is not None and base.rank:
            base = replace(base, rank=rank)
        if layer.scheme == WEIGHT_ONLY:
            return replace(base, act_bits=16, rank=0, smooth=False, refine=0)
        if self.unsigned_after_gelu and layer.after_gelu and base.act_bits < 16:
            return replace(base, act_signed=False, act_shift=GELU_SHIFT)
        return base

    def apply(self, model: ir.Model, policy: Policy, solved: Solved) -> ir.Model:
        """Run the passes on `model` (which is changed) and return it."""
        return self.passes(policy, solved)(model).model


_PLAIN = Recipe(rank=0, smooth=False, refine=0)

PRESETS = {
    p.name: p
    for p in (
        Preset("fp16", "16-bit weights and activations", sixteen_bit, quantises=False),
        Preset("int4-rtn", "INT4 weights and activations, rounded to nearest", plain_four_bit, base=_PLAIN),
        Preset("w4a16", "INT4 weights, 16-bit activations", plain_four_bit, base=replace(_PLAIN, act_bits=16)),
        Preset(
            "svdq-w4a8",
            "INT4 weights, INT8 activations, low-rank branch",
            svdquant,
            base=Recipe(act_bits=8),
            unsigned_after_gelu=True,
        ),
        Preset(
            "svdq-int4",
            "INT4 weights, INT4 activations, low-rank branch",
            svdquant,
            base=Recipe(act_bits=4),
            unsigned_after_gelu=True,
        ),
    )
}
