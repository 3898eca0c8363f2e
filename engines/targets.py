"""The devices that an artifact can be built for: one row each, data only.

Sources: NVIDIA's data sheets and module comparison pages for Jetson and H200, the GA102, AD102 and GB202 whitepapers
for GeForce (the card named stands for its series). A value in `unverified` has no second source yet: no number that
the product promises may rest on it. Rates are dense, per second, at the device's highest power mode.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import UserError, nearest


@dataclass(frozen=True)
class JetPack:
    """A release of Jetson's software and the CUDA and TensorRT that come with it."""

    name: str
    cuda: str
    tensorrt: str


JETPACK_6 = (JetPack("6.1", "12.6", "10.3"), JetPack("6.2", "12.6", "10.3"), JetPack("7.2", "13.2", "10.16"))
JETPACK_7 = (JetPack("7.0", "13.0", "10.13"), JetPack("7.1", "13.0", "10.13"), JetPack("7.2", "13.2", "10.16"))


@dataclass(frozen=True)
class Target:
    """One device.

    `compute_capability` "8.7" is sm_87. `memory_gb` and `bandwidth_gb_s` in 10⁹ bytes; on Jetson the CPU shares that
    memory and `usable_gb` leaves out what the system keeps. `fp16_tflops`, `int8_tops`, `int4_tops`, `fp4_tflops`:
    tensor-core rates in 10¹² operations; None where there is no such instruction. `formats`: what the tensor cores
    multiply natively. `jetpacks`: releases that run it, the oldest first (none: a desktop driver). `unverified`: names
    of the fields whose value has one source only.
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
    jetpacks: tuple[JetPack, ...] = ()
    formats: frozenset[str] = frozenset()
    shared_memory: bool = False
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
AMPERE = frozenset({"fp16", "bf16", "int8", "int4"})  # int4: mma.m16n8k64 on s4, sm_80 to sm_89
ADA = AMPERE | {"fp8"}
HOPPER = frozenset({"fp16", "bf16", "int8", "fp8"})  # s4 is emulated from here on
BLACKWELL = HOPPER | {"nvfp4"}
_ORIN_RATES = frozenset({"fp16_tflops", "int8_tops", "int4_tops"})
_CARD = frozenset({"memory_gb", "bandwidth_gb_s", "fp16_tflops", "int8_tops", "power_w"})

TARGETS = (
    Target("cpu", "This machine's CPU (portable ONNX on onnxruntime)"),
    Target(
        "orin-nano",
        "Jetson Orin Nano 8 GB Super",
        "8.7",
        8,
        102,
        17,
        33,
        66,
        None,
        (7, 25),
        JETPACK_6,
        AMPERE,
        shared_memory=True,
        unverified=_ORIN_RATES,
    ),
    Target(
        "orin-nx",
        "Jetson Orin NX 16 GB",
        "8.7",
        16,
        102,
        19,
        50,
        100,
        None,
        (10, 40),
        JETPACK_6,
        AMPERE,
        shared_memory=True,
        unverified=_ORIN_RATES | {"bandwidth_gb_s"},
    ),
    Target(
        "agx-orin",
        "Jetson AGX Orin 64 GB",
        "8.7",
        64,
        204.8,
        42.5,
        85,
        170,
        None,
        (15, 60),
        JETPACK_6,
        AMPERE,
        shared_memory=True,
        unverified=frozenset({"fp16_tflops", "int8_tops"}),
    ),
    Target(
        "thor-t4000",
        "Jetson Thor T4000",
        "11.0",
        64,
        273,
        150,
        300,
        None,
        600,
        (40, 70),
        JETPACK_7[1:],
        BLACKWELL,
        shared_memory=True,
        unverified=frozenset({"bandwidth_gb_s", "fp16_tflops", "int8_tops", "fp4_tflops"}),
    ),
    Target(
        "thor-t5000",
        "Jetson Thor T5000",
        "11.0",
        128,
        273,
        258,
        517,
        None,
        1035,
        (40, 130),
        JETPACK_7,
        BLACKWELL,
        shared_memory=True,
        unverified=frozenset({"int8_tops"}),
    ),
    Target(
        "rtx-30",
        "GeForce RTX 30 series (RTX 3090)",
        "8.6",
        24,
        936,
        142,
        284,
        568,
        None,
        (350, 350),
        formats=AMPERE,
        unverified=_CARD | {"int4_tops"},
    ),
    Target(
        "rtx-40",
        "GeForce RTX 40 series (RTX 4090)",
        "8.9",
        24,
        1008,
        330,
        661,
        1321,
        None,
        (450, 450),
        formats=ADA,
        unverified=_CARD | {"int4_tops"},
    ),
    Target(
        "rtx-50",
        "GeForce RTX 50 series (RTX 5090)",
        "12.0",
        32,
        1792,
        419,
        838,
        None,
        1676,
        (575, 575),
        formats=BLACKWELL,
        unverified=_CARD | {"fp4_tflops"},
    ),
    Target(
        "h200",
        "H200",
        "9.0",
        141,
        4800,
        989,
        1979,
        None,
        None,
        (700, 700),
        formats=HOPPER,
    ),
)
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


def auto(root: Path = Path("/"), query: Callable[[], str] | None = None) -> Target:
    """The target of this machine; cpu where no NVIDIA GPU is found or none of the table's. Never fails.

    `root` and `query` (what `nvidia-smi --query-gpu=name,compute_cap` prints) are for tests.
    """
    try:
        return _jetson(root) or _card((query or _nvidia_smi)()) or TARGETS[0]
    except Exception:  # a broken driver is as good as none
        return TARGETS[0]


def _jetson(root: Path) -> Target | None:
    """By the device tree's model, on a machine whose /etc/nv_tegra_release says Jetson."""
    if not (root / "etc/nv_tegra_release").exists():
        return None
    model = (root / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace").lower()
    return next((find(name) for words, name in _JETSON_MODELS if words in model), None)


def _card(listing: str) -> Target | None:
    """By the compute capability of the first GPU in nvidia-smi's listing, "name, 8.9" a line."""
    first = listing.strip().splitlines()[0] if listing.strip() else ""
    capability = first.rpartition(",")[2].strip()
    same = [t for t in TARGETS if t.compute_capability == capability and not t.shared_memory]
    return same[0] if same else None


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
