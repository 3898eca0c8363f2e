"""One function for each scheduler: what it does at the steps that were set, as rows of numbers.

Sources: Lipman et al. 2210.02747 (flow matching); Karras et al. 2206.00364 (Euler); Song et al. 2010.02502 (DDIM with
eta 0); Lu et al. 2211.01095, algorithm 2 (DPM-Solver++ of two steps, written for x0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One row of a table, as steps.py says it is carried out."""

    timestep: float
    scale: float = 1.0
    p: float = 0.0
    q: float = 0.0
    r: float = 0.0
    s: float = 1.0
    u: float = 0.0
    v: float = 0.0


def flow_match(scheduler: Any) -> list[Step]:
    sigmas = scheduler.sigmas.double().tolist()
    pairs = zip(scheduler.timesteps.double().tolist(), sigmas[:-1], sigmas[1:], strict=True)
    return [Step(t, u=after - now) for t, now, after in pairs]


def euler(scheduler: Any) -> list[Step]:
    sigmas = scheduler.sigmas.double().tolist()
    pairs = zip(scheduler.timesteps.double().tolist(), sigmas[:-1], sigmas[1:], strict=True)
    velocity = scheduler.config.prediction_type == "v_prediction"
    table = []
    for t, now, after in pairs:
        total = now**2 + 1
        # The derivative (x − x0) / σ is m itself where m is the noise.
        of_x, of_m = (now / total, total**-0.5) if velocity else (0.0, 1.0)
        table.append(Step(t, scale=total**-0.5, s=1 + of_x * (after - now), u=of_m * (after - now)))
    return table


def ddim(scheduler: Any) -> list[Step]:
    alphas, final = scheduler.alphas_cumprod.double().tolist(), float(scheduler.final_alpha_cumprod)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    kind = scheduler.config.prediction_type
    table = []
    for t in scheduler.timesteps.tolist():
        now, after = alphas[t], alphas[t - stride] if t >= stride else final
        signal, noise = now**0.5, (1 - now) ** 0.5
        direction = (1 - after) ** 0.5
        if kind == "v_prediction":
            s, u = direction * noise, direction * signal
        elif kind == "epsilon":
            s, u = 0.0, direction
        else:
            s, u = direction / noise, -direction * signal / noise
        p, q = _of_data(kind, signal, noise)
        table.append(Step(float(t), p=p, q=q, r=after**0.5, s=s, u=u))
    return table


def dpm_solver(scheduler: Any) -> list[Step]:
    """DPM-Solver++ of one or two steps: the second looks at the x0 before, v, to follow how x0 changes."""
    config, sigmas = scheduler.config, scheduler.sigmas.double().tolist()
    levels = [_signal_and_noise(sigma, config.use_flow_sigmas) for sigma in sigmas]
    table: list[Step] = []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        (signal, noise), (after, noise_after) = levels[i], levels[i + 1]
        p, q = _of_data(config.prediction_type, signal, noise)
        if config.prediction_type == "flow_prediction":
            p, q = 1.0, -sigmas[i]
        kept = noise_after / noise
        gain, slope = after - signal * kept, 0.0  # the paper's α(1 − exp(−h)), with nothing infinite in it
        if i > 0 and config.solver_order == 2 and not _ends_in_one(config, i, len(sigmas) - 1):
            h, h_before = (_log_snr(*levels[j + 1]) - _log_snr(*levels[j]) for j in (i, i - 1))
            if h and h_before:  # schedules that end at sigma_min may reach it twice
                slope = (gain / 2 if config.solver_type == "midpoint" else after - gain / h) * h / h_before
        table.append(Step(float(t), p=p, q=q, r=gain + slope, s=kept, v=-slope))
    return table


def _ends_in_one(config: Any, step: int, steps: int) -> bool:
    """Whether the last step is of first order, as diffusers has it: noise 0 lies infinitely far in log-SNR."""
    few = config.lower_order_final and steps < 15
    return step == steps - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero")


def _signal_and_noise(sigma: float, flow: bool) -> tuple[float, float]:
    """The factors of data and noise in x; `flow`: they add up to 1, else their squares do."""
    if flow:
        return 1 - sigma, sigma
    signal = (sigma**2 + 1) ** -0.5
    return signal, sigma * signal


def _log_snr(signal: float, noise: float) -> float:
    return math.log(signal) - math.log(noise)


def _of_data(kind: str, signal: float, noise: float) -> tuple[float, float]:
    """The p and q with which p·x + q·m is x0, for a prediction m of this kind."""
    if kind == "v_prediction":
        return signal, -noise
    return (1 / signal, -noise / signal) if kind == "epsilon" else (0.0, 1.0)


TABLES: dict[str, Callable[[Any], list[Step]]] = {
    "FlowMatchEulerDiscreteScheduler": flow_match,
    "EulerDiscreteScheduler": euler,
    "DDIMScheduler": ddim,
    "DPMSolverMultistepScheduler": dpm_solver,
}
