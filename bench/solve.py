"""Seconds and output error of solving single layers: ours, the published algorithm in full, round-to-nearest, ModelOpt.

    python -m bench.solve                                  # all layers, all solvers, one thread
    python -m bench.solve --layers 3072x3072 --only ours,exhaustive

Synthetic layers: weights of decaying spectrum, inputs with outlier channels. Errors are ||y - y_ref|| / ||y_ref||, on
the samples that the solver saw and on fresh ones. Seconds are wall clock, and in brackets this process's CPU time,
which is what counts where something else runs on the machine. One untimed small layer goes first: it loads libraries.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from passes.solver import Recipe, SolvedLayer, output_error, solve_layer
from plugins.svdq_linear.spec import padded_rank

LAYERS = ((3072, 3072), (3072, 12288), (15360, 3072))
RANK = 32
W4A4 = Recipe(rank=RANK)
WEIGHT_ONLY = Recipe(act_bits=16, group_size=128, rank=RANK)


@dataclass(frozen=True, eq=False)
class Layer:
    """weight float16 [N, K]; samples and fresh float16 [S, K]: calibration and held-out inputs."""

    weight: np.ndarray
    samples: np.ndarray
    fresh: np.ndarray


def synthetic(channels: int, outputs: int, tokens: int = 512, seed: int = 0) -> Layer:
    """A layer K -> N: 512 directions with singular values i^-0.7 carry three quarters of the weight's energy, noise the
    rest; channel scales of the input are log-normal, 1 % of the channels are 10 to 30 times larger."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    directions = min(512, channels, outputs)
    spectrum = torch.arange(1, directions + 1).float() ** -0.7
    weight = (normal(outputs, directions) * spectrum) @ normal(directions, channels)
    weight = weight / weight.square().mean().sqrt() * 0.75**0.5 + normal(outputs, channels) * 0.25**0.5
    scale = (0.5 * normal(channels)).exp()
    outliers = torch.randperm(channels, generator=generator)[: max(4, channels // 100)]
    scale[outliers] *= 10 + 20 * torch.rand(len(outliers), generator=generator)
    inputs = normal(2 * tokens, channels) * scale
    return Layer(
        (weight / channels**0.5).half().numpy(), inputs[:tokens].half().numpy(), inputs[tokens:].half().numpy()
    )


def quantised(values: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales (exact in float16) of symmetric absmax INT4 per `group` along the last axis."""
    blocks = values.unflatten(-1, (-1, group))
    scale = (blocks.abs().amax(-1, keepdim=True) / 7).half().float()
    codes = (blocks / torch.where(scale > 0, scale, 1)).round().clamp(-7, 7)
    return codes.flatten(-2), scale[..., 0]


def dequantised(values: torch.Tensor, group: int) -> torch.Tensor:
    codes, scale = quantised(values, group)
    return codes * scale.repeat_interleave(group, -1)


def exhaustive(layer: Layer, recipe: Recipe) -> SolvedLayer:
    """SVDQuant as published (arXiv 2411.05007), nothing spared: 39 smoothing candidates on the whole layer, SVDs
    within 1e-4 of the best error (8 power iterations), refined until the output error first rises, at most 100 rounds.
    """
    torch.manual_seed(0)
    weight, x = torch.from_numpy(layer.weight).float(), torch.from_numpy(layer.samples).float()
    wanted, group = x @ weight.T, recipe.group_size
    x_peak, w_peak = x.abs().amax(0), weight.abs().amax(0)

    def factors(matrix: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, s, v = torch.svd_lowrank(matrix, q=recipe.rank + 10, niter=8)
        u, s, v = u[:, : recipe.rank], s[: recipe.rank].sqrt(), v[:, : recipe.rank]
        return (inverse[:, None] * v * s).half().float(), (u * s).T.half().float()

    def low_rank(pair: tuple[torch.Tensor, torch.Tensor], inverse: torch.Tensor) -> torch.Tensor:
        return ((pair[0] / inverse[:, None]) @ pair[1]).T

    def error(smoothed: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], inverse: torch.Tensor) -> float:
        residual = dequantised(smoothed - low_rank(pair, inverse), group)
        acts = x * inverse
        acts = acts if recipe.act_bits == 16 else dequantised(acts, group)
        return float((acts @ residual.T + (x @ pair[0]).half().float() @ pair[1] - wanted).norm())

    candidates = [(0.0, 0.0)] + [(i / 20, b) for i in range(1, 20) for b in (0.0, 1 - i / 20)]
    best: tuple[float, float, float] | None = None
    for alpha, beta in candidates:
        inverse = inverse_smooth(alpha, beta, x_peak, w_peak)
        smoothed = weight / inverse
        found = error(smoothed, factors(smoothed, inverse), inverse)
        if best is None or found < best[0]:
            best = (found, alpha, beta)
    assert best is not None
    lowest, alpha, beta = best
    inverse = inverse_smooth(alpha, beta, x_peak, w_peak)
    smoothed = weight / inverse
    kept, rounds = factors(smoothed, inverse), 0
    pair = kept
    for number in range(1, recipe.refine + 1):
        residual = smoothed - low_rank(pair, inverse)
        pair = factors(smoothed - dequantised(residual, group), inverse)
        found = error(smoothed, pair, inverse)
        if found >= lowest:
            break
        kept, lowest, rounds = pair, found, number
    codes, scale = quantised(smoothed - low_rank(kept, inverse), group)
    down, up = (torch.zeros(s) for s in ((weight.shape[1], padded_rank(recipe.rank)), (padded_rank(recipe.rank), weight.shape[0])))
    down[:, : recipe.rank], up[: recipe.rank] = kept
    bias = np.zeros(weight.shape[0], np.float16)
    arrays = [a.numpy().astype(np.float16) for a in (inverse, down, up)]
    return SolvedLayer(
        *arrays, codes.to(torch.int8).numpy(), scale.half().numpy(), bias, lowest, alpha, beta, rounds
    )


def inverse_smooth(alpha: float, beta: float, x_peak: torch.Tensor, w_peak: torch.Tensor) -> torch.Tensor:
    inverse = w_peak**beta / x_peak**alpha
    return (inverse / inverse.log().mean().exp()).clamp(2**-10, 2**10).half().float()


def modelopt(layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """nvidia-modelopt's SVDQuant in its own INT4 setting: weights g128, 16-bit activations, rank 32. In float32."""
    import modelopt.torch.quantization as mtq

    linear = torch.nn.Linear(*reversed(layer.weight.shape), bias=False)
    linear.weight.data = torch.from_numpy(layer.weight).float()
    model, x = torch.nn.Sequential(linear), torch.from_numpy(layer.samples).float()
    config = {**mtq.INT4_AWQ_CFG, "algorithm": {"method": "svdquant", "lowrank": RANK}}
    return mtq.quantize(model, config, lambda m: m(x))  # type: ignore[no-any-return]


def relative(layer: Layer, x: np.ndarray, y: torch.Tensor) -> float:
    wanted = torch.from_numpy(x).float() @ torch.from_numpy(layer.weight).float().T
    return float((y - wanted).norm() / wanted.norm())


def timed(call: Callable[[], object]) -> tuple[object, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


SOLVERS: dict[str, tuple[str, Recipe | None, Callable[[Layer], object]]] = {
    "rtn": ("round-to-nearest W4A4 g64", Recipe(rank=0, smooth=False, refine=0), lambda layer: _ours(layer, "rtn")),
    "ours": ("ours W4A4 g64 r32", W4A4, lambda layer: _ours(layer, "ours")),
    "exhaustive": ("published, exhaustive W4A4 g64 r32", W4A4, lambda layer: exhaustive(layer, W4A4)),
    "ours-w4a16": ("ours W4A16 g128 r32", WEIGHT_ONLY, lambda layer: _ours(layer, "ours-w4a16")),
    "modelopt": ("ModelOpt SVDQuant W4A16 g128 r32", None, modelopt),
}


def _ours(layer: Layer, name: str) -> SolvedLayer:
    recipe = SOLVERS[name][1]
    assert recipe is not None
    return solve_layer(layer.weight, None, layer.samples, recipe)


def row(name: str, layer: Layer) -> str:
    """Run one solver on one layer; a line of the table."""
    title, recipe, solve = SOLVERS[name]
    result, wall, cpu = timed(lambda: solve(layer))
    note = ""
    if isinstance(result, SolvedLayer) and recipe is not None:
        seen, fresh = (output_error(result, layer.weight, None, x, recipe) for x in (layer.samples, layer.fresh))
        note = f"alpha {result.alpha:.2f} beta {result.beta:.2f}, {result.rounds} rounds"
    else:
        with torch.no_grad():
            seen, fresh = (relative(layer, x, result(torch.from_numpy(x).float())) for x in (layer.samples, layer.fresh))  # type: ignore[operator]
    return f"{title:36s} {wall:8.2f} ({cpu:7.2f})  {seen:8.5f}  {fresh:8.5f}  {note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(f"{k}x{n}" for k, n in LAYERS), help="K_inxN_out, comma-separated")
    parser.add_argument("--only", default=",".join(SOLVERS), help=f"some of {', '.join(SOLVERS)}")
    parser.add_argument("--threads", type=int, default=1, help="for ModelOpt and the exhaustive one; ours uses 1")
    parser.add_argument("--tokens", type=int, default=512, help="calibration samples per layer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.only.split(",")
    unknown = [name for name in names if name not in SOLVERS]
    if unknown:
        parser.error(f"unknown solver {unknown[0]!r}; known are {', '.join(SOLVERS)}")
    if "modelopt" in names:
        try:
            import modelopt.torch.quantization  # noqa: F401
        except ImportError as missing:
            names.remove("modelopt")
            print(f"ModelOpt is skipped: {missing}; pip install nvidia-modelopt==0.47.0", file=sys.stderr)
    small = synthetic(256, 256, 64)
    for name in names:
        SOLVERS[name][2](small)
    print(f"torch {torch.__version__}, {options.threads} thread(s), load {os.getloadavg()[0]:.1f}, {options.tokens} tokens")
    for shape in options.layers.split(","):
        channels, outputs = (int(part) for part in shape.split("x"))
        layer = synthetic(channels, outputs, options.tokens)
        print(f"\n{f'K_in {channels} x N_out {outputs}':36s} {'seconds':>8s} {'(CPU)':>9s}  {'error':>8s}  {'fresh':>8s}")
        for name in names:
            print(row(name, layer), flush=True)


if __name__ == "__main__":
    main()
