"""The low-rank branch: truncated SVDs, and its two factors as the op holds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passes.solver.element import ElementType

#: Directions carried along beside the wanted ones (Halko, Martinsson and Tropp 2011, section 4: 5 to 10).
OVERSAMPLING = 8

#: Where x·down of the samples is larger, down shrinks and up grows: headroom below float16's 65504.
HIDDEN_LIMIT = 4096.0

#: A channel that hardly ever carries anything still weighs this part of the average.
LEAST_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class LowRank:
    """L = left · diag(1 / weights) · basis[:, :r]ᵀ, in the space of the weights that it was found with.

    left [N, r] float32 holds the singular values; basis [K, r + oversampling], orthonormal, are right
    singular vectors of the weighted matrix. Smoothing scales channels of the weight up and weights down,
    which leaves the weighted matrix and so left and basis as they are: one LowRank is a branch for every
    smoothing.
    """

    left: torch.Tensor
    basis: torch.Tensor

    def right(self, weights: torch.Tensor) -> torch.Tensor:
        """R [K, r] with L = left · Rᵀ."""
        return (self.basis[:, : self.left.shape[1]] / weights[:, None]).contiguous()


def channel_weights(samples: torch.Tensor | None, channels: int) -> torch.Tensor:
    """How much an error of a channel of the weight shows in the output: rms of the input, float32 [K].

    The branch minimises ||(A - L) · diag(weights)||, the expected output error if channels are uncorrelated.
    Against the plain SVD of the paper that takes 8 to 15 % off the output error with 8- or 16-bit
    activations, up to 1 % with 4-bit ones, and needs fewer rounds of refinement. Of a smoothed weight the
    weights are these times inv_smooth. Ones without samples.
    """
    if samples is None:
        return torch.ones(channels)
    rms = samples.square().mean(0).sqrt()
    mean = float(rms.mean())
    return rms.clamp_min(LEAST_WEIGHT * mean) / mean if mean else torch.ones(channels)


def random_basis(channels: int, rank: int, limit: int, seed: int) -> torch.Tensor:
    """Gaussian start [K, rank + oversampling] of a randomised SVD, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, min(rank + OVERSAMPLING, limit), generator=generator)


def truncated_svd(matrix: torch.Tensor, rank: int, basis: torch.Tensor, power: int, weights: torch.Tensor) -> LowRank:
    """The first `rank` singular triplets of matrix · diag(weights), by randomised subspace iteration.

    matrix [N, K], weights [K]; `basis` [K, >= rank] starts it, and `power` rounds of A·Aᵀ sharpen it: 2 come
    within 0.4 % of the best error of a weight-like matrix, 4 within 0.04 % (Halko et al., algorithm 4.4).
    """
    squared = weights.square()[:, None]
    image = matrix @ (weights[:, None] * basis)
    for _ in range(power):
        image = matrix @ (squared * (matrix.T @ orthonormal(image)))
    return project(matrix, image, rank, weights)


def project(matrix: torch.Tensor, image: torch.Tensor, rank: int, weights: torch.Tensor) -> LowRank:
    """The best rank-r approximation of matrix [N, K], channels weighted, with columns in the span of `image`.

    The small SVD that this needs is taken from the eigenvectors of its p x p Gram matrix, in float64: four
    times faster, and right down to directions 1e-6 of the largest, below which there is nothing in float32
    anyway.
    """
    span = orthonormal(image)
    small = ((span.T @ matrix) * weights).double()
    squares, u = torch.linalg.eigh(small @ small.T)
    squares, u = squares.flip(0), u.flip(1)
    live = squares > 1e-12 * squares[0]
    s = torch.where(live, squares, 0.0).sqrt()
    basis = small.T @ (u * torch.where(live, 1 / s, 0.0))
    return LowRank(left=span @ (u * s)[:, :rank].float(), basis=basis.float())


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(columns).Q
    return q


def branch_factors(
    low: LowRank, weights: torch.Tensor, samples: torch.Tensor | None, t: ElementType
) -> tuple[torch.Tensor, torch.Tensor]:
    """down [K, r] (acting on the raw x) and up [r, N], rounded to T; weights [K] are those of the raw weight.

    Each rank is scaled so that the largest entries of its two factors are alike: neither ends up among the
    subnormals of float16. x · down of the samples is kept below HIDDEN_LIMIT.
    """
    down, up = low.right(weights), low.left.T
    scale = (up.abs().amax(1).clamp_min(1e-30) / down.abs().amax(0).clamp_min(1e-30)).sqrt()
    if samples is not None:
        hidden = (samples @ down).abs().amax(0).clamp_min(1e-30)
        scale = torch.minimum(scale, HIDDEN_LIMIT / hidden)
    return t.rounded(down * scale), t.rounded(up / scale[:, None])
