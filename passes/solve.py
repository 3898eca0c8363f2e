"""A graph's layers solved for a preset: jobs in, a mapping that reads the store out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from artifact.errors import UserError
from artifact.store import Store
from passes.layers import Layer
from passes.presets import Preset
from passes.solved import Quantised
from passes.solver import Job, Recipe, SolvedLayer, solve_into
from passes.solver.cluster import Cluster
from passes.weights import LayerLoader, Stored


class StoredLayers(Mapping[str, Quantised]):
    """Solved layers by name, each read from the store when it is asked for: memory holds a few, never all."""

    def __init__(self, store: Store, keys: Mapping[str, str], recipes: Mapping[str, Recipe]) -> None:
        self.keys_by_name, self.recipes = dict(keys), dict(recipes)

        @lru_cache(maxsize=4)
        def read(key: str) -> SolvedLayer:
            entry = store.get_arrays(key)
            if entry is None:
                raise UserError(f"The store {store.root} lost an entry while it was read: run the same command again.")
            return SolvedLayer.from_arrays(*entry)

        self._read = read

    def __getitem__(self, name: str) -> Quantised:
        return Quantised(self.recipes[name], self._read(self.keys_by_name[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_by_name)

    def __len__(self) -> int:
        return len(self.keys_by_name)


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
) -> StoredLayers:
    """Solve what the store does not hold yet, with at most `max_memory` bytes, or on a cluster: see `solve_into`.

    `tensors`: the source's weights by name; `samples`: store keys of calibration samples by Layer.input, of at most
    `rows` rows each.
    """
    jobs = []
    for layer in layers:
        refs, key = _only(tensors, layer), samples.get(layer.input)
        load = LayerLoader(layer, refs, str(store.root), key)
        shape = layer.n, layer.k, rows if key is not None else 0
        files = tuple(sorted({stored.file for stored in refs.values()}))
        jobs.append(Job(layer.name, load, recipes_by_name[layer.name], shape, files))
    keys = solve_into(jobs, store, workers, progress, max_memory, cluster)
    return StoredLayers(store, {layer.name: keys[layer.name] for layer in layers}, recipes_by_name)


def _only(tensors: Mapping[str, Stored], layer: Layer) -> dict[str, Stored]:
    """The tensors that a layer reads: a worker gets no more."""
    return {name: tensors[name] for name in (*layer.weights, *layer.biases) if name is not None}
