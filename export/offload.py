"""A torch module whose weights stay in the source's files: each part reads its own when it runs, and drops them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook

from export.components import Component
from export.safetensors_index import WeightIndex
from export.source import Source
from export.weights import find_weight


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


def offloaded(source: Source, component: Component, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """The component's torch module on `device`, computing in `dtype`, with no weight in memory between its parts' runs.

    Memory is that of the largest layer and of the activations; every run reads all weights, so many samples belong in
    one batch. Buffers are in no file and stay in memory. Raises UserError where weights and config do not fit.
    """
    with init_empty_weights(include_buffers=False):
        module = component.row.build(component.config)
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    index = source.weights(component.module)
    for name in names:
        find_weight(component, index, name)  # before an hour of work, not in it
    weights = _Weights(component, index, names, dtype)
    attach_align_device_hook(module, execution_device=device, offload=True, weights_map=weights)
    return module.eval()
