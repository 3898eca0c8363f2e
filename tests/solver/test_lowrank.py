"""The branch: as good as the best SVD, weighted by what the channels carry, and kept in range of T."""

from __future__ import annotations

import pytest
import torch

from passes.solver.element import ELEMENT_TYPES
from passes.solver.lowrank import (
    HIDDEN_LIMIT,
    OVERSAMPLING,
    LowRank,
    branch_factors,
    branch_weights,
    fit,
    project,
    random_basis,
    truncated_svd,
)
from passes.solver.problem import LEAST_WEIGHT, channel_weights

HALF = ELEMENT_TYPES["float16"]


def decaying(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, 60, generator=generator) * torch.arange(1, 61) ** -0.7
    return left @ torch.randn(60, columns, generator=generator)


def found(matrix: torch.Tensor, weights: torch.Tensor, power: int) -> LowRank:
    return truncated_svd(matrix, 16, random_basis(matrix.shape[1], 16, min(matrix.shape), 0), power, weights)


@pytest.mark.parametrize("shape", [(200, 90), (90, 200)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_randomised_svd_is_near_the_best_in_the_weighted_norm(shape, weighted):
    matrix = decaying(*shape)
    weights = torch.rand(shape[1]) + 0.2 if weighted else torch.ones(shape[1])
    best = float(torch.linalg.svdvals(matrix * weights)[16:].square().sum() ** 0.5)
    for power, slack in ((1, 1.03), (4, 1.001)):
        low = found(matrix, weights, power)
        error = float(((matrix - low.left @ low.core.T) * weights).norm())
        assert best * 0.9999 <= error <= slack * best
        basis = low.right * weights[:, None]
        torch.testing.assert_close(basis.T @ basis, torch.eye(16 + OVERSAMPLING), atol=1e-5, rtol=0)


def test_smoothing_does_not_change_the_branch():
    matrix, weights = decaying(90, 200), torch.rand(200) + 0.2
    inv_smooth = torch.rand(200) + 0.5
    start = random_basis(200, 16, 90, 0)
    raw = truncated_svd(matrix, 16, start, 4, weights).times(1 / inv_smooth)
    smoothed = truncated_svd(matrix / inv_smooth, 16, start / inv_smooth[:, None], 4, weights * inv_smooth)
    torch.testing.assert_close(raw.left @ raw.core.T, smoothed.left @ smoothed.core.T, atol=1e-3, rtol=1e-3)


def test_the_fit_from_products_is_the_projection_whatever_the_sizes_of_the_columns():
    matrix, weights = decaying(90, 200), torch.rand(200) + 0.2
    image = matrix @ random_basis(200, 16, 90, 0) * 10.0 ** torch.linspace(-6, 4, 24)
    wanted, got = project(matrix, image, 16, weights), fit(image, image.T @ matrix, 16, weights)
    torch.testing.assert_close(got.left @ got.core.T, wanted.left @ wanted.core.T, atol=1e-3, rtol=1e-3)
    image = torch.cat([image, torch.zeros(90, 1), image[:, :2]], 1)
    more = fit(image, image.T @ matrix, 16, weights)
    torch.testing.assert_close(more.left @ more.core.T, got.left @ got.core.T, atol=1e-3, rtol=1e-3)


def test_the_branch_weighs_a_channel_by_its_rms_and_that_of_its_group():
    rms, inv_smooth = torch.tensor([3.0, 4.0, 12.0, 1.0, 7.0]), torch.tensor([1.0, 1.0, 0.25, 1.0, 2.0])
    smoothed, groups = torch.tensor([3.0, 4, 3, 1, 14]), torch.tensor([12.5, 12.5, 5, 5, 196]) ** 0.5
    torch.testing.assert_close(branch_weights(rms, inv_smooth, 2), (smoothed * groups) ** 0.5 / inv_smooth)


def test_a_matrix_of_less_rank_and_zeros_are_no_trouble():
    thin = decaying(90, 200)[:, :1] @ torch.ones(1, 200)
    ones = torch.ones(200)
    low = found(thin, ones, 2)
    torch.testing.assert_close(low.left @ low.core.T, thin, atol=1e-4, rtol=1e-4)
    low = found(torch.zeros(90, 200), ones, 2)
    assert not (low.left @ low.core.T).any() and bool(low.right.isfinite().all())


def test_channel_weights_are_the_rms_of_the_input():
    samples = torch.randn(64, 5) * torch.tensor([1.0, 2.0, 4.0, 0.0, 1e-6])
    weights = channel_weights(samples, 5)
    rms = samples.square().mean(0).sqrt()
    torch.testing.assert_close(weights[:3] / weights[0], rms[:3] / rms[0])
    assert weights[3] == weights[4] == pytest.approx(LEAST_WEIGHT)
    assert channel_weights(None, 3).tolist() == channel_weights(torch.zeros(2, 3), 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_factors_multiply_to_the_branch_and_keep_x_down_in_range(size):
    matrix, weights = decaying(90, 200), torch.rand(200) + 0.2
    samples = size * torch.randn(32, 200)
    low = found(matrix, weights, 2)
    down, up = branch_factors(low, samples, HALF)
    whole = low.left @ low.core.T
    assert float((whole - (down @ up).T).norm()) < 2e-3 * float(whole.norm())
    assert float((samples @ down).abs().max()) <= 1.01 * HIDDEN_LIMIT
    assert torch.equal(down, down.half().float()) and torch.equal(up, up.half().float())
    if size == 1.0:
        torch.testing.assert_close(down.abs().amax(0), up.abs().amax(1), rtol=2e-3, atol=0)
