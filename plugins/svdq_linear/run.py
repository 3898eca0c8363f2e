"""A layer that runs from Python: constants packed and uploaded, x and y as arrays or as device pointers.

with Device() as device:
    layer = SvdqLinear(device, constants, variant)
    y = layer(x)
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plugins import library
from plugins.architectures import for_capability
from plugins.device import Device, Memory
from plugins.svdq_linear import interface, layout
from plugins.svdq_linear.spec import Variant

Array = np.ndarray[Any, Any]


class LaunchFailed(RuntimeError):
    """A call of launch.h that did not succeed: `status` is its SvdqStatus."""

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(f"{call}: {text}")
        self.status = status


class SvdqLinear:
    """One layer on one device.

    `constants`: the op's inputs but x, by spec.INPUTS' names, as spec.py has them (unpacked): qweight int [N, K],
    wscale T[N, K/G], inv_smooth T[K], bias T[N], and with a branch down T[K, R], up T[R, N]. T, float16 or bfloat16, is
    wscale's dtype. `path`: a libsvdq_linear.so; found or built for the device otherwise.

    Raises ValueError for constants that do not fit together, PluginError where the library cannot be built.
    """

    def __init__(
        self, device: Device, constants: Mapping[str, Array], variant: Variant, path: Path | None = None
    ) -> None:
        down, up = constants.get("down"), constants.get("up")
        if (down is not None) != variant.branch:
            raise ValueError(f"down is {'there' if down is not None else 'missing'}, but branch={variant.branch}")
        self.variant, self.device = variant, device
        self.dtype = constants["wscale"].dtype
        self.n, self.k = constants["qweight"].shape
        rank = down.shape[1] if down is not None else 0
        self._layer = interface.Layer.of(variant, self.n, self.k, rank, self.dtype.name)
        self._lib = interface.load(path or _built_for(device))
        self._check("svdq_check_layer", self._layer)
        packed = layout.pack(
            constants["qweight"],
            constants["wscale"],
            constants["inv_smooth"],
            down,
            up,
            constants["bias"],
            variant.group_size,
        )
        self._uploaded = {name: device.upload(a) for name, a in packed._asdict().items() if a is not None}
        self._constants = interface.Constants(**{name: m.pointer for name, m in self._uploaded.items()})

    def __call__(self, x: Array, tile: int | None = None) -> Array:
        """y T[..., N] of x T[..., K], by the tile of that number or the default one; waits for it."""
        if x.shape[-1] != self.k or x.dtype != self.dtype:
            raise ValueError(
                f"x is {x.dtype}[{', '.join(map(str, x.shape))}]; the layer takes {self.dtype}[..., {self.k}]"
            )
        m = x.size // self.k
        given = self.device.upload(x)
        result = self.device.allocate(m * self.n * self.dtype.itemsize)
        scratch = self.workspace(m)
        self.enqueue(given.pointer, result.pointer, m, scratch, tile)
        self.device.synchronize()
        return result.read(self.dtype, (*x.shape[:-1], self.n))

    def enqueue(self, x: int, y: int, m: int, workspace: Memory, tile: int | None = None, stream: int = 0) -> None:
        """y = layer(x) for m rows at device pointers, on a CUstream; neither waits nor allocates.

        Raises LaunchFailed.
        """
        chosen = self.default_tile(m) if tile is None else tile
        self._check(
            "svdq_enqueue", self._layer, self._constants, x, y, m, chosen, workspace.pointer, workspace.size, stream
        )

    def enqueue_quantize(self, x: int, m: int, workspace: Memory, tile: int, stream: int = 0) -> None:
        """The first half: codes, scales and x·down into the workspace."""
        self._check(
            "svdq_enqueue_quantize", self._layer, self._constants, x, m, tile, workspace.pointer, workspace.size, stream
        )

    def enqueue_multiply(self, x: int, y: int, m: int, workspace: Memory, tile: int, stream: int = 0) -> None:
        """The second half: y from the workspace (and from x where the layer is weight-only)."""
        self._check(
            "svdq_enqueue_multiply",
            self._layer, self._constants, x, y, m, tile, workspace.pointer, workspace.size, stream,
        )  # fmt: skip

    def prepare(self) -> None:
        """Load the kernels into the current context, as must have happened before a capture."""
        self._check("svdq_prepare")

    def workspace(self, m: int) -> Memory:
        """Scratch memory for up to m rows and any tile."""
        return self.device.allocate(self._lib.svdq_workspace_bytes(ctypes.byref(self._layer), m))

    def default_tile(self, m: int) -> int:
        """The tile that is taken without timing."""
        return int(self._lib.svdq_default_tile(ctypes.byref(self._layer), m))

    def tiles(self, m: int) -> dict[int, str]:
        """Numbers and names of the tiles that are valid for m rows."""
        numbers = range(self._lib.svdq_tile_count())
        valid = [i for i in numbers if self._lib.svdq_tile_valid(ctypes.byref(self._layer), m, i)]
        return {i: self._lib.svdq_tile_name(i).decode() for i in valid}

    def _check(self, name: str, *arguments: Any) -> None:
        passed = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        if status := getattr(self._lib, name)(*passed):
            raise LaunchFailed(name, status, self._lib.svdq_status_text(status).decode())


def _built_for(device: Device) -> Path:
    """libsvdq_linear.so with this GPU's kernels, for the driver that is here."""
    architecture = for_capability(device.capability)
    return library.find_or_build(architectures=[architecture], driver=device.driver.version()[0]).path
