"""The contract of svdq::SvdqLinear as data: names, attributes, ranges, padding.

    x̂ = (x + act_shift) ⊙ inv_smooth
    y  = activation( Q(x̂) · dequant(qweight)ᵀ + (x · down) · up + bias )

The scheme is SVDQuant's (arXiv 2411.05007); the shifts serve its unsigned activations.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

DOMAIN = "svdq"
OP_TYPE = "SvdqLinear"
OP_VERSION = 1

#: The TensorRT plugin of the same name. The namespace is the registry's default.
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = ""

#: Inputs in node order. down and up are absent where the variant has no branch.
INPUTS = ("x", "qweight", "wscale", "inv_smooth", "down", "up", "bias")
BRANCH_INPUTS = ("down", "up")

GROUP_SIZES = (64, 128)
ACT_BITS = (4, 8, 16)
ACTIVATIONS = ("none", "gelu_tanh", "silu")

#: Weights are symmetric: -8 never occurs, so that a negated weight has the same codes negated.
WEIGHT_QMAX = 7

#: Within these bounds x̂ of any finite float16 x, and down = diag(inv_smooth)·V, keep their precision in T.
INV_SMOOTH_MIN = 2.0**-10
INV_SMOOTH_MAX = 2.0**10

#: The smallest values of GELU and SiLU are -0.1700 and -0.2785: these shifts make them non-negative. Both are
#: exact in bfloat16.
GELU_SHIFT = 0.171875
SILU_SHIFT = 0.28125

#: An MMA of the low-rank branch consumes 16 ranks at a time.
RANK_MULTIPLE = 16


def padded_rank(rank: int) -> int:
    """The rank that the op stores for `rank` singular values: the next multiple of 16, or 0 for no branch."""
    if rank < 0:
        raise ValueError(f"rank is {rank}; it must be 0 (no low-rank branch) or more")
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def group_count(channels: int, group_size: int) -> int:
    """Number of groups along K; the last one may be partly padding."""
    return -(-channels // group_size)


def padded_channels(channels: int, group_size: int) -> int:
    """K rounded up to whole groups. Missing channels are 0 after shift and smoothing; their weights too."""
    return group_count(channels, group_size) * group_size


@dataclass(frozen=True)
class Variant:
    """What selects one function body, or one kernel: everything but shapes and element type.

    Raises ValueError, naming the value, for a combination that the op does not have.
    """

    group_size: int = 64
    act_bits: int = 4
    act_signed: bool = True
    act_shift: float = 0.0
    activation: str = "none"
    branch: bool = True

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size is {self.group_size}; SvdqLinear has 64 and 128")
        if self.act_bits not in ACT_BITS:
            raise ValueError(f"act_bits is {self.act_bits}; SvdqLinear has 4, 8 and 16 (16 = weight-only)")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; SvdqLinear has {', '.join(ACTIVATIONS)}")
        if not (math.isfinite(self.act_shift) and _as_float32(self.act_shift) == self.act_shift):
            raise ValueError(
                f"act_shift is {self.act_shift!r}; it must be finite and exact in float32, as attributes are"
            )
        if self.act_bits == 16 and not self.act_signed:
            raise ValueError("act_bits 16 does not quantise activations, so act_signed must stay true")

    @property
    def quantises_activations(self) -> bool:
        return self.act_bits < 16

    @property
    def qmax(self) -> int:
        """Largest code of the activation: 7 or 127 signed, 15 or 255 unsigned."""
        if not self.quantises_activations:
            raise ValueError("a weight-only variant (act_bits 16) has no activation codes")
        return 2 ** (self.act_bits - 1) - 1 if self.act_signed else 2**self.act_bits - 1

    @property
    def qmin(self) -> int:
        """Smallest code of the activation: -qmax signed, 0 unsigned."""
        return -self.qmax if self.act_signed else 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that a node of this variant has, in order."""
        return INPUTS if self.branch else tuple(name for name in INPUTS if name not in BRANCH_INPUTS)

    @property
    def overload(self) -> str:
        """Name of this variant's function overload, one to one with the variant: "a4_s_g64_none_lr".

        A shift is appended as its decimal with p for the point: "a4_u_g64_none_lr_shift0p171875".
        """
        parts = [f"a{self.act_bits}", "s" if self.act_signed else "u", f"g{self.group_size}", self.activation]
        parts.append("lr" if self.branch else "nolr")
        if self.act_shift:
            parts.append("shift" + repr(float(self.act_shift)).replace(".", "p").replace("-", "m").replace("+", ""))
        return "_".join(parts)

    def attributes(self, rank: int | None = None) -> dict[str, int | float | str]:
        """The node's attributes, in ONNX's types; with `rank`, a multiple of 16 (0 = no branch), that too."""
        found: dict[str, int | float | str] = {
            "group_size": self.group_size,
            "act_bits": self.act_bits,
            "act_signed": int(self.act_signed),
            "act_shift": float(self.act_shift),
            "activation": self.activation,
        }
        if rank is not None:
            if rank % RANK_MULTIPLE or (rank > 0) != self.branch:
                raise ValueError(f"rank {rank} does not fit: a multiple of {RANK_MULTIPLE}, 0 exactly without a branch")
            found["rank"] = rank
        return found

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, int | float | str], branch: bool) -> Variant:
        """Inverse of `attributes`. Missing ones take the op's defaults; others, like rank, are ignored."""
        return cls(
            group_size=int(attributes.get("group_size", 64)),
            act_bits=int(attributes.get("act_bits", 4)),
            act_signed=bool(attributes.get("act_signed", 1)),
            act_shift=float(attributes.get("act_shift", 0.0)),
            activation=str(attributes.get("activation", "none")),
            branch=branch,
        )


def _as_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf
