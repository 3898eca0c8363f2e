"""Layers through the store: found again, solved again where an entry is damaged, refused where there is no room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from artifact.errors import UserError
from artifact.store import Store
from passes.layers import Layer
from passes.policy import FOUR_BIT
from passes.solve import known_layers, solve, stored_bytes
from passes.solver import Recipe

RECIPE = Recipe(rank=16, refine=1)
SIZES = {"a": (64, 128), "b": (96, 64)}
LAYERS = [Layer(x, (f"{x}.weight",), (), None, x, f"{x}:in", k, n, FOUR_BIT, False) for x, (n, k) in SIZES.items()]
RECIPES = dict.fromkeys(SIZES, RECIPE)


@dataclass(frozen=True)
class Array:
    """A tensor in a file of its own."""

    file: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.read().shape

    def read(self) -> np.ndarray:
        return np.load(self.file)


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, Array]:
    found = {}
    for name, shape in SIZES.items():
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).standard_normal(shape).astype(np.float16))
        found[f"{name}.weight"] = Array(tmp_path / f"{name}.npy")
    return found


@pytest.fixture
def run(tensors: dict[str, Array], tmp_path: Path):
    """Solve both layers in a store; which were solved, and the codes of all."""
    store = Store(tmp_path / "store")

    def run() -> tuple[set[str], dict[str, bytes]]:
        lines: list[str] = []
        solved = solve(LAYERS, RECIPES, tensors, {}, store, 1, lines.append, source="weights 1")
        new = {line.split("] ")[1].split(":")[0] for line in lines if "from the store" not in line}
        return new, {name: found.layer.packed_codes.tobytes() for name, found in solved.items()}

    run.store = store
    return run


def test_a_flipped_bit_in_a_stored_layer_is_noticed_and_that_layer_alone_is_solved_again(run) -> None:
    first, codes = run()
    assert first == {"a", "b"} and run() == (set(), codes)
    key = known_layers(LAYERS, RECIPES, {}, run.store, "weights 1")["a"]
    path = run.store.path(key)
    whole = path.read_bytes()
    for place in (20, len(whole) // 2, len(whole) - 1):  # in the header, the arrays and the digest
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert run() == ({"a"}, codes)


def test_other_weights_are_not_taken_for_these(run, tensors: dict[str, Array], tmp_path: Path) -> None:
    run()
    assert known_layers(LAYERS, RECIPES, {}, run.store, "weights 2") == {}
    assert known_layers(LAYERS, dict.fromkeys(SIZES, Recipe(rank=32)), {}, run.store, "weights 1") == {}
    assert known_layers(LAYERS, RECIPES, {"a:in": "samples"}, run.store, "weights 1").keys() == {"b"}


def test_a_disk_without_room_for_all_layers_is_said_before_one_is_solved(run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, codes = run()
    needed = sum(stored_bytes(layer, RECIPE) for layer in LAYERS)
    sizes = [
        run.store.path(k).stat().st_size for k in known_layers(LAYERS, RECIPES, {}, run.store, "weights 1").values()
    ]
    assert 0.8 * sum(sizes) < needed < sum(sizes)  # besides, every entry has a header
    usage = type("Usage", (), {"total": 1 << 40, "free": needed - 1})
    monkeypatch.setattr("artifact.files.shutil.disk_usage", lambda path: usage)
    assert run() == (set(), codes)  # nothing is left to solve, so nothing is needed
    for path in run.store.root.glob("??/*"):
        path.unlink()
    with pytest.raises(UserError, match=r"disk that holds .+/store is full \(0 MiB free, 1 MiB needed\)"):
        run()
    assert not list(run.store.root.glob("??/*"))


def test_samples_that_are_gone_are_said_in_a_sentence(run, tensors: dict[str, Array]) -> None:
    with pytest.raises(UserError, match="samples of a:in are gone .* run the same command again"):
        solve(LAYERS[:1], RECIPES, tensors, {"a:in": "nothing"}, run.store, 1, rows=8, source="weights 1")
