"""The low-rank branch: truncated SVDs, and its two factors as the op holds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passes.solver.element import ElementType

#: Directions carried along beside the wanted ones (Halko, Martinsson and Tropp 2011, section 4: 5 to 10).
OVERSAMPLING = 8

#: Where x·down of the samples is larger, it is scaled down (and up scaled up): headroom below float16's 65504.
HIDDEN_LIMIT = 4096.0


@dataclass(frozen=True, eq=False)
class LowRank:
    """L = left · rightᵀ: left [N, r] float32 with the singular values in it, right [K, r] orthonormal.

    basis [K, r + oversampling] spans the right singular vectors and starts the next SVD of a similar matrix.
    """

    left: torch.Tensor
    right: torch.Tensor
    basis: torch.Tensor


def random_basis(channels: int, rank: int, limit: int, seed: int) -> torch.Tensor:
    """Gaussian start [K, rank + oversampling] of a randomised SVD, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, min(rank + OVERSAMPLING, limit), generator=generator)


def truncated_svd(matrix: torch.Tensor, rank: int, basis: torch.Tensor, power: int) -> LowRank:
    """The first `rank` singular triplets of [N, K] by randomised subspace iteration (Halko et al., algorithm 4.4).

    `basis` [K, >= rank] starts it, `power` rounds of Aᵀ·A sharpen it: 2 come within 0.4 % of the best error of a
    weight-like matrix, 4 within 0.04 %.
    """
    image = matrix @ basis
    for _ in range(power):
        image = matrix @ orthonormal(matrix.T @ orthonormal(image))
    return project(matrix, image, rank)


def project(matrix: torch.Tensor, image: torch.Tensor, rank: int) -> LowRank:
    """The best rank-r approximation of matrix [N, K] whose columns lie in the span of `image` [N, p].

    The small SVD that this needs is taken from the eigenvectors of its p x p Gram matrix, in float64: four times
    faster, and accurate down to directions 1e-6 of the largest, below which there is nothing in float32 anyway.
    """
    span = orthonormal(image)
    small = (span.T @ matrix).double()
    squares, u = torch.linalg.eigh(small @ small.T)
    squares, u = squares.flip(0), u.flip(1)
    live = squares > 1e-12 * squares[0]
    s = torch.where(live, squares, 0.0).sqrt()
    right = small.T @ (u * torch.where(live, 1 / s, 0.0))
    return LowRank(
        span @ (u * s)[:, :rank].float(), right[:, :rank].float().contiguous(), right.float().contiguous()
    )


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(columns).Q
    return q


def branch_factors(
    low: LowRank, inv_smooth: torch.Tensor, samples: torch.Tensor | None, t: ElementType
) -> tuple[torch.Tensor, torch.Tensor]:
    """down [K, r] (acting on the raw x) and up [r, N], rounded to T, with down · up = diag(inv_smooth) · Lᵀ.

    Each rank is scaled so that the largest entries of its two factors are alike: neither ends up among the
    subnormals of float16. x · down of the samples is kept below HIDDEN_LIMIT.
    """
    down = inv_smooth[:, None] * low.right
    up = low.left.T
    down_peak = down.abs().amax(0).clamp_min(1e-30)
    scale = (up.abs().amax(1).clamp_min(1e-30) / down_peak).sqrt()
    if samples is not None:
        hidden = (samples @ down).abs().amax(0).clamp_min(1e-30)
        scale = torch.minimum(scale, HIDDEN_LIMIT / hidden)
    return t.rounded(down * scale), t.rounded(up / scale[:, None])
