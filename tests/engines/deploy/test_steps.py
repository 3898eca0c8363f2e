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
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from artifact.errors import UserError
from engines.deploy.steps import step_tables

COUNTS = st.integers(1, 60)
SPACINGS = st.sampled_from(["linspace", "leading", "trailing"])
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tables(
    scheduler: Any, counts: list[int], pipeline: str = "", tokens: int = 0, time_scale: float = 1.0
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        made = step_tables(Path(folder), counts, pipeline, tokens, time_scale)
    return json.loads(json.dumps(made))  # as a device reads them


def predicted(x: Any, weights: Any, t: float) -> Any:
    """A denoiser that is no linear function of x and looks at the timestep."""
    return (torch if torch.is_tensor(x) else np).tanh(x * weights + t / 1000)


def agree(scheduler: Any, table: dict[str, Any], count: int, time_scale: float = 1.0) -> None:
    """`scheduler`, its timesteps set, and the table give the same latents after every step."""
    rng = np.random.default_rng(count)
    noise, weights = rng.standard_normal((2, 1, 4, 5, 5)).astype(np.float32)
    one = table["steps"][str(count)]
    x = torch.from_numpy(noise) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    y = noise * np.float32(one["noise"])
    before = np.float32(0)
    assert len(one["rows"]) == len(scheduler.timesteps)
    for t, row in zip(scheduler.timesteps, one["rows"], strict=True):
        timestep, scale, p, q, r, s, u, v = np.array(row, np.float32)
        assert float(t) * time_scale == pytest.approx(timestep, rel=1e-6)
        into = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predicted(into, torch.from_numpy(weights), float(t)), t, x, return_dict=False)[0]
        m = predicted(y * scale, weights, float(t))
        x0 = p * y + q * m
        x0 = x0 if table["clip"] is None else np.clip(x0, -table["clip"], table["clip"])
        y, before = r * x0 + s * y + u * m + v * before, x0
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
    table = tables(scheduler, [count], "FluxPipeline", tokens, 1 / 1000)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=calculate_shift(tokens))
    agree(scheduler, table, count, 1 / 1000)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 60), tokens=st.integers(16, 4096), linear=st.booleans())
def test_flow_matching_as_qwen_image_calls_it(count: int, tokens: int, linear: bool) -> None:
    """Qwen-Image's scheduler: it ends at a noise level of its own before the last step."""
    shifts = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        **shifts, use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="linear" if linear else "exponential"
    )
    table = tables(scheduler, [count], "QwenImagePipeline", tokens, 1 / 1000)
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=mu)
    agree(scheduler, table, count, 1 / 1000)


@settings(max_examples=20, deadline=None)
@given(count=COUNTS, shift=st.floats(0.5, 6), dynamic=st.booleans(), tokens=st.integers(16, 4096))
def test_flow_matching_as_sd3_calls_it(count: int, shift: float, dynamic: bool, tokens: int) -> None:
    """The scheduler chooses the noise levels; the pipeline gives at most a shift."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    table = tables(scheduler, [count], "StableDiffusion3Pipeline", tokens)
    scheduler.set_timesteps(count, **({"mu": calculate_shift(tokens)} if dynamic else {}))
    agree(scheduler, table, count)


DPM = {
    "solver_type": st.sampled_from(["midpoint", "heun"]), "solver_order": st.sampled_from([1, 2, 2]),
    "lower_order_final": st.booleans(), "euler_at_final": st.booleans(),
    "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    count=COUNTS, spacing=SPACINGS, prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    noise=st.sampled_from(["", "use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas"]),
    others=st.fixed_dictionaries(DPM),
)  # fmt: skip
def test_dpm_solver(count: int, spacing: str, prediction: str, noise: str, others: dict[str, Any]) -> None:
    assume(not noise or others["final_sigmas_type"] == "zero")  # else its last step is none, and diffusers divides by 0
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, **others, timestep_spacing=spacing, prediction_type=prediction, **({noise: True} if noise else {})
    )
    table = tables(scheduler, [count])
    scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)  # without it diffusers looks for the first timestep, which rounding may repeat
    agree(scheduler, table, count)


@settings(max_examples=30, deadline=None)
@given(count=COUNTS, shift=st.floats(1, 6), others=st.fixed_dictionaries(DPM), scale=st.sampled_from([1.0, 0.001]))
def test_dpm_solver_on_flows_as_sana_calls_it(count: int, shift: float, others: dict[str, Any], scale: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **others, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    table = tables(scheduler, [count], "SanaPipeline", 0, scale)
    scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)
    agree(scheduler, table, count, scale)


def test_dpm_solver_as_pixart_ships_it_is_of_second_order() -> None:
    """Of what decides the picture nothing is left to chance: the published config, 20 steps."""
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    rows = np.array(tables(scheduler, [20], "PixArtSigmaPipeline")["steps"]["20"]["rows"])
    assert (rows[1:-1, -1] != 0).all() and rows[0, -1] == rows[-1, -1] == 0
    scheduler.set_timesteps(20)
    agree(scheduler, tables(scheduler, [20], "PixArtSigmaPipeline"), 20)


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
    ending = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    assert list(tables(ending, [1, 2], "QwenImagePipeline", 64)["steps"]) == ["2"]  # 0 / 0 in diffusers


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("UniPCMultistepScheduler", {}, "put EulerDiscreteScheduler or DDIMScheduler into"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order 3 has no step table: use one of 2, 1"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, r"use one of dpmsolver\+\+"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}, "variance_type 'learned' .* use one of None"),
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


def test_a_scheduler_that_its_pipeline_could_not_call_is_refused(tmp_path: Path) -> None:
    diffusers.DDIMScheduler().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="The scheduler DDIMScheduler .* put FlowMatchEulerDiscreteScheduler into"):
        step_tables(tmp_path, [4], "QwenImagePipeline", 64)
    diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="SanaPipeline gives .* no shift, which use_dynamic_shifting asks for"):
        step_tables(tmp_path, [4], "SanaPipeline", 64)
