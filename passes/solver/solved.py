"""What solving a layer yields: the op's constants, and how well they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from plugins.svdq_linear.nibbles import pack_codes, unpack_codes

ARRAYS = ("inv_smooth", "down", "up", "qweight", "wscale", "bias")
PACKED = "qweight.packed"  # two codes to a byte, as the store and ONNX hold them


@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """Constants of one SvdqLinear, in the op's shapes; T is the recipe's dtype.

    inv_smooth T[K]; down T[K, R] and up T[R, N], R a multiple of 16 (0 = no branch), surplus ranks zero;
    qweight int8 [N, K] of values -7..7; wscale T[N, ceil(K/G)]; bias T[N], corrected for the shift. error is
    ||y - y_ref|| / ||y_ref|| (Frobenius) over the samples, y as the op computes it; without samples the
    relative error of the weight. s = max|X|^alpha / max|W|^beta is the smoothing; rounds counts
    those of refinement that were kept.
    """

    inv_smooth: np.ndarray
    down: np.ndarray
    up: np.ndarray
    qweight: np.ndarray
    wscale: np.ndarray
    bias: np.ndarray
    error: float
    alpha: float
    beta: float
    rounds: int

    @property
    def rank(self) -> int:
        """R, a multiple of 16; 0 = no branch."""
        return int(self.down.shape[1])

    @property
    def packed_codes(self) -> np.ndarray:
        """The codes two to a byte."""
        return pack_codes(self.qweight)

    def arrays(self) -> dict[str, np.ndarray]:
        """The six arrays by name, to be stored; the codes as PACKED."""
        found = {name: getattr(self, name) for name in ARRAYS if name != "qweight"}
        return found | {PACKED: self.packed_codes}

    def spec(self, field: str) -> tuple[np.dtype, tuple[int, ...]]:
        """dtype and shape of one of the six arrays."""
        array = getattr(self, field)
        return array.dtype, array.shape

    def meta(self) -> dict[str, str]:
        """The numbers beside the arrays, as strings that read back exactly."""
        return {
            "error": repr(self.error),
            "alpha": repr(self.alpha),
            "beta": repr(self.beta),
            "rounds": str(self.rounds),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> SolvedLayer:
        """Inverse of `arrays` and `meta`; raises KeyError where one is missing."""
        codes = unpack_codes(arrays[PACKED], (arrays["bias"].size, arrays["inv_smooth"].size))
        return cls(
            **{name: codes if name == "qweight" else arrays[name] for name in ARRAYS},
            error=float(meta["error"]),
            alpha=float(meta["alpha"]),
            beta=float(meta["beta"]),
            rounds=int(meta["rounds"]),
        )
