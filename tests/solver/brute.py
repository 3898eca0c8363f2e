"""The published algorithm by brute force, in float64, sharing nothing with the solver.

Every smoothing candidate with a full SVD, refined to the first worse round (arXiv 2411.05007;
DeepCompressor's grid).
"""

from __future__ import annotations

import numpy as np
import torch

GRID = [(0.0, 0.0)] + [(i / 20, beta) for i in range(1, 20) for beta in (0.0, (20 - i) / 20)]


def quantised(values: np.ndarray, group: int, top: int) -> np.ndarray:
    """Symmetric absmax quantisation along the last axis, dequantised; scales in float16."""
    blocks = values.reshape(values.shape[0], -1, group)
    scale = (np.abs(blocks).max(-1, keepdims=True) / top).astype(np.float16).astype(np.float64)
    return (np.clip(np.rint(blocks / scale), -top, top) * scale).reshape(values.shape)


def low_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False))
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def errors_over_grid(
    weight: np.ndarray, samples: np.ndarray, rank: int, group: int, top: int
) -> dict[tuple[float, float], float]:
    """Relative output error of every candidate before refinement."""
    return {c: _error(*_smoothed(weight, samples, c), rank, group, top, 0) for c in GRID}


def best_error(weight: np.ndarray, samples: np.ndarray, rank: int, group: int, top: int) -> float:
    """Relative output error of the best candidate, refined."""
    scores = errors_over_grid(weight, samples, rank, group, top)
    chosen = min(scores, key=lambda c: scores[c])
    return _error(*_smoothed(weight, samples, chosen), rank, group, top, 100)


def _smoothed(weight: np.ndarray, samples: np.ndarray, candidate: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    alpha, beta = candidate
    w, x = weight.astype(np.float64), samples.astype(np.float64)
    scale = np.abs(x).max(0) ** alpha / np.abs(w).max(0) ** beta
    return w * scale, x / scale


def _error(w: np.ndarray, x: np.ndarray, rank: int, group: int, top: int, rounds: int) -> float:
    wanted, acts = x @ w.T, quantised(x, group, top)
    branch = low_rank(w, rank) if rank else np.zeros_like(w)
    best = np.inf
    for _ in range(rounds + 1):
        values = quantised(w - branch, group, 7)
        error = float(np.linalg.norm(acts @ values.T + x @ branch.T - wanted) / np.linalg.norm(wanted))
        if error >= best:
            break
        best = error
        branch = low_rank(w - values, rank) if rank else branch
    return best
