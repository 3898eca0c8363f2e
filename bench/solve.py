"""Seconds and output error of solving one layer: ours, the published algorithm, round-to-nearest, ModelOpt.

    python -m bench.solve                                  # all layers, all solvers, one thread
    python -m bench.solve --layers 3072x3072 --only ours,exhaustive

Synthetic layers: weights of decaying spectrum, inputs with outlier channels. Errors are relative output
errors, ||y - y_ref|| / ||y_ref||, on the samples that the solver saw and on fresh ones. Seconds are wall
clock, and in brackets CPU time, which is what counts where something else runs on the machine. One small
layer goes first, untimed: it loads libraries. ModelOpt is optional: pip install nvidia-modelopt==0.47.0.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
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
    """A layer K -> N. 512 directions with singular values i^-0.7 carry three quarters of the weight's energy,
    noise the rest; channel scales of the input are log-normal, 1 % of the channels are 10 to 30 times larger.
    """
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
        (weight / channels**0.5).half().numpy(),
        inputs[:tokens].half().numpy(),
        inputs[tokens:].half().numpy(),
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
    """SVDQuant as published (arXiv 2411.05007), nothing spared: 39 smoothing candidates on the whole layer,
    SVDs within 1e-4 of the best error (8 power iterations), refined until the output error first rises, at
    most 100 rounds.
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
    down, up = (
        torch.zeros(s)
        for s in ((weight.shape[1], padded_rank(recipe.rank)), (padded_rank(recipe.rank), weight.shape[0]))
    )
    down[:, : recipe.rank], up[: recipe.rank] = kept
    bias = np.zeros(weight.shape[0], np.float16)
    half = {"inv_smooth": inverse, "down": down, "up": up, "wscale": scale}
    arrays = {name: values.half().numpy() for name, values in half.items()}
    numbers = {"error": lowest, "alpha": alpha, "beta": beta, "rounds": rounds}
    return SolvedLayer(qweight=codes.to(torch.int8).numpy(), bias=bias, **arrays, **numbers)  # type: ignore[arg-type]


def inverse_smooth(alpha: float, beta: float, x_peak: torch.Tensor, w_peak: torch.Tensor) -> torch.Tensor:
    inverse = w_peak**beta / x_peak**alpha
    return (inverse / inverse.log().mean().exp()).clamp(2**-10, 2**10).half().float()


@dataclass(frozen=True)
class Outcome:
    """What a solver found: its relative output error for inputs [S, K], and a remark for the table."""

    error: Callable[[np.ndarray], float]
    remark: str = ""


def judged(solve: Callable[[Layer, Recipe], SolvedLayer], recipe: Recipe) -> Callable[[Layer], Outcome]:
    def run(layer: Layer) -> Outcome:
        solved = solve(layer, recipe)
        return Outcome(
            lambda x: output_error(solved, layer.weight, None, x, recipe),
            f"alpha {solved.alpha:.2f} beta {solved.beta:.2f}, {solved.rounds} rounds",
        )

    return run


def ours(layer: Layer, recipe: Recipe) -> SolvedLayer:
    return solve_layer(layer.weight, None, layer.samples, recipe)


def modelopt(layer: Layer) -> Outcome:
    """nvidia-modelopt's SVDQuant in its own INT4 setting (weights g128, 16-bit activations), in float32."""
    import modelopt.torch.quantization as mtq

    weight, x = torch.from_numpy(layer.weight).float(), torch.from_numpy(layer.samples).float()
    linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
    linear.weight.data = weight.clone()
    config = {**mtq.INT4_AWQ_CFG, "algorithm": {"method": "svdquant", "lowrank": RANK}}
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        model = mtq.quantize(torch.nn.Sequential(linear), config, lambda m: m(x))

    def error(inputs: np.ndarray) -> float:
        with torch.no_grad():
            wide = torch.from_numpy(inputs).float()
            wanted = wide @ weight.T
            return float((model(wide) - wanted).norm() / wanted.norm())

    return Outcome(error)


SOLVERS: dict[str, tuple[str, Callable[[Layer], Outcome]]] = {
    "rtn": ("round-to-nearest W4A4 g64", judged(ours, Recipe(rank=0, smooth=False, refine=0))),
    "ours": ("ours W4A4 g64 r32", judged(ours, W4A4)),
    "exhaustive": ("published, exhaustive W4A4 g64 r32", judged(exhaustive, W4A4)),
    "ours-w4a16": ("ours W4A16 g128 r32", judged(ours, WEIGHT_ONLY)),
    "modelopt": ("ModelOpt SVDQuant W4A16 g128 r32", modelopt),
}

#: (ours, the other): compared in the line below each layer's table.
PAIRS = (("ours", "exhaustive"), ("ours-w4a16", "modelopt"))


def available(names: list[str]) -> list[str]:
    """names without ModelOpt where it is not installed, said aloud."""
    if "modelopt" in names and importlib.util.find_spec("modelopt") is None:
        print("ModelOpt is skipped, it is not installed: pip install nvidia-modelopt==0.47.0", file=sys.stderr)
        return [name for name in names if name != "modelopt"]
    return names


def table(layer: Layer, names: list[str]) -> None:
    """Run the solvers on one layer; a line each, and one for each of PAIRS."""
    found: dict[str, tuple[float, float]] = {}
    for name in names:
        title, solve = SOLVERS[name]
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = solve(layer)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        error = outcome.error(layer.samples)
        found[name] = cpu, error
        fresh = outcome.error(layer.fresh)
        print(f"{title:36s} {wall:8.2f} ({cpu:7.2f})  {error:8.5f}  {fresh:8.5f}  {outcome.remark}", flush=True)
    for mine, other in PAIRS:
        if mine in found and other in found:
            speed, error = found[other][0] / found[mine][0], found[mine][1] / found[other][1] - 1
            print(
                f"  {mine} against {other}: {speed:.1f} times faster in CPU time, error {error:+.1%}",
                flush=True,
            )


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
    names = available(names)
    small = synthetic(256, 256, 64)
    for name in names:
        SOLVERS[name][1](small)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.tokens} tokens, load {load:.1f}")
    for shape in options.layers.split(","):
        channels, outputs = (int(part) for part in shape.split("x"))
        title = f"K_in {channels} x N_out {outputs}"
        print(f"\n{title:36s} {'seconds':>8s} {'(CPU)':>9s}  {'error':>8s}  {'fresh':>8s}", flush=True)
        table(synthetic(channels, outputs, options.tokens), names)


if __name__ == "__main__":
    main()
