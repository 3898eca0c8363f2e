"""launch.h by ctypes: the same names, checked against the header by a test."""

from __future__ import annotations

import ctypes
from pathlib import Path

from plugins.svdq_linear.spec import ACTIVATIONS, Variant

DTYPES = ("float16", "bfloat16")  # SvdqType, in order


class Layer(ctypes.Structure):
    """SvdqLayer: everything about a layer but its pointers."""

    _fields_ = [
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("act_bits", ctypes.c_int32),
        ("act_signed", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("act_shift", ctypes.c_float),
    ]

    @classmethod
    def of(cls, variant: Variant, n: int, k: int, rank: int, dtype: str) -> Layer:
        """The struct of a layer [n, k]. Raises ValueError for an element type that the kernels do not have."""
        if dtype not in DTYPES:
            raise ValueError(f"the kernels compute in {' or '.join(DTYPES)}, not in {dtype}")
        return cls(
            n,
            k,
            rank,
            variant.group_size,
            variant.act_bits,
            variant.act_signed,
            ACTIVATIONS.index(variant.activation),
            DTYPES.index(dtype),
            variant.act_shift,
        )


class Constants(ctypes.Structure):
    """SvdqConstants: device pointers to what layout.py packs."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("qweight", "wscale", "inv_smooth", "down", "up", "bias")]


def load(path: Path) -> ctypes.CDLL:
    """The library with its functions' types declared."""
    lib = ctypes.CDLL(str(path))
    layer, constants = ctypes.POINTER(Layer), ctypes.POINTER(Constants)
    pointer, size, m, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int32
    for name, result, arguments in (
        ("svdq_status_text", ctypes.c_char_p, [number]),
        ("svdq_check_layer", number, [layer]),
        ("svdq_tile_count", number, []),
        ("svdq_tile_name", ctypes.c_char_p, [number]),
        ("svdq_tile_valid", number, [layer, m, number]),
        ("svdq_default_tile", number, [layer, m]),
        ("svdq_workspace_bytes", size, [layer, m]),
        ("svdq_prepare", number, []),
        ("svdq_enqueue", number, [layer, constants, pointer, pointer, m, number, pointer, size, pointer]),
        ("svdq_enqueue_quantize", number, [layer, constants, pointer, m, number, pointer, size, pointer]),
        ("svdq_enqueue_multiply", number, [layer, constants, pointer, pointer, m, number, pointer, size, pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
