"""How a layer is to be quantised: the choices that change its numbers, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from plugins.svdq_linear.spec import Variant

DTYPES = ("float16", "float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """One way to solve a layer. Weights are always INT4 (-7..7).

    act_bits    4 or 8: activations quantised per token and group; 16: left alone (weight-only)
    group_size  channels that share a scale, 64 or 128
    rank        singular values that the 16-bit branch keeps; 0 = no branch
    smooth      search the smoothing strength by measured output error; False = ones
    refine      upper bound of rounds L <- SVD(W - Q(W - L)), with weight scales searched; 0 = neither
    act_signed  codes -7..7; False: 0..15, for inputs that act_shift makes non-negative
    act_shift   added to the input before smoothing, taken out of the bias
    dtype       T of the op: what scales, factors, inv_smooth and bias are rounded to
    seed        of the randomised SVD
    Plain round-to-nearest is rank=0, smooth=False, refine=0.
    """

    act_bits: int = 4
    group_size: int = 64
    rank: int = 32
    smooth: bool = True
    refine: int = 100
    act_signed: bool = True
    act_shift: float = 0.0
    dtype: str = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}; it must be 0 (no low-rank branch) or more")
        if self.refine < 0:
            raise ValueError(f"refine is {self.refine}; it must be 0 (no refinement) or more")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; known are {', '.join(DTYPES)}")
        self.variant()

    @property
    def clip(self) -> bool:
        """Weight scales are searched (a group's largest may clip), not taken from the largest weight."""
        return self.refine > 0

    def variant(self, activation: str = "none") -> Variant:
        """The op variant that runs what this recipe solves; raises ValueError where the op has none."""
        return Variant(
            group_size=self.group_size,
            act_bits=self.act_bits,
            act_signed=self.act_signed,
            act_shift=self.act_shift,
            activation=activation,
            branch=self.rank > 0,
        )
