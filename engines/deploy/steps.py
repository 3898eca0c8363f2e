"""Step tables: what a scheduler does, as numbers, so that a device needs no diffusers to denoise.

Every scheduler here is linear in the latents x, in what the denoiser predicts, m, and in the data that the step before
took for x0, but for a clamp between. One row of a table is one step::

    timestep, scale, p, q, r, s, u, v

    m  = denoiser(scale·x, timestep)
    x0 = clamp(p·x + q·m, ±clip)
    x  = r·x0 + s·x + u·m + v·(x0 of the step before; 0 at the first)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from engines.deploy.pipelines import BY_CLASS, Pipeline
from engines.deploy.schedulers import TABLES, Step


def step_tables(
    folder: Path, counts: Iterable[int], pipeline: str, tokens: int, time_scale: float = 1.0
) -> dict[str, Any]:
    """Tables for the numbers of steps in `counts`, of the scheduler in `folder` as `pipeline` calls it.

    `tokens` are the image's, by which some pipelines shift the steps; the denoiser is given a timestep times
    `time_scale`. Returns {"scheduler", "columns", "clip", "steps": {count: {"noise": standard deviation that the
    initial noise is scaled to, "rows": [row, ...]}}}; counts that the scheduler cannot do are left out. Raises
    UserError for a scheduler that has no such table.
    """
    config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    row = BY_CLASS.get(pipeline, Pipeline(pipeline, {}))
    config = {k: row.settings.get(k, v) for k, v in config.items()}
    rows = _rows_of(config, row)
    scheduler = _scheduler(config)
    made = {}
    for count in counts:
        if count <= scheduler.config.num_train_timesteps:
            _set_timesteps(scheduler, count, row, tokens)
            table = [step._replace(timestep=step.timestep * time_scale) for step in rows(scheduler)]
            if all(math.isfinite(number) for step in table for number in step):  # Qwen-Image's has none of 1 step
                made[str(count)] = {"noise": float(getattr(scheduler, "init_noise_sigma", 1.0)), "rows": table}
    clip = float(config.get("clip_sample_range", 1.0)) if _clips(scheduler) else None
    return {"scheduler": config["_class_name"], "columns": list(Step._fields), "clip": clip, "steps": made}


# Settings whose steps are no row above: they draw noise or look at the values of x.
_REFUSED = {"stochastic_sampling": "draws noise at every step", "thresholding": "clips by the image's own quantiles"}
# What else a table was written for; the first is diffusers' default.
_ALLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    "FlowMatchEulerDiscreteScheduler": {},
    "EulerDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "DDIMScheduler": {"prediction_type": ("epsilon", "v_prediction", "sample")},
    "DPMSolverMultistepScheduler": {
        "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
        "algorithm_type": ("dpmsolver++",),
        "solver_order": (2, 1),
        "solver_type": ("midpoint", "heun"),
        "variance_type": (None,),
    },
}


def _rows_of(config: dict[str, Any], row: Pipeline) -> Callable[[Any], list[Step]]:
    """The function for a scheduler's config. Raises UserError naming what to use instead."""
    name = config["_class_name"]
    flow = "FlowMatchEulerDiscreteScheduler"
    if name not in TABLES or (row.own_sigmas and name != flow):
        near = flow if "Flow" in name or row.own_sigmas else "EulerDiscreteScheduler or DDIMScheduler"
        raise UserError(
            f"The scheduler {name} cannot run on a device without diffusers: put {near} into the artifact's "
            "scheduler/scheduler_config.json before building it, or draw with python -m engines.run."
        )
    for setting, why in _REFUSED.items():
        if config.get(setting):
            raise UserError(f"{name} with {setting} {why}, which no step table holds: build with {setting} off.")
    for setting, allowed in _ALLOWED[name].items():
        if (value := config.get(setting, allowed[0])) not in allowed:
            raise UserError(
                f"{name} with {setting} {value!r} has no step table: use one of {', '.join(map(str, allowed))}."
            )
    if config.get("use_dynamic_shifting") and name == flow and not (row.own_sigmas or row.shifts):
        raise UserError(
            f"{row.cls} gives {name} no shift, which use_dynamic_shifting asks for: build with it off and a shift."
        )
    return TABLES[name]


def _scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


def _clips(scheduler: Any) -> bool:
    return bool(scheduler.config.get("clip_sample", False))


def _set_timesteps(scheduler: Any, count: int, row: Pipeline, tokens: int) -> None:
    """As the pipeline that calls it does."""
    import numpy as np
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    settings = {n: scheduler.config.get(n, d) for n, d in zip(names, (256, 4096, 0.5, 1.15), strict=True)}
    shift = calculate_shift(tokens, *settings.values())
    if row.own_sigmas and not scheduler.config.get("use_flow_sigmas"):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=shift)
    elif row.own_sigmas or (row.shifts and scheduler.config.get("use_dynamic_shifting")):
        scheduler.set_timesteps(count, mu=shift)
    else:
        scheduler.set_timesteps(count)
