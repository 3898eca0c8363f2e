"""A few blocks exported and repeated are the graph of all of them, to the byte, in every family."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import diffusers
import onnx_ir as ir
import pytest
import torch
import transformers

from export import components, families
from export.alike import Run, alike, shorten
from export.components import Component
from export.families.row import Row
from export.graph import export_graph
from export.graph_cache import graph_bytes
from export.repeat import NotAlikeError, repeat
from export.tidy import SCOPE
from tests.export import models

BLOCKS = 6  # of the small ones
LAYERS = 5  # of the families: one is left out, and exporting the others takes seconds


def of_diffusers(cls: str, config: dict[str, Any]) -> Component:
    return Component("a", "a", "denoiser", cls, dict(getattr(diffusers, cls)(**config).config))


def text_encoder(cls: str, config: transformers.PretrainedConfig) -> Component:
    return Component("a", "a", "text_encoder", cls, config.to_dict())


LAYERED = {"num_layers": LAYERS}
SD3_LAYERS = {"num_layers": LAYERS + 1, "dual_attention_layers": ()}  # the last block is another
FAMILIES = {
    "flux": lambda: of_diffusers("FluxTransformer2DModel", models.FLUX | LAYERED | {"num_single_layers": LAYERS}),
    "sd3": lambda: of_diffusers("SD3Transformer2DModel", models.SD3 | SD3_LAYERS),
    "pixart": lambda: of_diffusers("PixArtTransformer2DModel", models.PIXART | LAYERED),
    "sana": lambda: of_diffusers("SanaTransformer2DModel", models.SANA | LAYERED),
    "qwen": lambda: of_diffusers("QwenImageTransformer2DModel", models.QWEN_IMAGE | LAYERED),
    "sdxl": lambda: of_diffusers("UNet2DConditionModel", models.UNET_XL | {"transformer_layers_per_block": LAYERS}),
    "clip": lambda: text_encoder(
        "CLIPTextModelWithProjection", transformers.CLIPTextConfig(**models.CLIP | {"num_hidden_layers": LAYERS})
    ),
    "t5": lambda: text_encoder("T5EncoderModel", transformers.T5Config(**models.T5 | LAYERED)),
    "qwen_vl": lambda: text_encoder("Qwen2_5_VLForConditionalGeneration", qwen_vl()),
}


def qwen_vl() -> transformers.PretrainedConfig:
    text = models.QWEN_VL["text_config"] | {"num_hidden_layers": LAYERS}
    return transformers.Qwen2_5_VLConfig(**models.QWEN_VL | {"text_config": text})


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What exporting says of a way that it could not go."""
    logger, handler = logging.getLogger("export.graph"), Said()
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_is_that_of_all_blocks(family: str, said: list[str]) -> None:
    component = FAMILIES[family]()
    short = export_graph(component, "float16")
    assert said == []  # it went the short way
    assert graph_bytes(short) == graph_bytes(export_graph(component, "float16", whole=True))


class Block(torch.nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mean: torch.Tensor, factor: float = 1.5) -> torch.Tensor:
        return x + torch.relu(self.linear(x)) * mean.sigmoid() * factor


class Chain(torch.nn.Module):
    """Blocks in a row, and what a subclass makes of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, seen = x.mean(1, keepdim=True), [x]
        for i in range(len(self.blocks)):
            seen.append(self.block(i)(seen[-1], mean, self.factor(i)))
        return self.result(seen)

    def block(self, i: int) -> torch.nn.Module:
        return list(self.blocks)[i]

    def factor(self, i: int) -> float:
        return 1.5

    def result(self, seen: list[torch.Tensor]) -> torch.Tensor:
        return seen[-1] + seen[-2]  # the last but one, too, as CLIP's penultimate output


class Numbered(Chain):
    def factor(self, i: int) -> float:
        return 1.0 + i


class AllRead(Chain):
    def result(self, seen: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(seen, -1)


class ByNumber(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(BLOCKS):
            x = self.blocks[i](x, x)
        return x


class Between(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, x).tanh()
        return x


class SkippingOne(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x
        for block in self.blocks:
            x, before = block(x, before), x
        return x


def component_of(cls: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> Component:
    row = Row(
        cls=cls.__name__, role="denoiser", component="a", build=lambda config: cls(), load=cls, outputs=("y",),
        call=lambda config: cls.forward, inputs=lambda *_: {"x": torch.zeros(2, 4)},
        axes=lambda config: {"x": ("batch", None), "y": ("batch", None)},
    )  # fmt: skip
    monkeypatch.setitem(components.MODULES, cls.__name__, (row,))
    return Component("a", "a", "denoiser", cls.__name__, {})


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Chain, None),
        (SkippingOne, "blocks.1 has"),
        (Numbered, "reads another input"),
        (Between, "reads another input"),
        (AllRead, "is read behind"),
        (ByNumber, "Failed to export"),
    ],
)
def test_blocks_that_are_not_alike_are_exported_all(
    cls: type[torch.nn.Module], reason: str | None, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    component = component_of(cls, monkeypatch)
    short = export_graph(component, "float32")
    assert len(said) == (reason is not None) and all(str(reason) in line for line in said)
    assert graph_bytes(short) == graph_bytes(export_graph(component, "float32", whole=True))
    names = [v for v in short.graph.initializers if v.endswith("linear.weight")]
    assert names == [f"blocks.{i}.linear.weight" for i in range(BLOCKS)]


class Broken(Chain):
    built = 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = self.blocks[: LAYERS - 1]
        Broken.built += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such model")


def test_a_model_without_blocks_to_leave_out_fails_at_once(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    with pytest.raises(Exception, match="no such model"):
        export_graph(component_of(Broken, monkeypatch), "float32")
    assert Broken.built == 1 and said == []


SCOPED = """<ir_version: 10, opset_import: ["" : 20]>
graph (float[4] x) => (float[4] y) {
  a0 = Relu (x)
  a1 = Relu (a0)
  h = Relu (a1)
  early = Neg (h)
  a2 = Neg (h)
  a3 = Relu (a2)
  y = Add (a3, early)
}"""


def test_what_reads_a_block_before_that_has_ended_is_not_put_behind_the_copies() -> None:
    text = SCOPED.replace("a1 = Relu (a0)", "b1 = Relu (a0)\n  a1 = Neg (b1)")
    model = ir.from_onnx_text(text)
    scopes = {"a0": "blocks.0", "b1": "blocks.1", "a1": "blocks.1", "h": "blocks.2", "a2": "blocks.2", "a3": "blocks.9"}
    for node in model.graph:
        node.metadata_props[SCOPE] = scopes.get(str(node.outputs[0].name), "")
    with pytest.raises(NotAlikeError, match="before that has ended"):
        repeat(model, [Run("blocks", "0", "1", "2", ("3",))])


def test_what_tells_blocks_apart() -> None:
    a, b = Block(), Block()
    assert alike(a, b)
    a.layer_idx, b.layer_idx = 0, 1  # where a block stands
    assert alike(a, b)
    b.scale = 2.0
    assert not alike(a, b)
    a.scale = 1.0
    assert not alike(a, b)
    a.scale = 2.0
    assert alike(a, b) and not alike(a, Block(5)) and not alike(a, torch.nn.Linear(4, 4))
    a.register_buffer("table", torch.ones(3))
    b.register_buffer("table", torch.zeros(3))
    assert not alike(a, b)


def test_a_run_is_shortened_to_four_and_others_are_left() -> None:
    blocks = [Block(), Block(), *(Block(5) for _ in range(6)), *(Block() for _ in range(4))]
    module = torch.nn.Module()
    module.outer = torch.nn.Module()
    module.outer.blocks = torch.nn.ModuleList(blocks)
    (run,) = shorten(module)
    assert (run.parent, run.first, run.second, run.third, run.left_out) == ("outer.blocks", "2", "3", "4", ("5", "6"))
    assert [name for name, _ in module.outer.blocks.named_children()] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "7",
        "8",
        "9",
        "10",
        "11",
    ]


def test_every_list_of_blocks_in_the_families_is_covered() -> None:
    """A family whose denoiser is not among those above would be exported untested."""
    denoisers = {row.cls for rows in families.MODULES.values() for row in rows if row.role == "denoiser"}
    assert denoisers == {FAMILIES[name]().cls for name in ("flux", "sd3", "pixart", "sana", "qwen", "sdxl")}
