"""Calibration samples: bounded, drawn alike from everything that was seen, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from artifact.errors import UserError
from export.calibrate import Reservoir, calibrate, default_prompts, read_prompts
from export.pipeline import load_pipeline

PROMPTS = ["a red circle", "a small blue square above a cross", "a green cross"]
SEEDS = [0, 1, 2]
QKV = "transformer_blocks.0.attn.to_q"
MLP = "single_transformer_blocks.0.proj_mlp"


@pytest.fixture(scope="module")
def pipe(flux):
    return load_pipeline(flux)


def test_a_reservoir_draws_uniformly_and_without_repetition(tmp_path):
    counts = np.zeros(200)
    for seed in range(400):
        reservoir = Reservoir(20, seed, tmp_path)
        for part in torch.arange(200.0)[:, None].split(37):
            reservoir.offer(part)
        drawn = reservoir.array()[:, 0].astype(int)
        assert len(set(drawn)) == 20
        counts[drawn] += 1
    # 40 expected; the standard deviation of a fair draw is 6.
    assert counts.min() > 40 - 5 * 6 and counts.max() < 40 + 5 * 6


def test_a_reservoir_does_not_depend_on_how_rows_are_offered(tmp_path):
    rows = torch.randn(300, 5)
    drawn = []
    for size in (300, 100, 7):
        reservoir = Reservoir(50, 3, tmp_path)
        for part in rows.split(size):
            reservoir.offer(part)
        drawn.append(reservoir.array())
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])


def test_a_reservoir_keeps_all_of_few_rows_and_widens_where_float16_overflows(tmp_path):
    reservoir = Reservoir(50, 0, tmp_path)
    reservoir.offer(torch.ones(2, 3, 4))
    assert reservoir.array().shape == (6, 4) and reservoir.array().dtype == np.float16
    reservoir.offer(torch.full((1, 4), 1e5))
    assert reservoir.array().dtype == np.float32 and reservoir.array().max() == 1e5


def test_what_a_reservoir_holds_and_gives_lies_in_files(tmp_path):
    reservoir = Reservoir(64, 0, tmp_path)
    reservoir.offer(torch.ones(100, 512))
    given = reservoir.array()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mapped) == 2 and not list(tmp_path.iterdir())
    assert given.shape == (64, 512) and (given == 1).all()


def test_samples_are_bounded_seeded_and_named_by_key(flux, pipe, tmp_path):
    modules = {"attention": QKV, "mlp": MLP}
    first = calibrate(flux, pipe, modules, PROMPTS, SEEDS, 40, 7, tmp_path)
    assert {k: v.shape for k, v in first.items()} == {"attention": (40, 32), "mlp": (40, 32)}
    again = calibrate(flux, pipe, modules, PROMPTS, SEEDS, 40, 7, tmp_path)
    assert all(np.array_equal(first[k], again[k]) for k in first)
    other = calibrate(flux, pipe, modules, PROMPTS, SEEDS, 40, 8, tmp_path)
    assert not np.array_equal(first["mlp"], other["mlp"])
    alone = calibrate(flux, pipe, {"mlp": MLP}, PROMPTS, SEEDS, 40, 7, tmp_path)
    assert np.array_equal(first["mlp"], alone["mlp"])


def test_every_step_and_the_unconditional_half_are_seen(flux, pipe, tmp_path):
    # 3 prompts of 64 image tokens over 3 steps with guidance; text tokens go through the other projections.
    found = calibrate(flux, pipe, {"q": QKV}, PROMPTS, SEEDS, 10_000, 0, tmp_path)
    assert found["q"].shape == (3 * 3 * 2 * 64, 32)


def test_the_hooks_are_gone_afterwards_also_after_an_error(flux, pipe, tmp_path):
    def fail(*_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        calibrate(flux, pipe, {"q": QKV}, PROMPTS, SEEDS, 8, 0, tmp_path, fail)
    assert not pipe.transformer.get_submodule(QKV)._forward_pre_hooks


def test_progress_counts_prompts_up_to_all(flux, pipe, tmp_path):
    seen = []
    calibrate(
        flux, pipe, {"q": QKV}, PROMPTS, SEEDS, 8, 0, tmp_path, lambda done, total, what: seen.append((done, total))
    )
    assert seen[-1] == (3, 3) and seen == sorted(seen)


def test_convolutions_are_sampled_channels_last(sd, tmp_path):
    pipe = load_pipeline(sd)
    path = "down_blocks.0.attentions.0.proj_in"
    assert isinstance(pipe.unet.get_submodule(path), torch.nn.Conv2d)
    found = calibrate(sd, pipe, {"in": path}, PROMPTS[:1], SEEDS[:1], 10_000, 0, tmp_path)
    assert found["in"].shape == (3 * 2 * 16 * 16, 32)


@pytest.mark.parametrize(("content", "reason"), [(b"", "no prompt"), (b" \n\n", "no prompt"), (b"\xff\xfe", "UTF-8")])
def test_bad_prompt_files_are_refused(tmp_path, content, reason):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_prompts(tmp_path / "prompts.txt")


def test_a_missing_prompt_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        read_prompts(tmp_path / "none.txt")


def test_prompts_are_the_lines_that_are_not_blank(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffein Käfer\r\n\r\n  a dog \n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == ["ein Käfer", "a dog"]


def test_a_model_of_the_users_has_default_prompts(flux):
    prompts = read_prompts(default_prompts(flux))
    assert len(prompts) == len(set(prompts)) == 32
