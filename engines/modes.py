"""Memory modes: how many of an artifact's graphs are in memory at a time, and which mode a budget allows.

After Choi et al., "Squeezing Large-Scale Diffusion Models for Mobile" (2023), section 3.3: the denoiser stays, the text
encoder is loaded, used and freed, the image decoder is loaded by a second thread while the last steps still run.
"""

from __future__ import annotations

import logging
import re

from artifact.errors import UserError, nearest, not_installed
from artifact.free import trim
from artifact.manifest import Artifact
from engines.memory import resident_bytes
from engines.sizes import preset_bytes

# From the fastest to the smallest.
MODES = ("resident", "pipelined", "streaming")
log = logging.getLogger("engines")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# What onnxruntime's CPU provider takes for a graph while it loads, measured with `python -m engines.measure` on the
# bundled models and on a chain of 1024 x 1024 products (x86-64, onnxruntime 1.31):
_WEIGHTS = {"float16": 2.5, "bfloat16": 2.5, "float32": 1.1}  # per byte of weights: 16-bit ones become 32-bit ones
_STRUCTURE = 100  # per byte of the .onnx file without its weights: nodes, kernels, plans
_MOST_STRUCTURE = 50 * 10**6  # above, the file holds weights, too
_RUNTIME = 14 * 10**6  # onnxruntime's own pages, touched by the first graph
#: What a process takes of a GPU before any engine: CUDA's context, TensorRT's libraries, the plugin's module. Assumed.
CONTEXT_BYTES = 400 * 10**6


def parse_bytes(text: str | int) -> int:
    """ "600MB", "2 GiB", "1.5gb" or a number of bytes. Raises UserError for anything else, and for less than 1."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = found and _UNITS.get(found[2].upper())
    if not found or unit is None or float(found[1]) * unit < 1:
        raise UserError(f"--max-memory {text} is no amount of memory: give one such as 600MB or 2GiB.")
    return int(float(found[1]) * unit)


def estimated_bytes(artifact: Artifact, preset: str, backend: str, mode: str) -> int:
    """Peak memory of one image in this mode: what the process holds now, and the largest set of graphs at a time.

    For onnxruntime resident memory of the process: weights and their loading; what lies between the layers is counted
    only as far as loading takes more than keeping. For TensorRT device memory: the context, the engines, and what
    TensorRT said at the build that they need to run.
    """
    needs, streaming = _needs(artifact, preset, backend, mode)
    roles = {n: c["role"] for n, c in artifact.manifest["components"].items()}

    def of(role: str) -> int:
        return sum(needs[n] for n, r in roles.items() if r == role)

    encoders, decoder, encoder, denoiser = (of(r) for r in ("text_encoder", "vae_decoder", "vae_encoder", "denoiser"))
    if mode == "resident":
        held = encoders + decoder + denoiser + (encoder if artifact.pictures else 0)
    elif mode == "pipelined" or streaming:
        held = denoiser + max(encoders, decoder, encoder)
    else:
        held = max(needs.values())
    return held + (CONTEXT_BYTES if backend == "tensorrt" else resident_bytes("VmRSS") + _RUNTIME)


def spare_bytes(artifact: Artifact, preset: str, backend: str, mode: str, max_memory: str | int | None) -> int:
    """What `max_memory` leaves beyond the estimate where weights are streamed: so much of them may stay on the device.
    0 in the other modes, and without a budget."""
    if mode != MODES[-1] or max_memory is None or backend != "tensorrt":
        return 0
    return max(0, parse_bytes(max_memory) - estimated_bytes(artifact, preset, backend, mode))


def import_libraries() -> None:
    """Everything that drawing an image on the CPU imports, whatever the artifact. Raises UserError without it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401

        import engines.modules  # noqa: F401  (torch, diffusers, transformers)
    except ModuleNotFoundError as e:
        raise (not_installed(e) or e) from None


def _needs(artifact: Artifact, preset: str, backend: str, mode: str) -> tuple[dict[str, int], bool]:
    """Bytes of memory for each component alone, and whether the denoiser's weights are streamed in this mode."""
    if backend == "tensorrt":
        from engines.trt.plan import find

        plans = {n: find(artifact, n, preset) for n in artifact.manifest["components"]}
        streamed = {n for n, p in plans.items() if mode == MODES[-1] and p.metadata["weight_streaming"]}
        return (
            {n: p.activation_bytes + (0 if n in streamed else p.metadata["bytes"]) for n, p in plans.items()},
            set(artifact.component("denoiser")) <= streamed,
        )
    factor, needs = _WEIGHTS[artifact.manifest["dtype"]], {}
    for name, size in preset_bytes(artifact, preset).items():
        structure = artifact.model(name, preset).stat().st_size
        needs[name] = int(factor * (size - structure)) + min(_STRUCTURE * structure, _MOST_STRUCTURE)
    return needs, False


def choose_mode(artifact: Artifact, preset: str, backend: str, mode: str | None, max_memory: str | int | None) -> str:
    """`mode` if it is named; else the fastest one whose estimate is within `max_memory`; resident without a budget.

    Raises UserError for an unknown mode, for an amount that is none, for a named mode whose estimate is above the
    budget, and where not even the smallest mode is within it.
    """
    if mode is not None and mode not in MODES:
        raise UserError(f"There is no memory mode {mode!r}: {nearest(mode, list(MODES))}")
    if max_memory is None:
        return mode or MODES[0]
    budget = parse_bytes(max_memory)
    if backend != "tensorrt":
        import_libraries()  # so that what they take counts as there already
        trim()  # and freed heap, which the graphs can have, does not
    estimates = {m: estimated_bytes(artifact, preset, backend, m) for m in ((mode,) if mode else MODES)}
    for name, estimate in estimates.items():
        if estimate <= budget:
            return name
    least = min(estimates, key=lambda m: estimates[m])
    smaller = " or mode" if mode and mode != MODES[-1] else ""
    raise UserError(
        f"Preset {preset!r} needs about {estimates[least] / 1e6:.0f} MB in {least} mode, more than --max-memory "
        f"{budget / 1e6:.0f} MB: allow more, or take a smaller preset{smaller}."
    )
