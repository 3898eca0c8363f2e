"""A torch module whose weights stay in the source's files: each part reads its own when it runs, and drops them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import PrefixedDataset

from artifact.free import trim
from export.components import Component
from export.parts import MOST_BYTES, opened, parts
from export.safetensors_index import WeightIndex
from export.source import Source
from export.weights import find_weight

# Weights of a part from which on their memory goes back to the system at once: glibc keeps blocks of up to 32 MB in its
# heap, and parts of other sizes that come and go make gigabytes of that.
TRIMMED_BYTES = 64 << 20


class _Weights(Mapping[str, torch.Tensor]):
    """Parameters by name, read and converted when they are asked for."""

    def __init__(self, component: Component, index: WeightIndex, names: list[str], dtype: torch.dtype) -> None:
        self._component, self._index, self._names, self._dtype = component, index, names, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = find_weight(self._component, self._index, name)
        array = weight.read()
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16).to(self._dtype)
        return torch.from_numpy(array.copy()).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Hook(AlignDevicesHook):
    """Reads the weights before a part runs and drops them after."""

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        self._trims = self.place_submodules and weights >= TRIMMED_BYTES
        return super().init_hook(module)

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        output = super().post_forward(module, output)
        if self._trims:
            trim()
        return output


def offloaded(
    source: Source, component: Component, device: str, dtype: torch.dtype, most: int = MOST_BYTES
) -> torch.nn.Module:
    """The component's torch module on `device`, computing in `dtype`, with no weight in memory between its parts' runs.

    Memory is that of the largest part (parts.py: `most` bytes of weights) and of the activations; every run reads all
    weights, so many samples belong in one batch. Buffers stay in memory. Raises UserError where
    weights and config do not fit.
    """
    with init_empty_weights(include_buffers=False):
        module = component.row.build(component.config)
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    index = source.weights(component.module)
    for name in names:
        find_weight(component, index, name)  # before an hour of work, not in it
    weights = _Weights(component, index, names, dtype)
    for name, buffer in module.named_buffers():
        if name in index:  # SD3's table of positions: as it was trained, not as the class computes it
            buffer.copy_(weights[name])
    around, inside = list(opened(module, most)), list(parts(module, most))
    for found, whole in ((around, False), (inside, True)):
        for name, part in found:
            its = PrefixedDataset(weights, f"{name}." if name else "")
            hook = _Hook(device, offload=True, weights_map=its, place_submodules=whole)
            add_hook_to_module(part, hook)
    return module.eval()
