"""A solved layer's name changes with everything that its numbers depend on, and with nothing else."""

from __future__ import annotations

import platform
from dataclasses import replace

import llvmlite.binding
import numba
import numpy as np
import torch

from passes.solver import Recipe, key, solve_key
from tests.solver.synthetic import layer


def test_the_key_depends_on_every_input_and_every_choice():
    weight, bias, samples = layer(32, 64)
    recipe = Recipe(rank=16)
    other = samples.copy()
    other[-1, -1] += 1
    changes = [
        (weight, bias, samples, recipe), (weight, None, samples, recipe), (weight, bias, None, recipe),
        (weight, bias, other, recipe), (weight[:, ::-1], bias, samples, recipe),
        (weight.astype(np.float32), bias, samples, recipe), (weight.reshape(64, 32), bias, samples, recipe),
        *((weight, bias, samples, replace(recipe, **c)) for c in (
            {"act_bits": 8}, {"group_size": 128}, {"rank": 17}, {"smooth": False}, {"refine": 1},
            {"act_signed": False},
            {"act_shift": 0.25}, {"dtype": "float32"}, {"seed": 1},
        )),
    ]  # fmt: skip
    keys = [solve_key(*change) for change in changes]
    assert len(set(keys)) == len(keys)
    assert all(len(k) == 64 for k in keys)


def test_the_key_does_not_depend_on_how_the_arrays_lie_in_memory():
    weight, bias, samples = layer(32, 64)
    assert solve_key(np.asfortranarray(weight), bias, samples, Recipe()) == solve_key(weight, bias, samples, Recipe())


def test_the_key_changes_with_the_numerics(monkeypatch):
    arrays = layer(32, 64)
    before = solve_key(*arrays, Recipe())
    monkeypatch.setattr(key, "NUMERICS_VERSION", key.NUMERICS_VERSION + 1)
    assert solve_key(*arrays, Recipe()) != before


def test_the_key_changes_with_the_instruction_set_and_the_versions(monkeypatch):
    arrays = layer(32, 64)
    keys = {solve_key(*arrays, Recipe())}
    for owner, name in (
        (torch.backends.cpu, "get_cpu_capability"), (llvmlite.binding, "get_host_cpu_name"), (platform, "machine"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda: "another")
            keys.add(solve_key(*arrays, Recipe()))
    for package in (torch, numba):
        with monkeypatch.context() as patch:
            patch.setattr(package, "__version__", "another")
            keys.add(solve_key(*arrays, Recipe()))
    assert len(keys) == 6
