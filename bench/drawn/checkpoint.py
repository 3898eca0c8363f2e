"""A diffusers directory of an architecture: shapes from the real classes, weights drawn, in bounded memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights

from artifact.errors import UserError
from artifact.files import PARTIAL, check_room, write_json
from bench.drawn.architectures import SHALLOW, Architecture, Module
from bench.drawn.shards import MAX_BYTES, Tensor, write_shards
from bench.drawn.tokenizer import byte_tokenizer
from bench.drawn.weights import Weights
from export.families import MODULES
from export.source import GENERATION, INDEX

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_checkpoint(
    architecture: Architecture,
    out: Path,
    seed: int = 0,
    full_text_encoders: bool = False,
    tiny: bool = False,
    max_shard_bytes: int = MAX_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the directory `out`, whole or not at all; `say` gets a line for each file of weights.

    Equal arguments give equal bytes (with the same versions of the libraries, on machines of one instruction set).
    Raises UserError where `out` exists or the disk has too little room.
    """
    if out.exists():
        raise UserError(f"{out} exists: give a directory that does not, or delete it.")
    configs = {n: config_of(m, full_text_encoders, tiny) for n, m in architecture.modules.items()}
    modules = {n: empty_module(architecture.modules[n], config) for n, config in configs.items()}
    tensors = {n: tensors_of(module, architecture.dtype) for n, module in modules.items()}
    check_room(out, sum(t.nbytes for found in tensors.values() for t in found))
    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    weights = Weights(seed, architecture.dtype)
    for name, module in modules.items():
        folder = partial / name
        _save_config(module, architecture.dtype, folder)
        stem = "model" if architecture.modules[name].depth else "diffusion_pytorch_model"
        began = time.perf_counter()
        for file in write_shards(
            folder,
            stem,
            tensors[name],
            lambda t, name=name: weights.blocks(f"{name} {t.name}", t.shape),
            max_shard_bytes,
        ):
            seconds, size = time.perf_counter() - began, file.stat().st_size
            say(f"{name}/{file.name}: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")
            began = time.perf_counter()
    _write_rest(architecture, configs, partial, tiny)
    partial.rename(out)


def config_of(module: Module, full_text_encoders: bool, tiny: bool) -> dict[str, Any]:
    """The hyper-parameters that are asked for."""
    config = dict(module.config) | (dict(module.tiny) if tiny else {})
    if module.depth and not full_text_encoders:
        config[module.depth] = SHALLOW
    return config


def empty_module(module: Module, config: Mapping[str, Any]) -> Any:
    """The real class's module without memory for its parameters."""
    with init_empty_weights(include_buffers=True):
        return MODULES[module.cls][0].build(config)


def tensors_of(module: Any, dtype: str) -> list[Tensor]:
    """What a file of the module holds: parameters and persistent buffers; of tied ones, the one others are tied to."""
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    found = []
    for name, value in module.state_dict().items():
        assert value.is_floating_point(), f"{name} is {value.dtype}: only floats are drawn"
        if name not in tied:
            shape = tuple(value.shape)
            kind = getattr(torch, dtype)
            found.append(Tensor(name, _NAMES[kind], shape, value.numel() * kind.itemsize))
    return found


def _save_config(module: Any, dtype: str, folder: Path) -> None:
    """config.json as the library writes it, with the dtype that a published text encoder names."""
    folder.mkdir(parents=True)
    if isinstance(module, diffusers.ModelMixin):
        module.save_config(folder)
    else:
        module.config.architectures, module.config.dtype = [type(module).__name__], dtype
        module.config.save_pretrained(folder)


def _write_rest(architecture: Architecture, configs: Mapping[str, Any], root: Path, tiny: bool) -> None:
    """Scheduler, tokenizers and model_index.json."""
    cls, config = architecture.scheduler
    getattr(diffusers, cls)(**config).save_pretrained(root / "scheduler")
    index: dict[str, Any] = {"_class_name": architecture.pipeline, "_diffusers_version": diffusers.__version__}
    index |= dict(architecture.settings) | {"scheduler": ["diffusers", cls]}
    for name, tokens in architecture.tokenizers.items():
        vocabulary = configs[name.replace("tokenizer", "text_encoder")]["vocab_size"]
        byte_tokenizer(tokens, vocabulary).save_pretrained(root / name)
        index[name] = ["transformers", "PreTrainedTokenizerFast"]
    index |= {name: [module.library, module.cls] for name, module in architecture.modules.items()}
    write_json(root / INDEX, index)
    if tiny:
        write_json(root / GENERATION, dict(architecture.generation))
