"""4-bit codes two to a byte, the earlier one in the low bits: as the store, ONNX and the words of the kernels are."""

from __future__ import annotations

import numpy as np


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """int8 codes of -8..7, any shape → uint8 [ceil(size / 2)], as ONNX packs INT4."""
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    packed = flat[::2] & 15
    packed[: flat.size // 2] |= flat[1::2] << 4
    return packed


def unpack_codes(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `pack_codes`: int8 codes of `shape`."""
    codes = np.empty((packed.size, 2), np.int8)
    codes[:, 0] = (packed << 4).view(np.int8) >> 4
    codes[:, 1] = packed.view(np.int8) >> 4
    return codes.reshape(-1)[: int(np.prod(shape))].reshape(shape)
