"""The numerics of SVDQuant for one linear layer: arrays in, arrays out, no graph.

`Recipe` and `SolvedLayer` need numpy only. What computes (torch, numba) is imported on first use, so that
graph passes, which read solved layers, never load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.solver.recipe import Recipe
from passes.solver.solved import SolvedLayer

if TYPE_CHECKING:
    from passes.solver.error import output_error
    from passes.solver.jobs import Job, Store, solve_all, solve_into
    from passes.solver.key import solve_key
    from passes.solver.layer import solve_layer

__all__ = [
    "Job",
    "Recipe",
    "SolvedLayer",
    "Store",
    "output_error",
    "solve_all",
    "solve_into",
    "solve_key",
    "solve_layer",
]

_HOMES = {
    "output_error": "error",
    "Job": "jobs",
    "Store": "jobs",
    "solve_all": "jobs",
    "solve_into": "jobs",
    "solve_key": "key",
    "solve_layer": "layer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
