"""Metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from engines import metrics


def test_mse_is_per_image_and_does_not_wrap_around() -> None:
    black, white = np.zeros((2, 2, 2, 3), np.uint8), np.full((2, 2, 2, 3), 255, np.uint8)
    white[1] = 3
    assert metrics.mean_squared_error(black, white).tolist() == [255.0**2, 9.0]
    assert metrics.mean_squared_error(white, black).tolist() == [255.0**2, 9.0]


def test_psnr_of_known_errors() -> None:
    # 255² / mse of 1, 100 and 10⁴: 48.1308 dB, 20 dB less for each factor of 100.
    assert metrics.psnr_db(np.array([255.0**2, 1.0, 100.0])).tolist() == pytest.approx([0, 48.130804, 28.130804])
    assert metrics.psnr_db(0.0) == 100.0


def test_ssim_is_one_for_equal_and_falls_with_a_constant_shift() -> None:
    flat = np.full((1, 16, 16, 3), 100, np.uint8)
    assert metrics.ssim(flat, flat) == pytest.approx([1.0])
    # Without variance only the luminance term is left: (2·100·120 + c) / (100² + 120² + c), c = (0.01 · 255)².
    c = 2.55**2
    expected = (2 * 100 * 120 + c) / (100**2 + 120**2 + c)
    assert metrics.ssim(flat, flat + np.uint8(20)) == pytest.approx([expected], abs=1e-6)


def test_latent_cosine_is_per_step_and_averaged_over_the_batch() -> None:
    a = np.zeros((2, 3, 2, 2), np.float32)
    b = np.zeros((2, 3, 2, 2), np.float16)
    a[..., 0, 0] = 2
    b[:, 0, 0, 0] = 5  # step 1: the same direction
    b[0, 1, 1, 1] = b[1, 1, 0, 0] = 1  # step 2: one at right angles, one the same
    b[:, 2, 0, 0] = -1  # step 3: opposite
    assert metrics.latent_cosine(a, b).tolist() == pytest.approx([1, 0.5, -1])


def test_a_summary_has_the_population_deviation() -> None:
    assert metrics.summary(np.array([1.0, 3.0])) == {"mean": 2.0, "min": 1.0, "std": 1.0}
