"""Muon (Jordan et al., 2024) in float32: torch's own works in bfloat16, which is slower on a CPU without AMX."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz step, as in the reference implementation
_STEPS = 5


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly the nearest semi-orthogonal matrix to a float32 matrix [rows, columns], by Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose step is made orthogonal; for matrices and convolutions inside a network only."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                momentous = weight.grad.lerp(average, momentum)
                update = orthogonalise(momentous.flatten(1))  # a convolution is a matrix from its patch to its output
                rows, columns = update.shape
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(update.view_as(momentous), alpha=-rate * max(1.0, rows / columns) ** 0.5)
