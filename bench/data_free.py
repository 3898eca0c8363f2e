"""Whether smoothing from weights alone helps a layer that is solved without samples.

    python -m bench.data_free shapes-dit out/shapes-dit

Solves every 4-bit layer of a built model for `svdq-int4` as a data-free build does, but smoothed by 1/s = max|W|^beta
per input channel, and prints the relative error of its output over the build's calibration samples, beside that of the
calibrated layer. beta 0 is what --data-free does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without an installation
from artifact.store import Store  # noqa: E402
from export.components import components  # noqa: E402
from export.examples import read_examples  # noqa: E402
from export.graph_cache import prepared  # noqa: E402
from export.options import Options  # noqa: E402
from export.plan import Build  # noqa: E402
from export.quantise import ask_for, find, sample_keys  # noqa: E402
from export.source import open_source  # noqa: E402
from export.stages import Stages  # noqa: E402
from passes.solver import Recipe  # noqa: E402
from passes.solver.error import relative_error  # noqa: E402
from passes.solver.layer import solve_layer, solve_smoothed  # noqa: E402
from passes.solver.problem import check, one_thread  # noqa: E402
from passes.weights import LayerLoader  # noqa: E402

BETAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
PRESET = "svdq-int4"


def smoothing(weight: np.ndarray, beta: float) -> torch.Tensor:
    """1/s of geometric mean 1, float32 [K], for weight [N, K]."""
    log = beta * torch.from_numpy(np.abs(weight.astype(np.float32)).max(0)).clamp_min(1e-9).log()
    return (log - log.mean()).exp()


def layer_errors(load: LayerLoader, recipe: Recipe) -> list[float]:
    """Relative output error with each beta, and calibrated."""
    weight, bias, samples = load()
    with one_thread():
        seen, unseen = check(weight, bias, samples, recipe), check(weight, bias, None, recipe)
        factors = (seen.t.rounded(smoothing(weight, beta)) for beta in BETAS)
        free = [relative_error(seen, solve_smoothed(unseen, inv_smooth)) for inv_smooth in factors]
    return [*free, solve_layer(weight, bias, samples, recipe).error]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path, help="what python -m export.build made of it, calibrated")
    args = parser.parse_args()
    options, source, store = Options(model=args.model), open_source(args.model), Store(args.out / ".cache")
    build = Build(options, source, components(source), args.out, store, Stages(quiet=True))
    part = build.denoiser
    layers = find(build, part, prepared(source, part, options.dtype, store))
    recipes = ask_for(build, part, layers)[PRESET]
    calibration, _ = read_examples(options, source)
    keys, index = sample_keys(build, layers, calibration), source.weights(part.module)
    print(f"{'error of the output, %':64}" + "".join(f"{beta:>8}" for beta in BETAS) + "  calibrated")
    rows = []
    for layer in layers:
        tensors = {name: index[name] for name in (*layer.weights, *layer.biases) if name is not None}
        rows.append(layer_errors(LayerLoader(layer, tensors, str(store.root), keys[layer.input]), recipes[layer.name]))
        print(f"{layer.name:64}" + "".join(f"{100 * e:8.2f}" for e in rows[-1]), flush=True)
    print(f"{'mean':64}" + "".join(f"{100 * e:8.2f}" for e in np.mean(rows, 0)))


if __name__ == "__main__":
    main()
