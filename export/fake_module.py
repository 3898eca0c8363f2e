"""A torch module whose parameters have shapes and dtypes but no memory."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from accelerate import init_empty_weights
from torch._subclasses.fake_tensor import FakeTensorMode

from export.components import DTYPES, Component


def fake_module(component: Component, dtype: str) -> tuple[torch.nn.Module, FakeTensorMode]:
    """The component's module with fake parameters in `dtype` (islands in float32) and real buffers.

    Buffers (position ids, rotary frequencies) are in no file and become constants of the graph, so they must be
    computed; they are small. Its forward is the row's `call`.
    """
    row = component.row
    with init_empty_weights(include_buffers=False):
        module = row.build(component.config)
    row.adapt(module)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shared: dict[int, torch.nn.Parameter] = {}  # tied parameters stay tied
    for prefix, child in module.named_modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            island = any(fnmatchcase(f"{prefix}.{name}", glob) for glob in row.float32)
            if id(parameter) not in shared:
                with mode:
                    data = torch.empty(parameter.shape, dtype=torch.float32 if island else DTYPES[dtype])
                shared[id(parameter)] = torch.nn.Parameter(data, requires_grad=False)
            setattr(child, name, shared[id(parameter)])
    module.eval()
    call = row.call(component.config)
    module.forward = call.__get__(module)
    return module, mode
