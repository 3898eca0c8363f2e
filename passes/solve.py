"""A graph's layers solved for a preset: jobs in, a mapping that reads the store out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.files import check_room
from artifact.store import Store, key_of
from passes.layers import Layer
from passes.presets import Preset
from passes.solved import Quantised
from passes.solver import Job, Recipe, solve_into
from passes.solver.cluster import Cluster
from passes.solver.key import numerics
from passes.solver.solved import ARRAYS, PACKED
from passes.weights import LayerLoader, Stored
from plugins.svdq_linear.nibbles import unpack_codes
from plugins.svdq_linear.spec import group_count, padded_rank


class StoredLayer:
    """A SolvedLayer that lies in the store: its arrays are read, and checked, when they are asked for."""

    def __init__(self, store: Store, key: str, read: Callable[[str], Mapping[str, np.ndarray]]) -> None:
        self._key, self._read = key, read
        found = store.describe(key)
        if found is None:
            raise _lost(store)
        self._specs, meta = found
        self.error, self.alpha, self.beta = (float(meta[k]) for k in ("error", "alpha", "beta"))
        self.rounds = int(meta["rounds"])

    def spec(self, field: str) -> tuple[np.dtype, tuple[int, ...]]:
        """dtype and shape of one of a SolvedLayer's arrays."""
        if field == "qweight":
            return np.dtype(np.int8), (*self._specs["bias"][1], *self._specs["inv_smooth"][1])
        return self._specs[field]

    @property
    def packed_codes(self) -> np.ndarray:
        """The codes two to a byte, as they are stored."""
        return self._read(self._key)[PACKED]

    def __getattr__(self, name: str) -> Any:
        if name not in ARRAYS:
            raise AttributeError(name)
        if name == "qweight":
            return unpack_codes(self.packed_codes, self.spec(name)[1])
        return self._read(self._key)[name]


class StoredLayers(Mapping[str, Quantised]):
    """Solved layers by name, read from the store when their arrays are asked for: memory holds a few, never all."""

    def __init__(self, store: Store, keys: Mapping[str, str], recipes: Mapping[str, Recipe]) -> None:
        @lru_cache(maxsize=2)
        def read(key: str) -> Mapping[str, np.ndarray]:
            entry = store.get_arrays(key)
            if entry is None:
                raise _lost(store)
            return entry[0]

        self.keys_by_name = dict(keys)
        self._layers = {n: Quantised(recipes[n], StoredLayer(store, key, read)) for n, key in keys.items()}

    def __getitem__(self, name: str) -> Quantised:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _lost(store: Store) -> UserError:
    return UserError(f"The store {store.root} lost an entry while it was read: run the same command again.")


def recipes(
    preset: Preset, layers: Sequence[Layer], dtype: str, rank: int | None, group_size: int | None, seed: int
) -> dict[str, Recipe]:
    """The recipe of every layer. Raises UserError for a rank above a layer's width, naming the layer."""
    from dataclasses import replace

    found = {}
    for layer in layers:
        recipe = replace(preset.recipe(layer, dtype, rank, group_size), seed=seed)
        if recipe.rank > min(layer.k, layer.n):
            raise UserError(
                f"--rank is {recipe.rank}, but {layer.name} is {layer.n} x {layer.k}: "
                f"give at most {min(min(x.k, x.n) for x in layers)}."
            )
        found[layer.name] = recipe
    return found


def solve(
    layers: Sequence[Layer],
    recipes_by_name: Mapping[str, Recipe],
    tensors: Mapping[str, Stored],
    samples: Mapping[str, str],
    store: Store,
    workers: int,
    progress: Callable[[str], None] | None = None,
    rows: int = 0,
    max_memory: int | None = None,
    cluster: Cluster | None = None,
    source: str = "",
) -> StoredLayers:
    """Solve what the store does not hold yet, with at most `max_memory` bytes, or on a cluster: see `solve_into`.

    `tensors`: the source's weights by name; `samples`: store keys of calibration samples by Layer.input, of at most
    `rows` rows each; `source`: what tells these weights from all others, so that a layer solved before is found without
    reading them. Raises UserError where the store's disk has no room for all that is to be solved.
    """
    aliases = _aliases(layers, recipes_by_name, samples, source) if source else {}
    keys = known_layers(layers, recipes_by_name, samples, store, source) if source else {}
    for name in keys:
        if progress is not None:
            progress(f"{name}: from the store")
    jobs = []
    missing = [layer for layer in layers if layer.name not in keys]
    check_room(store.root / "layers", sum(stored_bytes(layer, recipes_by_name[layer.name]) for layer in missing))
    for layer in missing:
        refs, key = _only(tensors, layer), samples.get(layer.input)
        load = LayerLoader(layer, refs, str(store.root), key)
        shape = layer.n, layer.k, rows if key is not None else 0
        files = tuple(sorted({stored.file for stored in refs.values()}))
        jobs.append(Job(layer.name, load, recipes_by_name[layer.name], shape, files, aliases.get(layer.name)))
    try:
        keys |= solve_into(jobs, store, workers, progress, max_memory, cluster)
    except ValueError as e:
        raise UserError(f"Solving stopped at {e}.") from e
    return StoredLayers(store, {layer.name: keys[layer.name] for layer in layers}, recipes_by_name)


def known_layers(
    layers: Sequence[Layer],
    recipes_by_name: Mapping[str, Recipe],
    samples: Mapping[str, str],
    store: Store,
    source: str,
) -> dict[str, str]:
    """Store keys of the layers that were solved before and are whole, by name; parameters as of `solve`."""
    found = {name: store.get_bytes(a) for name, a in _aliases(layers, recipes_by_name, samples, source).items()}
    keys = {name: key.decode() for name, key in found.items() if key is not None}
    return {name: key for name, key in keys.items() if store.get_bytes(key) is not None}


def stored_bytes(layer: Layer, recipe: Recipe) -> int:
    """What a solved layer takes, in the store and in a model: codes, scales, branch, smoothing, bias."""
    itemsize, rank = 4 if recipe.dtype == "float32" else 2, padded_rank(recipe.rank)
    scales = layer.n * group_count(layer.k, recipe.group_size)
    return layer.n * layer.k // 2 + itemsize * (scales + rank * (layer.n + layer.k) + layer.k + layer.n)


def _aliases(
    layers: Sequence[Layer], recipes_by_name: Mapping[str, Recipe], samples: Mapping[str, str], source: str
) -> dict[str, str]:
    """Under what the store keeps every layer's own key: all that the layer is made from, without its weights."""

    def alias(layer: Layer) -> str:
        parts = [asdict(layer), asdict(recipes_by_name[layer.name]), samples.get(layer.input), numerics()]
        return key_of("layer 1", source, json.dumps(parts, sort_keys=True))

    return {layer.name: alias(layer) for layer in layers}


def _only(tensors: Mapping[str, Stored], layer: Layer) -> dict[str, Stored]:
    """The tensors that a layer reads: a worker gets no more."""
    return {name: tensors[name] for name in (*layer.weights, *layer.biases) if name is not None}
