"""What a tile of the multiplication costs, from its machine code: python -m bench.roofline --target agx-orin

Counts the instructions of each tile's main loop (one step: 64 channels) in the SASS of the target's architecture and
sets issue slots, tensor-core cycles, shared-memory and L2 traffic against each other, then against memory for the
shapes of FLUX. Nothing is run: these are bounds, no measurements. Needs a CUDA compiler and nvdisasm (pip install
nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without an installation
from engines import targets  # noqa: E402
from plugins import compilers  # noqa: E402
from plugins.architectures import for_capability  # noqa: E402

TILES_H = compilers.SOURCE.with_name("tiles.h").read_text(encoding="utf-8")

# Of one of a multiprocessor's four partitions (CUDA programming guide, arithmetic throughput of 8.6, 8.7 and 8.9): a
# warp instruction is issued per cycle; tensor-core cycles of a warp's multiplication follow from the dense rates in
# engines/targets.py: 170 TOP/s of INT4 on AGX Orin are 1024 multiply-adds per cycle and partition.
PARTITIONS = 4
MACS_PER_CYCLE = {"IMMA.16864": 1024, "IMMA.16832": 512, "HMMA.16816": 256}
MACS = {"IMMA.16864": 16 * 8 * 64, "IMMA.16832": 16 * 8 * 32, "HMMA.16816": 16 * 8 * 16}
SHARED_BYTES_PER_CYCLE = 128  # of a multiprocessor
L2_BYTES_PER_CYCLE = 64  # of a multiprocessor

FLUX = ((4608, 3072, 3072, "attention out"), (4608, 3072, 9216, "q, k, v"), (4608, 3072, 12288, "MLP in"),
        (4608, 12288, 3072, "MLP out"), (4608, 15360, 3072, "single block out"))  # fmt: skip
RANK = 32


@dataclass(frozen=True)
class Tile:
    """A STAGED row of the tile table."""

    name: str
    warps_m: int
    warps_n: int
    blocks: int

    @property
    def rows(self) -> int:
        return 16 * self.warps_m * self.blocks

    @property
    def columns(self) -> int:
        return 64 * self.warps_n

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n


def tiles() -> list[Tile]:
    rows = re.findall(r"^ +STAGED\((\w+), (\d+), (\d+), (\d+),", TILES_H, re.MULTILINE)
    return [Tile(name, *map(int, numbers)) for name, *numbers in rows]


def disassembled(cubin: bytes) -> dict[str, list[str]]:
    """Lines of SASS, by kernel."""
    found = shutil.which("nvdisasm", path=f"{Path(sys.executable).parent}:/usr/local/cuda/bin") or shutil.which(
        "nvdisasm"
    )
    if not found:
        sites = [Path(p) / "nvidia/cu13/bin/nvdisasm" for p in sys.path]
        found = next((str(p) for p in sites if p.exists()), None)
    if not found:
        raise SystemExit("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([found, "-c", file.name], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\t\.section\t\.text\.", text, flags=re.MULTILINE)[1:]
    return {s[: s.index(",")]: s.splitlines() for s in sections}


def main_loop(lines: list[str]) -> Counter[str]:
    """Instructions by name of the loop with the most integer multiplications: from a label to the branch back to it."""
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    best: list[str] = []
    for i, line in enumerate(lines):
        back = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
        if back and labels.get(back[1], i) < i:
            loop = lines[labels[back[1]] : i + 1]
            if sum("IMMA" in x for x in loop) > sum("IMMA" in x for x in best):
                best = loop
    names = (re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d\s+|@!?PT\s+)?([A-Z][\w.]*)", line) for line in best)
    return Counter(m[1] for m in names if m)


@dataclass(frozen=True)
class Step:
    """Of 64 channels of a tile, in cycles of a multiprocessor that has this block alone."""

    instructions: int
    fma: int
    issue: float
    tensor: float
    shared: float
    l2: float

    @property
    def cycles(self) -> float:
        return max(self.issue, self.tensor, self.shared, self.l2)

    @property
    def bound(self) -> str:
        return max(("issue", "tensor", "shared", "l2"), key=lambda n: getattr(self, n))


def step_of(tile: Tile, loop: Counter[str]) -> Step:
    warps = tile.warps / PARTITIONS
    tensor = sum(c * MACS[k] / MACS_PER_CYCLE[k] for n, c in loop.items() for k in MACS if n.startswith(k))
    wide = any(n.startswith("IMMA.16832") for n in loop)
    loads = sum(c * (512 if ".128" in n else 128) for n, c in loop.items() if n.startswith("LDS") and n != "LDS.U")
    moved = tile.rows * (64 if wide else 32) + tile.columns * 32 + 2 * (tile.rows + tile.columns)
    fma = sum(c for n, c in loop.items() if n.startswith("FFMA"))
    return Step(
        loop.total(), fma, loop.total() * warps, tensor * warps,
        loads * tile.warps / SHARED_BYTES_PER_CYCLE, moved / L2_BYTES_PER_CYCLE,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="agx-orin")
    parser.add_argument("--multiprocessors", type=int, default=16, help="of the device; 16 is AGX Orin 64 GB")
    parser.add_argument("--ghz", type=float, default=1.3, help="their clock; 1.3 is AGX Orin at its highest power mode")
    args = parser.parse_args()
    target = targets.find(args.target)
    architecture = for_capability(target.compute_capability or "")
    if target.bandwidth_gb_s is None:
        raise SystemExit(f"the bandwidth of {target.title} is not known")
    if not architecture.native_int4:
        raise SystemExit(f"{architecture.flag} has no 4-bit instructions; the rates here are those of 8.6, 8.7 and 8.9")
    compiler = compilers.choose(architecture, compilers.available())
    kernels = disassembled(compilers.cubin(architecture, compiler).cubin)
    print(f"{target.title}: {architecture.flag}, {compiler}, float16\n")
    print(f"{'tile, codes':16}{'instr.':>8}{'FMA':>6}{'issue':>8}{'tensor':>8}{'shared':>8}{'L2':>6}   bound, of peak")
    steps = {}
    for tile in tiles():
        for codes in ("s4", "s8"):
            steps[tile, codes] = s = step_of(tile, main_loop(kernels[f"svdq_{tile.name}_f16_{codes}"]))
            cycles = f"{s.issue:8.0f}{s.tensor:8.0f}{s.shared:8.0f}{s.l2:6.0f}   {s.bound}, {s.tensor / s.cycles:.0%}"
            print(f"{tile.name + ' ' + codes:16}{s.instructions:8}{s.fma:6}{cycles}")
    processors, clock, bandwidth = args.multiprocessors, args.ghz, target.bandwidth_gb_s
    print(
        f"\nFLUX, 4-bit, rank {RANK}: milliseconds on {processors} multiprocessors at {clock} GHz and {bandwidth} GB/s"
    )
    print(
        f"{'layer':18}{'M':>6}{'K':>7}{'N':>7}  {'tile':10}{'multiply':>9}{'branch':>8}{'memory':>8}{'FP16':>8}   bound"
    )
    for m, k, n, name in FLUX:
        rows = []
        for tile in tiles():
            count = -(-m // tile.rows) * -(-n // tile.columns)
            waves = -(-count // processors)
            rows.append((waves * (k // 64) * steps[tile, "s4"].cycles / clock / 1e6, tile.name))
        multiply, best = min(rows)
        rate = MACS_PER_CYCLE["HMMA.16816"] * PARTITIONS * processors * clock * 1e6  # multiply-adds per millisecond
        branch = m * RANK * (n + k) / rate
        memory = (m * k * 2 + m * k / 2 * 2 + k * n / 2 + m * n * 2) / bandwidth / 1e6
        print(f"{name:18}{m:6}{k:7}{n:7}  {best:10}{multiply:9.2f}{branch:8.2f}{memory:8.2f}{m * n * k / rate:8.2f}"
              f"   {'issue' if multiply > memory else 'memory'}")  # fmt: skip


if __name__ == "__main__":
    main()
