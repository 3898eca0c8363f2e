"""Block by block: every sample as if it were alone, weights read once for all, what lies between blocks in files."""

from __future__ import annotations

import errno
import os
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifact.errors import UserError
from export import batches, between, blockwise, calibrate, offload
from export.between import bytes_between, fitting
from export.blockwise import block_by_block, in_file
from export.components import components, latent_rule
from export.families.row import Shapes
from export.offload import offloaded
from export.parts import opened, parts
from export.pipeline import load_pipeline
from export.source import Source, open_source
from tests.export import models

FAMILIES = {
    "flux": models.flux, "sd": models.stable_diffusion, "sdxl": models.stable_diffusion_xl,
    "sd3": models.stable_diffusion_3, "pixart": models.pixart, "sana": models.sana, "qwen": models.qwen_image,
}  # fmt: skip
TOGETHER = 3
MOST = 20_000  # bytes: opens blocks, so that parts of every size occur


@pytest.fixture(scope="module", params=FAMILIES)
def denoiser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A source, its denoiser component, the module in torch with all weights in memory."""
    source = open_source(str(FAMILIES[request.param](tmp_path_factory.mktemp("models") / request.param)))
    component = next(c for c in components(source) if c.role == "denoiser")
    module = component.row.load(source.root, subfolder=component.module, dtype=torch.float32, use_safetensors=True)
    return source, component, module.eval()


def inputs_of(component: Any) -> dict[str, torch.Tensor]:
    """Inputs of TOGETHER samples; no other axis is as long."""
    shapes = Shapes(TOGETHER, 8, 12, 10)
    return component.row.inputs(component.config, shapes, torch.float32, torch.Generator().manual_seed(1))


def called(component: Any, module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the module gives when it is called as its row says, with all of its hooks."""
    inside = "_old_forward" if hasattr(module, "_old_forward") else "forward"  # accelerate's hook is around it
    module.__dict__[inside] = component.row.call(component.config).__get__(module)
    with torch.no_grad():
        return module(**inputs)


def alone(component: Any, module: torch.nn.Module, inputs: dict[str, torch.Tensor], number: int) -> torch.Tensor:
    """One sample's output without the others."""
    only = {k: v[number : number + 1] if v.shape[0] == TOGETHER else v for k, v in inputs.items()}
    return called(component, module, only)


@pytest.mark.parametrize("most", [MOST, 1 << 30])
def test_every_sample_is_computed_as_if_alone(denoiser: Any, tmp_path: Path, most: int) -> None:
    _, component, module = denoiser
    inputs = inputs_of(component)
    with block_by_block(module, 1, TOGETHER, tmp_path, most):
        found = called(component, module, inputs)
    for number in range(TOGETHER):
        expected = alone(component, module, inputs, number)
        # Of an opened block, products of activations are computed for all samples at once.
        assert torch.allclose(found[number : number + 1], expected, rtol=0, atol=0 if most > MOST else 1e-6)
    assert not list(tmp_path.iterdir())
    assert not any("forward" in part.__dict__ for _, part in parts(module, most))


def test_weights_in_files_are_read_once_for_all_samples(
    denoiser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, component, whole = denoiser
    left = offloaded(source, component, "cpu", torch.float32, MOST)
    read: Counter[str] = Counter()
    find = offload.find_weight

    def counted(component: Any, index: Any, name: str) -> Any:
        read[name] += 1
        return find(component, index, name)

    monkeypatch.setattr(offload, "find_weight", counted)
    inputs = inputs_of(component)
    with block_by_block(left, 1, TOGETHER, tmp_path, MOST):
        found = called(component, left, inputs)
    assert set(read.values()) == {1} and all(p.is_meta for p in left.parameters())
    with block_by_block(whole, 1, TOGETHER, tmp_path):  # all in memory, other parts
        assert torch.allclose(found, called(component, whole, inputs), rtol=0, atol=1e-6)


def test_parts_hold_every_weight_once_and_fit_where_they_can(denoiser: Any) -> None:
    _, _, module = denoiser
    found = list(parts(module, MOST))
    names = [f"{name}.{n}" for name, part in found for n, _ in part.named_parameters()]
    others = [(name, part.named_parameters(recurse=False)) for name, part in opened(module, MOST)]
    around = [f"{name}.{n}".lstrip(".") for name, own in others for n, _ in own]
    assert sorted(names + around) == sorted(n for n, _ in module.named_parameters())
    for name, part in found:
        size = sum(p.numel() * p.element_size() for p in part.parameters())
        assert size <= MOST or not list(part.children()), name


def test_what_blocks_hand_on_is_counted_before_it_is_computed(
    denoiser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, component, module = denoiser
    held, peak = 0, 0

    def watched(directory: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        nonlocal held, peak
        given, size = in_file(directory, shape, dtype), int(np.prod(shape)) * dtype.itemsize
        held, peak = held + size, max(peak, held + size)
        weakref.finalize(given, forget, size)
        return given

    def forget(size: int) -> None:
        nonlocal held
        held -= size

    monkeypatch.setattr(blockwise, "in_file", watched)
    rule, generation = latent_rule(source), source.generation
    rows = TOGETHER * (1 if rule.packed else 2)
    shapes = Shapes(rows, generation["height"] // rule.scale, generation["width"] // rule.scale,
                    generation.get("max_sequence_length", between.TEXT_TOKENS))  # fmt: skip
    inputs = component.row.inputs(component.config, shapes, torch.float32, torch.Generator().manual_seed(1))
    with block_by_block(module, 1, TOGETHER, tmp_path):
        called(component, module, inputs)
    assert 0.9 * peak <= TOGETHER * bytes_between(source) <= 1.5 * peak > 0


def test_as_many_images_as_fit_and_one_at_least(flux: Source) -> None:
    each = bytes_between(flux)
    assert fitting(flux, 5 * each, 32, 1) == 5 and fitting(flux, 5 * each, 4, 1) == 4
    assert fitting(flux, each - 1, 32, 1) == 1 and fitting(flux, 0, 32, 32) == 32


def test_samples_do_not_depend_on_whether_weights_are_in_memory(
    flux: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "TOKENS", 64)  # one image in a call
    sizes = []
    divided = blockwise._Batch._run
    monkeypatch.setattr(
        blockwise._Batch, "_run", lambda self, *a: (sizes.append((self.rows, self.samples)), divided(self, *a))[1]
    )
    modules = {"q": "transformer_blocks.0.attn.to_q", "mlp": "single_transformer_blocks.0.proj_mlp"}
    prompts = ["a red circle", "a small blue square above a cross", "a green cross"]
    drawn = [
        calibrate.calibrate(flux, load_pipeline(flux, most), modules, prompts, [0, 1, 2], 50, 0, tmp_path)
        for most in (None, 0)
    ]
    assert set(sizes) == {(3, 1)} and not list(tmp_path.iterdir())
    assert all(np.array_equal(drawn[0][name], drawn[1][name]) for name in modules)


def test_samples_block_by_block_are_those_of_image_after_image(
    sd: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With guidance, whose halves share a batch: the same rows in another order."""
    pipe, path = load_pipeline(sd), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

    def rows() -> np.ndarray:
        found = calibrate.calibrate(sd, pipe, {"q": path}, ["a red circle", "a cross"], [0, 1], 10_000, 0, tmp_path)
        return found["q"][np.lexsort(found["q"].T)].astype(np.float64)

    monkeypatch.setattr(batches, "TOKENS", 1)
    together = rows()
    monkeypatch.setattr(calibrate, "MOST_BETWEEN", 0)
    apart = rows()
    assert together.shape == apart.shape
    assert abs(np.sort(together, axis=0) - np.sort(apart, axis=0)).max() < 1e-3 * abs(apart).max()


def test_an_output_without_rows_is_the_first_calls_and_complex_arguments_stay_whole(tmp_path: Path) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> Any:
            return {"x": x * self.weight, "sum": positions.real.sum(), "rows": len(positions), "none": None}

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> Any:
            return self.block(x, positions=positions)

    x, positions, net = torch.arange(10.0).view(5, 2), torch.ones(5, dtype=torch.complex64), Net()
    with block_by_block(net, 2, 5, tmp_path), torch.no_grad():
        found = net(x, positions)
    assert torch.equal(found["x"], x) and found["sum"] == 5 and found["rows"] == 5 and found["none"] is None


def test_forwards_are_restored_after_an_error(flux: Source, tmp_path: Path) -> None:
    pipe = load_pipeline(flux, 0)

    def forwards() -> list[Any]:
        return [part.__dict__.get("forward") for part in pipe.transformer.modules()]

    before = forwards()
    with pytest.raises(RuntimeError, match="stop"), block_by_block(pipe.transformer, 1, 2, tmp_path):
        assert forwards() != before
        raise RuntimeError("stop")
    assert forwards() == before and any(before)


def test_a_tensor_in_a_file_leaves_no_name_and_is_no_anonymous_memory(tmp_path: Path) -> None:
    found = in_file(tmp_path, (3, 5), torch.bfloat16)
    found[:] = 2
    assert found.float().sum() == 30 and not list(tmp_path.iterdir())
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert mapped and "rw-s" in mapped[0] and len(mapped) == 1
    del found
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert in_file(tmp_path, (0, 4), torch.float32).shape == (0, 4)


def test_a_full_disk_is_one_sentence_that_says_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"is full \(\d+ MiB free, 8 MiB needed\)"):
        in_file(tmp_path, (2 << 20,), torch.float32)
    assert not list(tmp_path.iterdir())
