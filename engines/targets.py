"""The devices that an artifact can be built for: one row each, data only, every figure with its source.

`python -m engines.targets` prints them. A figure in a row's `unverified` has one source only, or an uncertain one, and
is printed with (?): no number that the product promises may rest on it. Rates are dense, per second, at the device's
highest power mode. The card named in a GeForce row stands for its series.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from artifact.command import reported
from artifact.errors import UserError, nearest
from plugins.architectures import for_capability
from plugins.errors import PluginError


@dataclass(frozen=True)
class JetPack:
    """A release of Jetson's software and the CUDA and TensorRT that come with it."""

    name: str
    cuda: str
    tensorrt: str


JETPACK_SOURCE = "NVIDIA's JetPack release pages"
JETPACK_6 = (
    JetPack("6.1", "12.6", "10.3"),
    JetPack("6.2", "12.6", "10.3"),
    JetPack("7.2", "13.2", "10.16"),
    JetPack("7.2.2", "13.2", "11.4"),
)
JETPACK_7 = (
    JetPack("7.0", "13.0", "10.13"),
    JetPack("7.1", "13.0", "10.13"),
    JetPack("7.2", "13.2", "10.16"),
    JetPack("7.2.2", "13.2", "11.4"),
)

TABLE_WIDTH = 120  # columns, where nobody looks
#: The fields that are figures, as `python -m engines.targets` prints them, and each one's unit.
FIGURES = {
    "memory_gb": "GB",
    "bandwidth_gb_s": "GB/s",
    "fp16_tflops": "TFLOP/s",
    "int8_tops": "TOP/s",
    "int4_tops": "TOP/s",
    "fp4_tflops": "TFLOP/s",
    "power_w": "W",
    "max_side": "px",
}


@dataclass(frozen=True)
class Target:
    """One device.

    `compute_capability` "8.7" is sm_87. `memory_gb` and `bandwidth_gb_s` in 10⁹ bytes; on Jetson the CPU shares that
    memory and `usable_gb` leaves out what the system keeps. `fp16_tflops`, `int8_tops`, `int4_tops`, `fp4_tflops`:
    tensor-core rates in 10¹² operations; None where there is no such instruction. `max_side`: the largest side of an
    image, in pixels, that engines are made for. `formats`: what the tensor cores multiply natively. `jetpacks`:
    releases that run it, the oldest first (none: a desktop driver). `sources`: where each figure comes from, by field.
    `unverified`: names of the fields whose value has one source only.
    """

    name: str
    title: str
    compute_capability: str | None = None
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    fp16_tflops: float | None = None
    int8_tops: float | None = None
    int4_tops: float | None = None
    fp4_tflops: float | None = None
    power_w: tuple[int, int] | None = None
    max_side: int | None = None
    jetpacks: tuple[JetPack, ...] = ()
    formats: frozenset[str] = frozenset()
    shared_memory: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    unverified: frozenset[str] = frozenset()

    @property
    def sm(self) -> int | None:
        """87 for compute capability 8.7."""
        return int(self.compute_capability.replace(".", "")) if self.compute_capability else None

    @property
    def usable_gb(self) -> float | None:
        """Memory that a pipeline may fill, 10⁹ bytes."""
        if self.memory_gb is None:
            return None
        return self.memory_gb - SYSTEM_GB if self.shared_memory else self.memory_gb


SYSTEM_GB = 2.0  # what the system keeps of a Jetson's shared memory
OTHER_MEMORY = 0.2  # share by which a device's memory differs from its row's for it to be another device
AMPERE = frozenset({"fp16", "bf16", "int8", "int4"})  # int4: mma.m16n8k64 on s4, sm_80 to sm_89
ADA = AMPERE | {"fp8"}
HOPPER = frozenset({"fp16", "bf16", "int8", "fp8"})  # s4 is emulated from here on
BLACKWELL = HOPPER | {"nvfp4"}

# Largest sides are no measurements: activations of a FLUX-sized denoiser grow with the square of the side, and these
# leave them a tenth to a quarter of the memory beside 4-bit weights.
_SIDE = "ours, by memory"
_RATES = frozenset({"fp16_tflops", "int8_tops"})


def _sources(sheet: str, rates: str | None = None, **others: str) -> dict[str, str]:
    """`sheet` for every figure, `rates` for the tensor-core rates, and what `others` names by field."""
    given = dict.fromkeys(FIGURES, sheet) | {"max_side": _SIDE}
    if rates:
        given |= dict.fromkeys(("fp16_tflops", "int8_tops", "int4_tops", "fp4_tflops"), rates)
    return given | others


_ORIN_INT4 = "twice INT8: mma.m16n8k64 s4 against m16n8k32 s8 (PTX ISA)"
TARGETS = (
    Target("cpu", "This machine's CPU (portable ONNX on onnxruntime)"),
    Target(
        "orin-nano", "Jetson Orin Nano 8 GB Super", "8.7",
        memory_gb=8, bandwidth_gb_s=102, fp16_tflops=17, int8_tops=33, int4_tops=66, power_w=(7, 25), max_side=512,
        jetpacks=JETPACK_6, formats=AMPERE, shared_memory=True,
        sources=_sources("Jetson Orin Nano Super data sheet", "its 67 sparse INT8 TOPS, halved", int4_tops=_ORIN_INT4),
        unverified=_RATES | {"int4_tops", "max_side"},
    ),
    Target(
        "orin-nx", "Jetson Orin NX 16 GB", "8.7",
        memory_gb=16, bandwidth_gb_s=102, fp16_tflops=19, int8_tops=50, int4_tops=100, power_w=(10, 40), max_side=1024,
        jetpacks=JETPACK_6, formats=AMPERE, shared_memory=True,
        sources=_sources(
            "Jetson Orin NX data sheet", "from its 100 sparse INT8 TOPS; the GPU's share of them is uncertain",
            int4_tops=_ORIN_INT4,
        ),
        unverified=_RATES | {"int4_tops", "bandwidth_gb_s", "max_side"},
    ),
    Target(
        "agx-orin", "Jetson AGX Orin 64 GB", "8.7",
        memory_gb=64, bandwidth_gb_s=204.8, fp16_tflops=42.5, int8_tops=85, int4_tops=170, power_w=(15, 60),
        max_side=1024, jetpacks=JETPACK_6, formats=AMPERE, shared_memory=True,
        sources=_sources(
            "Jetson AGX Orin data sheet", "AGX Orin technical brief: 170 sparse INT8 TOPS of the GPU, halved",
            int4_tops="1024 INT4 multiply-adds a cycle and partition at 1.3 GHz: docs/roofline.md",
        ),
        unverified=_RATES | {"max_side"},
    ),
    Target(
        "thor-t4000", "Jetson Thor T4000", "11.0",
        memory_gb=64, bandwidth_gb_s=273, fp16_tflops=150, int8_tops=300, fp4_tflops=600, power_w=(40, 70),
        max_side=1024, jetpacks=JETPACK_7[1:], formats=BLACKWELL, shared_memory=True,
        sources=_sources("Jetson T4000 announcement", "its 1200 sparse FP4 TFLOPS; halved for each wider format"),
        unverified=_RATES | {"bandwidth_gb_s", "fp4_tflops", "max_side"},
    ),
    Target(
        "thor-t5000", "Jetson Thor T5000", "11.0",
        memory_gb=128, bandwidth_gb_s=273, fp16_tflops=258, int8_tops=517, fp4_tflops=1035, power_w=(40, 130),
        max_side=2048, jetpacks=JETPACK_7, formats=BLACKWELL, shared_memory=True,
        sources=_sources("Jetson Thor data sheet", int8_tops="half of the data sheet's 1035 FP4 TFLOPS"),
        unverified=frozenset({"int8_tops", "max_side"}),
    ),
    Target(
        "rtx-30", "GeForce RTX 30 series (RTX 3090)", "8.6",
        memory_gb=24, bandwidth_gb_s=936, fp16_tflops=142, int8_tops=284, int4_tops=568, power_w=(350, 350),
        max_side=1024, formats=AMPERE, sources=_sources("GA102 whitepaper"),
        unverified=frozenset(FIGURES) - {"fp4_tflops"},
    ),
    Target(
        "rtx-40", "GeForce RTX 40 series (RTX 4090)", "8.9",
        memory_gb=24, bandwidth_gb_s=1008, fp16_tflops=330, int8_tops=661, int4_tops=1321, power_w=(450, 450),
        max_side=1024, formats=ADA, sources=_sources("AD102 whitepaper"),
        unverified=frozenset(FIGURES) - {"fp4_tflops"},
    ),
    Target(
        "rtx-50", "GeForce RTX 50 series (RTX 5090)", "12.0",
        memory_gb=32, bandwidth_gb_s=1792, fp16_tflops=419, int8_tops=838, fp4_tflops=1676, power_w=(575, 575),
        max_side=1024, formats=BLACKWELL, sources=_sources("GB202 whitepaper"),
        unverified=frozenset(FIGURES) - {"int4_tops"},
    ),
    Target(
        "h200", "H200", "9.0",
        memory_gb=141, bandwidth_gb_s=4800, fp16_tflops=989, int8_tops=1979, power_w=(700, 700), max_side=2048,
        formats=HOPPER, sources=_sources("H200 data sheet (its sparse rates, halved)"),
        unverified=frozenset({"max_side"}),
    ),
)  # fmt: skip
NAMES = [t.name for t in TARGETS]
# Words in /proc/device-tree/model that tell the Jetsons of one compute capability apart, the more specific first.
_JETSON_MODELS = (
    ("orin nano", "orin-nano"),
    ("orin nx", "orin-nx"),
    ("agx orin", "agx-orin"),
    ("t4000", "thor-t4000"),
    ("thor", "thor-t5000"),
)


def find(name: str) -> Target:
    """The row of that name; "auto" is `auto()`. Raises UserError offering the nearest names."""
    if name == "auto":
        return auto()
    for target in TARGETS:
        if target.name == name:
            return target
    raise UserError(f"There is no target {name!r}: {nearest(name, [*NAMES, 'auto'])}")


def check_preset(target: Target, preset: str) -> str:
    """Whether `target` can run `preset`: a sentence on how, where that is worth knowing, else "".

    Raises UserError naming the alternative where it cannot.
    """
    if "nvfp4" in preset and "nvfp4" not in target.formats:
        instead = "svdq-int4" if "int4" in target.formats or target.sm is None else "svdq-w4a8"
        raise UserError(
            f"{target.title} has no FP4 instructions for {preset}, only Blackwell has: build {instead} instead."
        )
    if target.compute_capability is None or preset == "fp16" or "nvfp4" in preset:
        return ""
    try:
        row = for_capability(target.compute_capability)
    except PluginError:
        raise UserError(
            f"The plugin has no kernels for {target.title} (compute capability {target.compute_capability}), which "
            f"{preset} needs: build fp16 for it."
        ) from None
    if preset in ("svdq-int4", "int4-rtn") and not row.native_int4:
        return f"{target.title} has no 4-bit tensor cores: {preset} runs there with its codes widened to 8 bits."
    return ""


def auto(root: Path = Path("/"), query: Callable[[], str] | None = None) -> Target:
    """The target of this machine; cpu where no NVIDIA GPU is found or none of the table's. Never fails.

    A device with another memory than its row's, of a smaller module or card of the same series, is that row with its
    own memory. `root` and `query` (what `listing` gives) are for tests.
    """
    try:
        return _jetson(root) or _card((query or listing)()) or TARGETS[0]
    except Exception:  # a broken driver is as good as none
        return TARGETS[0]


def jetson_linux(root: Path = Path("/")) -> str:
    """The release in /etc/nv_tegra_release, "36.4.3" (JetPack 6.2); "" on a machine that is no Jetson."""
    try:
        text = (root / "etc/nv_tegra_release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"R(\d+).*?(?:REVISION: ([\d.]+)|$)", text)
    return ".".join(filter(None, found.groups())) if found else ""


def listing() -> str:
    """The GPUs of this machine, "name, 8.9, 24564" a line (MiB of memory), from NVML, else from nvidia-smi.

    Raises OSError without either.
    """
    return _nvml() or _nvidia_smi()


def _jetson(root: Path) -> Target | None:
    """By the device tree's model, on a machine whose /etc/nv_tegra_release says Jetson."""
    if not (root / "etc/nv_tegra_release").exists():
        return None
    model = (root / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace").lower()
    row = next((find(name) for words, name in _JETSON_MODELS if words in model), None)
    memory = _memory_bytes(root)
    return _as_here(row, memory) if row and memory else row


def _memory_bytes(root: Path) -> int | None:
    """What Linux has of the memory, without what the firmware keeps; None where it does not say."""
    try:
        found = re.search(r"MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _card(listing: str) -> Target | None:
    """By the compute capability and the memory of the first GPU in the listing."""
    first = listing.strip().splitlines()[0] if listing.strip() else ""
    found = re.search(r",\s*(\d+\.\d+)(?:,\s*(\d+))?$", first)
    same = [t for t in TARGETS if found and t.compute_capability == found[1] and not t.shared_memory]
    if not same or not found:
        return None
    return _as_here(same[0], int(found[2]) << 20) if found[2] else same[0]


def _as_here(row: Target, memory_bytes: int) -> Target:
    """The row with this machine's memory where that is no rounding of its own.

    Its rates are then those of another device, so none of them is verified, and the largest image is the one of the
    row with as much memory.
    """
    here = memory_bytes / 1e9
    if row.memory_gb is None or abs(here / row.memory_gb - 1) < OTHER_MEMORY:
        return row
    sides = [t.max_side for t in TARGETS if t.memory_gb and t.max_side and t.memory_gb <= here / (1 - OTHER_MEMORY)]
    smallest = min(t.max_side for t in TARGETS if t.max_side)
    return replace(
        row, title=f"{row.title}, with {here:.1f} GB", memory_gb=round(here, 1), max_side=max(sides, default=smallest),
        sources={**row.sources, "memory_gb": "this machine"}, unverified=frozenset(FIGURES) - {"memory_gb"},
    )  # fmt: skip


def _nvml(library: str = "libnvidia-ml.so.1") -> str:
    """nvidia-smi's listing without starting a process (NVML API reference, device queries); "" without NVML."""
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return ""
        count, lines = ctypes.c_uint(), []
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for i in range(count.value):
            device, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
            major, minor = ctypes.c_int(), ctypes.c_int()
            nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(device))
            nvml.nvmlDeviceGetName(device, name, len(name))
            if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) == 0:
                line = f"{name.value.decode()}, {major.value}.{minor.value}"
                told = nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
                lines.append(f"{line}, {memory.total >> 20}" if told else line)
        nvml.nvmlShutdown()
        return "\n".join(lines)
    except (OSError, AttributeError):
        return ""


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


def shown(target: Target, name: str) -> str:
    """A figure as people read it: its value, (?) where it is unverified, – where there is none."""
    value = getattr(target, name)
    if value is None:
        return "–"
    text = "–".join(f"{v}" for v in dict.fromkeys(value)) if isinstance(value, tuple) else f"{value:g}"
    return text + (" (?)" if name in target.unverified else "")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    target: Annotated[str | None, typer.Argument(help="One target, or auto, with the source of every figure.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Print the targets, or one of them with its sources, and what this machine is."""
    from rich.console import Console
    from rich.table import Table

    from engines.trt import versions

    with reported(debug):
        console = Console()
        if not console.is_terminal:
            console = Console(width=TABLE_WIDTH)
        rows = TARGETS[1:] if target is None else (find(target),)
        table = Table("target", "sm", *(f"{n.split('_')[0]}\n{unit}" for n, unit in FIGURES.items()))
        for row in rows:
            table.add_row(row.name, str(row.sm or "–"), *(shown(row, n) for n in FIGURES))
        console.print(table)
        for row in rows:
            print(f"\n{row.name}: {row.title}; native {', '.join(sorted(row.formats)) or '–'}")
            for jetpack in row.jetpacks:
                print(f"  JetPack {jetpack.name}: CUDA {jetpack.cuda}, TensorRT {jetpack.tensorrt} ({JETPACK_SOURCE})")
            for source in dict.fromkeys(row.sources.values()):
                of = [n for n in FIGURES if row.sources.get(n) == source and getattr(row, n) is not None]
                if of:
                    print(f"  {', '.join(of)}: {source}")
        print("\n(?) one source only, or an uncertain one")
        found, linux, here = versions.installed(), jetson_linux(), auto()
        print(
            f"this machine: {here.name} ({here.title}), TensorRT {found or 'not found'}"
            + (f", Jetson Linux {linux}" if linux else "")
        )


if __name__ == "__main__":
    app()
