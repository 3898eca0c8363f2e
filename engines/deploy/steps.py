"""Step tables: what a scheduler does, as numbers, so that a device needs no diffusers to denoise.

Every scheduler here is linear in the latents x and in what the denoiser predicts, m, but for a clamp between. One row
of a table is one step::

    timestep, scale, p, q, r, s, u

    m  = denoiser(scale·x, timestep)
    x0 = clamp(p·x + q·m, ±clip)
    x  = r·x0 + s·x + u·m

Sources: Lipman et al. 2210.02747 (flow matching); Karras et al. 2206.00364 (Euler); Song et al. 2010.02502 (DDIM with
eta 0).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from artifact.errors import UserError

COLUMNS = ("timestep", "scale", "p", "q", "r", "s", "u")
Row = tuple[float, ...]


def step_tables(folder: Path, counts: Iterable[int], pipeline: str, tokens: int) -> dict[str, Any]:
    """Tables for the numbers of steps in `counts`, of the scheduler in `folder` as `pipeline` calls it.

    FluxPipeline gives its own sigmas and a shift that depends on `tokens`, the image's tokens, and feeds the denoiser
    timestep / 1000; StableDiffusionPipeline overrules two old settings of the config. Returns {"scheduler", "columns",
    "clip", "steps": {count: {"noise": standard deviation that the initial noise is scaled to, "rows": [row, ...]}}};
    counts that the scheduler cannot do are left out. Raises UserError for a scheduler that has no such table.
    """
    config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    if pipeline == "StableDiffusionPipeline":
        config = {k: {"steps_offset": 1, "clip_sample": False}.get(k, v) for k, v in config.items()}
    packed = pipeline == "FluxPipeline"
    rows = _rows_of(config)
    scheduler = _scheduler(config)
    made = {}
    for count in counts:
        if count <= scheduler.config.num_train_timesteps:
            _set_timesteps(scheduler, count, packed, tokens)
            table = rows(scheduler)
            if packed:
                table = [(row[0] / 1000, *row[1:]) for row in table]
            made[str(count)] = {"noise": float(getattr(scheduler, "init_noise_sigma", 1.0)), "rows": table}
    clip = float(config.get("clip_sample_range", 1.0)) if _clips(scheduler) else None
    return {"scheduler": config["_class_name"], "columns": list(COLUMNS), "clip": clip, "steps": made}


def _flow_match(scheduler: Any) -> list[Row]:
    sigmas = scheduler.sigmas.double().tolist()
    pairs = zip(scheduler.timesteps.double().tolist(), sigmas[:-1], sigmas[1:], strict=True)
    return [(t, 1.0, 0.0, 0.0, 0.0, 1.0, after - now) for t, now, after in pairs]


def _euler(scheduler: Any) -> list[Row]:
    sigmas = scheduler.sigmas.double().tolist()
    pairs = zip(scheduler.timesteps.double().tolist(), sigmas[:-1], sigmas[1:], strict=True)
    velocity = scheduler.config.prediction_type == "v_prediction"
    table: list[Row] = []
    for t, now, after in pairs:
        total = now**2 + 1
        # The derivative (x − x0) / σ is m itself where m is the noise.
        of_x, of_m = (now / total, total**-0.5) if velocity else (0.0, 1.0)
        table.append((t, total**-0.5, 0.0, 0.0, 0.0, 1 + of_x * (after - now), of_m * (after - now)))
    return table


def _ddim(scheduler: Any) -> list[Row]:
    alphas, final = scheduler.alphas_cumprod.double().tolist(), float(scheduler.final_alpha_cumprod)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    table: list[Row] = []
    for t in scheduler.timesteps.tolist():
        now, after = alphas[t], alphas[t - stride] if t >= stride else final
        signal, noise = now**0.5, (1 - now) ** 0.5
        direction = (1 - after) ** 0.5
        if scheduler.config.prediction_type == "v_prediction":
            p, q, s, u = signal, -noise, direction * noise, direction * signal
        elif scheduler.config.prediction_type == "epsilon":
            p, q, s, u = 1 / signal, -noise / signal, 0.0, direction
        else:
            p, q, s, u = 0.0, 1.0, direction / noise, -direction * signal / noise
        table.append((float(t), 1.0, p, q, after**0.5, s, u))
    return table


_TABLES: dict[str, Callable[[Any], list[Row]]] = {
    "FlowMatchEulerDiscreteScheduler": _flow_match,
    "EulerDiscreteScheduler": _euler,
    "DDIMScheduler": _ddim,
}
# Settings whose steps are no row above: they draw noise or look at the values of x.
_REFUSED = {"stochastic_sampling": "draws noise at every step", "thresholding": "clips by the image's own quantiles"}
_PREDICTIONS = {
    "FlowMatchEulerDiscreteScheduler": (None,),
    "EulerDiscreteScheduler": ("epsilon", "v_prediction"),
    "DDIMScheduler": ("epsilon", "v_prediction", "sample"),
}


def _rows_of(config: dict[str, Any]) -> Callable[[Any], list[Row]]:
    """The function for a scheduler's config. Raises UserError naming what to use instead."""
    name = config["_class_name"]
    if name not in _TABLES:
        near = "FlowMatchEulerDiscreteScheduler" if "Flow" in name else "EulerDiscreteScheduler or DDIMScheduler"
        raise UserError(
            f"The scheduler {name} cannot run on a device without diffusers: put {near} into the artifact's "
            "scheduler/scheduler_config.json before building it, or draw with python -m engines.run."
        )
    for setting, why in _REFUSED.items():
        if config.get(setting):
            raise UserError(f"{name} with {setting} {why}, which no step table holds: build with {setting} off.")
    prediction = config.get("prediction_type", _PREDICTIONS[name][0])
    if prediction not in _PREDICTIONS[name]:
        raise UserError(
            f"{name} with prediction_type {prediction!r} has no step table: use one of "
            f"{', '.join(p for p in _PREDICTIONS[name] if p)}."
        )
    return _TABLES[name]


def _scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


def _clips(scheduler: Any) -> bool:
    return bool(scheduler.config.get("clip_sample", False))


def _set_timesteps(scheduler: Any, count: int, packed: bool, tokens: int) -> None:
    """As the pipeline that calls it does."""
    if not packed:
        scheduler.set_timesteps(count)
        return
    import numpy as np
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    settings = {n: scheduler.config.get(n, d) for n, d in zip(names, (256, 4096, 0.5, 1.15), strict=True)}
    shift = calculate_shift(tokens, *settings.values())
    own = scheduler.config.get("use_flow_sigmas", False)
    scheduler.set_timesteps(sigmas=None if own else np.linspace(1.0, 1 / count, count), mu=shift)
