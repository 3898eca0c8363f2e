"""Adapters at their strengths become what layers and weights gain: columns of a branch, or a difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from artifact.errors import UserError
from export.lora.file import Pair
from export.lora.model import Part
from export.lora.names import Adapter, Target
from passes.layers import Layer
from passes.lora import Added
from passes.merge import Make


@dataclass(frozen=True)
class Applied:
    """An adapter and how strongly it is applied; negative takes away what it was trained to add."""

    adapter: Adapter
    strength: float


@dataclass(frozen=True)
class _Block:
    """One down-projection [r, K] and the rows [first, first + N_i) of the layer that each `up` [N_i, r] gives."""

    down: np.ndarray
    ups: tuple[tuple[int, np.ndarray, float], ...]


def additions(part: Part, applied: Sequence[Applied], dtype: str) -> dict[str, Added]:
    """What the branch of each 4-bit layer of one component gains, by the layer's name; only those that change.

    The members of a merged layer keep to their own rows of up: q, k and v cost three times the rank, one of them alone
    costs one. Members with the same down-projection, as a fused q/k/v of the file has, share it. `dtype` is the
    graph's. Raises UserError where it cannot hold a value.
    """
    found = {}
    for layer in part.layers:
        blocks = [b for a in applied for b in _blocks(part, layer, a)]
        if blocks:
            columns = [_balanced(layer, block) for block in blocks]
            _check_range(layer.name, [m for pair in columns for m in pair], dtype)
            found[layer.name] = Added(
                sum(len(b.down) for b in blocks),
                partial(_concatenated, layer, blocks, 0),
                partial(_concatenated, layer, blocks, 1),
            )
    return found


def deltas(part: Part, applied: Sequence[Applied]) -> dict[str, Make]:
    """{initializer: what makes its difference, float32 of its shape} of the weights of one component."""
    found: dict[str, list[tuple[Pair, float]]] = {}
    for a in applied:
        for (at, weight), pair in a.adapter.pairs.items():
            if at == part.component.module:
                found.setdefault(weight, []).append((pair, pair.scale * a.strength))
    return {weight: partial(_difference, pairs, part.shapes[weight]) for weight, pairs in found.items()}


def _difference(pairs: Iterable[tuple[Pair, float]], shape: tuple[int, ...]) -> np.ndarray:
    total = np.zeros((shape[0], int(np.prod(shape[1:]))), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # refused where it is merged
        for pair, factor in pairs:
            total += np.float32(factor) * (pair.up.reshape(len(pair.up), -1) @ pair.down.reshape(pair.rank, -1))
    return total.reshape(shape)


def _blocks(part: Part, layer: Layer, applied: Applied) -> list[_Block]:
    pairs: Mapping[Target, Pair] = applied.adapter.pairs
    start, stop = layer.columns or (0, layer.k)
    blocks: list[_Block] = []
    first = 0
    for weight in layer.weights:
        pair = pairs.get((part.component.module, weight))
        if pair is not None:
            down = pair.down.reshape(pair.rank, -1)[:, start:stop]
            up = (first, pair.up.reshape(len(pair.up), -1), pair.scale * applied.strength)
            same = next((i for i, b in enumerate(blocks) if np.array_equal(b.down, down)), None)
            if same is None:
                blocks.append(_Block(down, (up,)))
            else:
                blocks[same] = _Block(blocks[same].down, (*blocks[same].ups, up))
        first += part.shapes[weight][0]
    return blocks


def _balanced(layer: Layer, block: _Block) -> tuple[np.ndarray, np.ndarray]:
    """down float32 [K, r] and up [r, N], the scale in up, each rank as large in the one as in the other.

    A small alpha would press up below float16's normal numbers. Powers of two move it there exactly.
    """
    down = block.down.T
    up = np.zeros((len(block.down), layer.n), np.float32)
    for first, rows, factor in block.ups:
        up[:, first : first + len(rows)] = np.float32(factor) * rows.T
    tops = np.abs(down).max(axis=0), np.abs(up).max(axis=1)
    both = (tops[0] > 0) & (tops[1] > 0)
    ratio = np.divide(tops[1], tops[0], out=np.ones_like(tops[0]), where=both)
    shift = np.rint(np.log2(ratio) / 2).astype(int)
    return np.ldexp(down, shift), np.ldexp(up, -shift[:, None])


def _concatenated(layer: Layer, blocks: Sequence[_Block], which: int) -> np.ndarray:
    """All columns of down (`which` 0) or all rows of up (1)."""
    return np.concatenate([_balanced(layer, b)[which] for b in blocks], axis=0 if which else 1)


def _check_range(name: str, matrices: Iterable[np.ndarray], dtype: str) -> None:
    largest = float(np.max([np.abs(m).max(initial=0) for m in matrices]))
    if not largest <= float(np.finfo(dtype).max):  # NaN is refused, too
        raise UserError(
            f"The LoRA reaches {largest:.3g} in {name}, beyond {dtype}: give a smaller --strength, or build the "
            "artifact with --dtype float32."
        )
