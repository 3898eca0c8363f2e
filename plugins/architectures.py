"""The GPU architectures that the kernels are compiled for, one row each, and the targets that run them. Data only.

There is a cubin per row and no PTX: PTX would be compiled on the device, for minutes and by a compiler that no test of
ours has seen, and that of compute capability 8.x would have 4-bit multiplications emulated. A GPU without a row gets a
clear refusal (SVDQ_NO_KERNELS) instead.

Sources: CUDA programming guide, "Technical specifications per compute capability" (the same numbers in CCCL's
arch_traits.h); nvcc's manual for the suffixes: `a` runs on that very compute capability, `f` on its family.
"""

from __future__ import annotations

from dataclasses import dataclass

from plugins.errors import PluginError, nearest

X86_64, AARCH64 = "x86_64", "aarch64"
MACHINES = (X86_64, AARCH64)

#: Limits of every architecture here: 32-bit registers of a multiprocessor and of a thread, and bytes of shared memory
#: that a block has without asking for more.
REGISTERS_PER_MULTIPROCESSOR = 65536
REGISTERS_PER_THREAD = 255
STATIC_SHARED_MEMORY = 48 * 1024


@dataclass(frozen=True)
class Architecture:
    """What one cubin is compiled for.

    `name` "87" is sm_87. `capabilities`: compute capabilities that run its cubin. `driver`: CUDA major version of the
    oldest driver that must load it; a compiler of a later major version is no use, its cubins need later drivers.
    `first_cuda`: the first compiler that knows it. `native_int4`: whether 4-bit codes are multiplied as such (else they
    are widened to 8 bits). `shared_memory`: bytes that a block may ask for. `threads`: of a multiprocessor.
    `machines`: processors beside which it is found.
    """

    name: str
    capabilities: tuple[str, ...]
    driver: int
    first_cuda: tuple[int, int]
    native_int4: bool
    shared_memory: int
    threads: int
    machines: tuple[str, ...] = MACHINES

    @property
    def flag(self) -> str:
        """What nvcc and NVRTC call it."""
        return f"sm_{self.name}"


_JETSON = (AARCH64,)

# sm_80 would run on 8.6 and 8.9 too, but is scheduled for another machine; on Jetson (8.7) no other cubin runs at all.
# Nothing before CUDA 12.0 has been tried.
ARCHITECTURES = (
    Architecture("80", ("8.0",), 12, (12, 0), True, 163 * 1024, 2048),
    Architecture("86", ("8.6",), 12, (12, 0), True, 99 * 1024, 1536),
    Architecture("87", ("8.7",), 12, (12, 0), True, 163 * 1024, 1536, _JETSON),
    Architecture("89", ("8.9",), 12, (12, 0), True, 99 * 1024, 1536),
    Architecture("90a", ("9.0",), 12, (12, 0), False, 227 * 1024, 2048),
    Architecture("100f", ("10.0", "10.3"), 13, (13, 0), False, 227 * 1024, 2048),
    Architecture("110f", ("11.0",), 13, (13, 0), False, 227 * 1024, 1536, _JETSON),
    Architecture("120f", ("12.0", "12.1"), 13, (13, 0), False, 99 * 1024, 1536),
)


@dataclass(frozen=True)
class Target:
    """A device as far as its plugin goes: compute capability and the machine that the library runs on."""

    capability: str
    machine: str


# The names of engines/targets.py, which a test holds against these.
TARGETS = {
    "orin-nano": Target("8.7", AARCH64),
    "orin-nx": Target("8.7", AARCH64),
    "agx-orin": Target("8.7", AARCH64),
    "thor-t4000": Target("11.0", AARCH64),
    "thor-t5000": Target("11.0", AARCH64),
    "rtx-30": Target("8.6", X86_64),
    "rtx-40": Target("8.9", X86_64),
    "rtx-50": Target("12.0", X86_64),
    "h200": Target("9.0", X86_64),
}


def find(name: str) -> Architecture:
    """The row named "87", "sm_87" or "sm87". Raises PluginError naming the known ones."""
    bare = name.lower().removeprefix("sm").removeprefix("_")
    for row in ARCHITECTURES:
        if row.name == bare:
            return row
    raise PluginError(
        f"There are no kernels for architecture {name!r}: {nearest(bare, [r.name for r in ARCHITECTURES])}"
    )


def for_capability(capability: str) -> Architecture:
    """The row whose cubin a GPU of compute capability "8.7" runs. Raises PluginError where there is none."""
    for row in ARCHITECTURES:
        if capability in row.capabilities:
            return row
    known = ", ".join(c for row in ARCHITECTURES for c in row.capabilities)
    raise PluginError(
        f"There are no kernels for compute capability {capability}, only for {known}: take a preset without the plugin."
    )


def of_machine(machine: str) -> tuple[Architecture, ...]:
    """All rows found beside that processor. Raises PluginError for one that is not supported."""
    if machine not in MACHINES:
        raise PluginError(f"The plugin is built for {' and '.join(MACHINES)}, not for {machine!r}: name a target.")
    return tuple(row for row in ARCHITECTURES if machine in row.machines)
