"""Step tables against diffusers' own schedulers, step by step."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import UserError
from engines.deploy.steps import step_tables

COUNTS = st.integers(1, 60)
SPACINGS = st.sampled_from(["linspace", "leading", "trailing"])
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tables(scheduler: Any, counts: list[int], pipeline: str = "", tokens: int = 0) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        made = step_tables(Path(folder), counts, pipeline, tokens)
    return json.loads(json.dumps(made))  # as a device reads them


def predicted(x: Any, weights: Any, t: float) -> Any:
    """A denoiser that is no linear function of x and looks at the timestep."""
    return (torch if torch.is_tensor(x) else np).tanh(x * weights + t / 1000)


def agree(scheduler: Any, table: dict[str, Any], count: int, packed: bool = False) -> None:
    """`scheduler`, its timesteps set, and the table give the same latents."""
    rng = np.random.default_rng(count)
    noise, weights = rng.standard_normal((2, 1, 4, 5, 5)).astype(np.float32)
    one = table["steps"][str(count)]
    x = torch.from_numpy(noise) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    y = noise * np.float32(one["noise"])
    assert len(one["rows"]) == len(scheduler.timesteps)
    for t, row in zip(scheduler.timesteps, one["rows"], strict=True):
        timestep, scale, p, q, r, s, u = np.array(row, np.float32)
        assert float(t) == pytest.approx(timestep * (1000 if packed else 1), rel=1e-6)
        into = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predicted(into, torch.from_numpy(weights), float(t)), t, x, return_dict=False)[0]
        m = predicted(y * scale, weights, float(t))
        x0 = p * y + q * m
        y = r * (x0 if table["clip"] is None else np.clip(x0, -table["clip"], table["clip"])) + s * y + u * m
    np.testing.assert_allclose(y, x.numpy(), rtol=1e-3, atol=1e-4 * float(np.abs(y).max()))


@settings(max_examples=30, deadline=None)
@given(count=COUNTS, spacing=SPACINGS, velocity=st.booleans(), karras=st.booleans(), offset=st.integers(0, 1))
def test_euler(count: int, spacing: str, velocity: bool, karras: bool, offset: int) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, timestep_spacing=spacing, use_karras_sigmas=karras and count > 1, steps_offset=offset,
        prediction_type="v_prediction" if velocity else "epsilon",
    )  # fmt: skip
    table = tables(scheduler, [count])
    scheduler.set_timesteps(count)
    agree(scheduler, table, count)


@settings(max_examples=30, deadline=None)
@given(
    count=COUNTS, spacing=SPACINGS, prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    clip=st.booleans(), to_one=st.booleans(),
)  # fmt: skip
def test_ddim(count: int, spacing: str, prediction: str, clip: bool, to_one: bool) -> None:
    scheduler = diffusers.DDIMScheduler(
        **BETAS, timestep_spacing=spacing, prediction_type=prediction, clip_sample=clip, set_alpha_to_one=to_one
    )
    table = tables(scheduler, [count])
    scheduler.set_timesteps(count)
    agree(scheduler, table, count)


def test_ddim_that_begins_in_pure_noise() -> None:
    """Zero terminal signal-to-noise ratio, as shapes-unet has it: the first alpha is 0."""
    scheduler = diffusers.DDIMScheduler(
        **BETAS, timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False,
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    table = tables(scheduler, [20])
    scheduler.set_timesteps(20)
    agree(scheduler, table, 20)


@settings(max_examples=30, deadline=None)
@given(count=COUNTS, shift=st.floats(0.5, 6), dynamic=st.booleans(), tokens=st.integers(16, 4096))
def test_flow_matching_as_flux_calls_it(count: int, shift: float, dynamic: bool, tokens: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    table = tables(scheduler, [count], "FluxPipeline", tokens)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=calculate_shift(tokens))
    agree(scheduler, table, count, packed=True)


def test_stable_diffusion_overrules_old_settings_of_a_scheduler() -> None:
    """Its pipeline does so with a warning, whatever the file says."""
    scheduler = diffusers.DDIMScheduler(**BETAS, steps_offset=0, clip_sample=True)
    table = tables(scheduler, [7], "StableDiffusionPipeline")
    assert table["clip"] is None
    wanted = diffusers.DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)
    wanted.set_timesteps(7)
    agree(wanted, table, 7)


def test_counts_that_the_scheduler_cannot_do_are_left_out() -> None:
    assert list(tables(diffusers.DDIMScheduler(num_train_timesteps=10), [1, 10, 11])["steps"]) == ["1", "10"]


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("DPMSolverMultistepScheduler", {}, "put EulerDiscreteScheduler or DDIMScheduler into"),
        ("EulerAncestralDiscreteScheduler", {}, "cannot run on a device without diffusers"),
        ("FlowMatchHeunDiscreteScheduler", {}, "put FlowMatchEulerDiscreteScheduler into"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "draws noise at every step"),
        ("DDIMScheduler", {"thresholding": True}, "clips by the image's own quantiles"),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}, "use one of epsilon, v_prediction"),
    ],
)
def test_another_scheduler_is_refused_with_what_to_use(
    tmp_path: Path, name: str, config: dict[str, Any], words: str
) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **config}))
    with pytest.raises(UserError, match=words):
        step_tables(tmp_path, [4], "", 0)
