"""The op's 16-bit (or 32-bit) element type T: rounding to it, while arithmetic stays in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch


@dataclass(frozen=True)
class ElementType:
    """T in numpy's and torch's words."""

    numpy: np.dtype[Any]
    torch: torch.dtype

    @property
    def largest(self) -> float:
        return torch.finfo(self.torch).max

    @property
    def form(self) -> tuple[int, np.float32, np.float32]:
        """What a loop needs to round float32 to T: bits to drop, smallest normal and largest number."""
        info = torch.finfo(self.torch)
        kept = -int(np.log2(info.eps))
        return 23 - kept, np.float32(info.smallest_normal), np.float32(info.max)

    def rounded(self, values: torch.Tensor) -> torch.Tensor:
        """Float32 values rounded to T (ties to even), still float32."""
        return values.to(self.torch).float()

    def array(self, values: torch.Tensor) -> np.ndarray:
        """Float32 values as a numpy array of T."""
        return values.numpy().astype(self.numpy)


ELEMENT_TYPES = {
    "float16": ElementType(np.dtype(np.float16), torch.float16),
    "bfloat16": ElementType(np.dtype(ml_dtypes.bfloat16), torch.bfloat16),
    "float32": ElementType(np.dtype(np.float32), torch.float32),
}
