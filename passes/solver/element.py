"""The op's 16-bit (or 32-bit) element type T: rounding to it, while arithmetic stays in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch


@dataclass(frozen=True)
class ElementType:
    """T, with what a loop needs in order to round to it by itself.

    precision is the significand's bits with the hidden one; tiny is the exponent of the smallest positive number.
    """

    numpy: np.dtype[Any]
    torch: torch.dtype
    precision: int
    tiny: int

    @property
    def largest(self) -> float:
        return torch.finfo(self.torch).max

    def rounded(self, values: torch.Tensor) -> torch.Tensor:
        """Float32 values rounded to T (ties to even), still float32."""
        return values.to(self.torch).float()

    def array(self, values: torch.Tensor) -> np.ndarray:
        """Float32 values as a numpy array of T."""
        return values.numpy().astype(self.numpy)


ELEMENT_TYPES = {
    "float16": ElementType(np.dtype(np.float16), torch.float16, 11, -24),
    "bfloat16": ElementType(np.dtype(ml_dtypes.bfloat16), torch.bfloat16, 8, -133),
    "float32": ElementType(np.dtype(np.float32), torch.float32, 24, -149),
}
