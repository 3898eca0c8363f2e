"""The name of a solved layer in a store: a hash of all that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict

import llvmlite.binding
import numba
import numpy as np
import torch

from passes.solver.recipe import Recipe

#: To be raised with any change of the solver that changes its numbers.
NUMERICS_VERSION = 3


def solve_key(weight: np.ndarray, bias: np.ndarray | None, samples: np.ndarray | None, recipe: Recipe) -> str:
    """SHA-256 (hex) over the arrays with dtype and shape, the recipe, and what else decides the last bits."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), numerics()], sort_keys=True).encode())
    for array in (weight, bias, samples):
        if array is None:
            digest.update(b"none ")
            continue
        digest.update(f"{array.dtype.name} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def numerics() -> dict[str, str]:
    """Versions, and the instruction set by which MKL and LLVM choose their loops and so the order of sums."""
    return {
        "version": str(NUMERICS_VERSION),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cpu": llvmlite.binding.get_host_cpu_name(),
    }
