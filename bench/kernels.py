"""The kernels on the GPU at hand beside what a user would have without them: python -m bench.kernels

One table per run. Times are of CUDA-graph replays over copies of all buffers that together exceed twice the L2 cache,
so that weights come from memory as they do in a model; medians of 5. `of peak` is the share of the rate (M > 16) or the
bandwidth (M <= 16) that cuBLAS and a copy reach on this very GPU, measured first. `unfused` is our multiplication
without the branch and x·down, ·up and the sum by torch. Columns that need torch with CUDA are left out, aloud, where it
is missing.

    python -m bench.kernels --shapes 4608x3072x12288,1x3072x12288 --rank 32 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without an installation
from plugins.device import Device, Memory, Stream  # noqa: E402
from plugins.errors import PluginError  # noqa: E402
from plugins.svdq_linear.run import SvdqLinear  # noqa: E402
from plugins.svdq_linear.spec import Variant, group_count  # noqa: E402

# M x K x N. FLUX at 1024 x 1024, SDXL's and SANA's widest, and the few rows of a single image's modulations.
SHAPES = (
    "4608x3072x3072,4608x3072x9216,4608x3072x12288,4608x12288x3072,4608x15360x3072,"
    "1024x1280x10240,1024x5120x1280,1024x2240x11200,1x3072x12288,4x3072x12288,16x3072x12288"
)
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
L2_CACHE_SIZE = 38  # CUdevice_attribute
RUNS = 5


@dataclass(frozen=True)
class Shape:
    m: int
    k: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        try:
            m, k, n = map(int, text.split("x"))
        except ValueError:
            raise SystemExit(f"--shapes has {text!r}; a shape is MxKxN, as in 4608x3072x12288") from None
        return cls(m, k, n)

    @property
    def operations(self) -> int:
        return 2 * self.m * self.k * self.n


def constants(shape: Shape, rank: int, dtype: np.dtype[Any], seed: int) -> dict[str, Any]:
    """Random constants of a layer, unpacked, with groups of 64."""
    random = np.random.default_rng(seed)
    normal = lambda *size: random.standard_normal(size, dtype=np.float32).astype(dtype)  # noqa: E731
    found = {
        "qweight": random.integers(-7, 8, (shape.n, shape.k), dtype=np.int8),
        "wscale": (np.abs(normal(shape.n, group_count(shape.k, 64)).astype(np.float32)) / 100 + 0.01).astype(dtype),
        "inv_smooth": np.ones(shape.k, dtype),
        "bias": normal(shape.n),
    }
    if rank:
        found |= {"down": normal(shape.k, rank), "up": normal(rank, shape.n)}
    return found


def copies_for(device: Device, size: int) -> int:
    """How many sets of buffers of `size` bytes exceed twice the L2 cache."""
    return max(2, -(-2 * device.attribute(L2_CACHE_SIZE) // size) + 1)


def milliseconds(device: Device, calls: Sequence[Callable[[Stream], None]]) -> float:
    """Median time of one of `calls`, which are captured one after the other into a graph and replayed."""
    stream = device.stream()
    for call in calls:  # what loads or picks kernels does so before the capture
        call(stream)
    stream.synchronize()
    with stream.capture() as graph:
        for call in calls:
            call(stream)
    graph.launch(stream)
    begin, end, times = device.event(), device.event(), []
    for _ in range(RUNS):
        begin.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        times.append(end.milliseconds_since(begin) / len(calls))
    graph.close()
    return statistics.median(times)


@dataclass(frozen=True)
class Set:
    """One of the rotated sets of buffers."""

    layer: SvdqLinear
    x: Memory
    y: Memory
    workspace: Memory


class Ours:
    """Our kernels on one shape, each set of buffers with weights of its own."""

    def __init__(self, device: Device, shape: Shape, variant: Variant, rank: int, dtype: np.dtype[Any]) -> None:
        self.device, self.shape = device, shape
        size = shape.k * shape.n // 2 + 2 * shape.m * (shape.k + shape.n)
        random = np.random.default_rng(0)
        x = random.standard_normal((shape.m, shape.k), dtype=np.float32).astype(dtype)
        self.sets = []
        given = constants(shape, rank, dtype, 0)
        for _ in range(copies_for(device, size)):
            layer = SvdqLinear(device, given, variant)
            y = device.allocate(2 * shape.m * shape.n)
            self.sets.append(Set(layer, device.upload(x), y, layer.workspace(shape.m)))
        self.sets[0].layer.prepare()

    def whole(self, tile: int) -> float:
        m = self.shape.m
        return milliseconds(
            self.device,
            [
                lambda s, b=b: b.layer.enqueue(b.x.pointer, b.y.pointer, m, b.workspace, tile, s.handle)
                for b in self.sets
            ],
        )

    def quantize(self, tile: int) -> float:
        m = self.shape.m
        return milliseconds(
            self.device,
            [lambda s, b=b: b.layer.enqueue_quantize(b.x.pointer, m, b.workspace, tile, s.handle) for b in self.sets],
        )

    def best(self) -> tuple[float, int, str]:
        """Time, number and name of the fastest tile."""
        tiles = self.sets[0].layer.tiles(self.shape.m)
        return min((self.whole(number), number, name) for number, name in tiles.items())


def copy_bandwidth(device: Device) -> float:
    """GB/s read and written by a copy of 512 MiB (64 where memory is short) within the GPU."""
    size = 512 << 20 if device.memory()[0] > 4 << 30 else 64 << 20
    a, b = device.allocate(size), device.allocate(size)

    def copy(stream: Stream) -> None:
        device.driver.call(
            "cuMemcpyDtoDAsync_v2", ctypes.c_uint64(b.pointer), ctypes.c_uint64(a.pointer), ctypes.c_size_t(size),
            ctypes.c_void_p(stream.handle),
        )  # fmt: skip

    return ratio(2 * size / 1e6, milliseconds(device, [copy]))


class Torch:
    """What torch does instead, on the same GPU: None where a path does not exist there."""

    def __init__(self, device: Device, dtype: str) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ImportError("torch has no CUDA here")
        self.torch, self.device, self.dtype = torch, device, getattr(torch, dtype)

    def time(self, make: Callable[[], Callable[[], Any]], size: int) -> float | None:
        """Median time of what `make` returns, over enough results of it to exceed twice the L2; None where it fails."""
        torch = self.torch
        try:
            calls = [make() for _ in range(copies_for(self.device, size))]
            for call in calls:
                call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            times = []
            for _ in range(RUNS + 1):
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / len(calls))
            return statistics.median(times[1:])
        except (RuntimeError, AttributeError, NotImplementedError) as e:
            print(f"  (not on this GPU: {str(e).splitlines()[0][:100]})", file=sys.stderr)
            return None

    def random(self, *size: int, dtype: Any = None) -> Any:
        return self.torch.randn(*size, device="cuda", dtype=dtype or self.dtype)

    def matmul(self, shape: Shape, dtype: Any = None) -> float | None:
        def make() -> Callable[[], Any]:
            x, w = self.random(shape.m, shape.k, dtype=dtype), self.random(shape.n, shape.k, dtype=dtype)
            return lambda: x @ w.T

        return self.time(make, 2 * (shape.k * shape.n + shape.m * (shape.k + shape.n)))

    def branch(self, shape: Shape, rank: int) -> float | None:
        """y + (x·down)·up as torch does it."""

        def make() -> Callable[[], Any]:
            x, y = self.random(shape.m, shape.k), self.random(shape.m, shape.n)
            down, up = self.random(shape.k, rank), self.random(rank, shape.n)
            return lambda: self.torch.addmm(y, x @ down, up)

        return self.time(make, 2 * shape.m * (shape.k + 2 * shape.n))

    def int8(self, shape: Shape) -> float | None:
        """INT8 x INT8 alone, without quantising or scaling. It wants more than 16 rows."""
        if shape.m <= 16:
            return None

        def make() -> Callable[[], Any]:
            x, w = (self.torch.randint(-7, 8, s, device="cuda", dtype=self.torch.int8)
                    for s in ((shape.m, shape.k), (shape.n, shape.k)))  # fmt: skip
            return lambda: self.torch._int_mm(x, w.T)

        return self.time(make, shape.k * shape.n + shape.m * (shape.k + 4 * shape.n))

    def int4(self, shape: Shape) -> float | None:
        """INT4 weights, bfloat16 activations."""

        def make() -> Callable[[], Any]:
            torch = self.torch
            packed = torch.randint(0, 256, (shape.n, shape.k // 2), device="cuda", dtype=torch.uint8)
            w = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
            scales = self.random(shape.k // 64, shape.n, 2, dtype=torch.bfloat16)
            x = self.random(shape.m, shape.k, dtype=torch.bfloat16)
            return lambda: torch.ops.aten._weight_int4pack_mm(x, w, 64, scales)

        return self.time(make, shape.k * shape.n // 2 + 2 * shape.m * (shape.k + shape.n))


def ratio(a: float, b: float) -> float:
    """a / b, and 0 for what the CPU's stand-in for a GPU takes no time for."""
    return a / b if b else 0.0


def row(device: Device, other: Torch | None, shape: Shape, args: argparse.Namespace, peak: float, copy: float) -> str:
    dtype = DTYPES[args.dtype]
    variant = Variant(act_bits=args.act_bits, branch=args.rank > 0)
    ours = Ours(device, shape, variant, args.rank, dtype)
    time, tile, name = ours.best()
    quantize = ours.quantize(tile)
    del ours
    plain = Ours(device, shape, Variant(act_bits=args.act_bits, branch=False), 0, dtype).best()[0]
    few = shape.m <= 16
    amount, unit, ceiling = (shape.k * shape.n / 2 / 1e6, "GB/s", copy) if few else (shape.operations / 1e9, "T", peak)
    # Codes, and a scale of two bytes for every 64 of them.
    moved = shape.m * shape.k * (2 + args.act_bits / 8 + 2 / 64) / 1e6
    cells = [
        f"{shape.m}x{shape.k}x{shape.n}",
        name,
        f"{time:.4f}",
        f"{ratio(amount, time):.0f} {unit}",
        f"{ratio(ratio(amount, time), ceiling):.0%}",
        "-" if few else f"{ratio(ratio(moved, quantize), copy):.0%}",
        f"{ratio(time, plain):.2f}",
    ]
    if other is not None:
        branch = other.branch(shape, args.rank) if args.rank else 0.0
        times = [plain + branch if branch is not None else None, other.matmul(shape),
                 other.matmul(shape, other.torch.bfloat16), other.int8(shape), other.int4(shape)]  # fmt: skip
        cells += [f"{t:.4f} ({ratio(t, time):.2f}x)" if t else "-" for t in times]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="MxKxN, comma-separated")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--act-bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--dtype", default="float16", choices=tuple(DTYPES))
    args = parser.parse_args()
    shapes = [Shape.parse(s) for s in args.shapes.split(",")]
    try:
        device = Device()
    except PluginError as e:
        raise SystemExit(f"error: {e}") from None
    try:
        other: Torch | None = Torch(device, args.dtype)
    except ImportError as e:
        other = None
        print(f"No comparison with cuBLAS: {e}.")
    peak = 0.0
    if other is not None:
        largest = Shape(8192, 8192, 8192)
        peak = largest.operations / (other.matmul(largest, other.torch.bfloat16) or float("inf")) / 1e9
    copy = copy_bandwidth(device)
    print(f"{device.name}, compute capability {device.capability}, {device.processors} multiprocessors; "
          f"copy {copy:.0f} GB/s, cuBLAS bf16 8192^3 {peak:.0f} TFLOP/s; "
          f"{args.dtype}, {args.act_bits}-bit activations, rank {args.rank}")  # fmt: skip
    head = ["M x K x N", "tile", "ours ms", "rate", "of peak", "quantise of copy", "/ without branch"]
    if other is not None:
        head += [
            f"{c} ms (/ ours)"
            for c in ("unfused", f"cuBLAS {args.dtype}", "cuBLAS bfloat16", "torch int8", "torch int4")
        ]
    print(" | ".join(head))
    for shape in shapes:
        print(row(device, other, shape, args, peak, copy), flush=True)


if __name__ == "__main__":
    main()
