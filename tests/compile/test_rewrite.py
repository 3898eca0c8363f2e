"""The rewriting stage on small graphs: which forms it writes, and what it says of those that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.store import Store
from engines.external import pieces
from export.options import Options
from export.plan import Build
from export.rewrite import Written, refusals, rewrite
from export.stages import Stages
from tests.passes.conftest import BLOCK_POLICY, solve  # noqa: F401  (a fixture)
from tests.passes.graphs import GraphBuilder, block
from tests.passes.nodewise import svdq_nodes
from tests.passes.plugin_nodes import attributes

PRESETS = ("svdq-int4", "w4a16")


def text_encoder(op_type: str, dtype: str) -> ir.Model:
    """A component that is not quantised."""
    b = GraphBuilder(dtype)
    b.rename(b.node(op_type, [b.linear("fc", "x", 64, 64)]), "y")
    return b.model({"x": ["B", 64]}, {"y": ["B", 64] if op_type == "Relu" else []})


@pytest.fixture
def written(solve: Callable, tmp_path: Path) -> Callable[..., tuple[Build, Written]]:  # noqa: F811
    """Rewrite the block and a text encoder whose last operator is `op_type`."""

    def run(dtype: str = "float16", op_type: str = "Relu", out: str = "out", **options: Any) -> tuple[Build, Written]:
        four = SimpleNamespace(quantise=("attn.*", "proj_*"), weight_only=BLOCK_POLICY.weight_only)  # ff stays 16-bit
        sixteen = SimpleNamespace(quantise=(), weight_only=(), quantise_from=0)
        parts = [
            SimpleNamespace(name=name, module=name, role=role, row=row, dtype=lambda asked: asked)
            for name, role, row in (("text_encoder", "text_encoder", sixteen), ("transformer", "denoiser", four))
        ]
        graphs = {"text_encoder": text_encoder(op_type, dtype), "transformer": block(dtype)}
        chosen = Options(preset=PRESETS[0], compare=PRESETS[1:], dtype=dtype, **options)
        source: Any = SimpleNamespace(name="tiny", weights=lambda module: {})
        build = Build(chosen, source, parts, tmp_path / out, Store(tmp_path / "store"), Stages(quiet=True))  # type: ignore[arg-type]
        solved = {
            n: {k: q for k, q in solve(graphs["transformer"], n, dtype).items() if "ff" not in k} for n in PRESETS
        }
        return build, rewrite(build, graphs, {"transformer": solved}, refusals(build, graphs, gpu=False))

    return run


def test_every_preset_has_both_forms_and_what_is_not_4_bit_is_one_file(written: Callable) -> None:
    build, models = written()
    presets = [*PRESETS, "fp16"]
    assert models.skipped == []
    for forms in (models.portable, models.tensorrt):
        assert {n: list(m) for n, m in forms.items()} == {"text_encoder": presets, "transformer": presets}
    assert models.tensorrt["text_encoder"] == models.portable["text_encoder"]
    assert models.tensorrt["transformer"]["fp16"] == models.portable["transformer"]["fp16"]
    assert models.tensorrt["transformer"]["w4a16"][-1].name == "w4a16.trt.onnx"
    there = {p for p in build.out.rglob("*") if p.is_file()}
    assert there == models.files and len(there) == 12
    for preset in PRESETS:
        packed, portable = (forms["transformer"][preset] for forms in (models.tensorrt, models.portable))
        assert {p.file for p in pieces(packed[-1])} == {packed[0], portable[0]}


def test_the_same_graphs_give_the_same_bytes(written: Callable) -> None:
    (first, a), (second, b) = written(), written(out="again")
    names = sorted(p.relative_to(first.out) for p in a.files)
    assert names == sorted(p.relative_to(second.out) for p in b.files)
    for name in names:
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name


def test_reserved_rank_is_in_the_plugin_form_alone(written: Callable) -> None:
    (_, plain), (_, models) = written(), written(out="reserved", reserve_rank=16)
    for preset in PRESETS:
        a, b = (m.portable["transformer"][preset] for m in (plain, models))
        assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
        ranks = [
            {str(n.name): attributes(n)["rank"] for n in svdq_nodes(ir.load(m.tensorrt["transformer"][preset][-1]))}
            for m in (plain, models)
        ]
        assert {n: r + 16 for n, r in ranks[0].items()} == ranks[1]


def test_float32_graphs_have_no_plugin_form_and_the_build_says_so(written: Callable) -> None:
    _, models = written(dtype="float32")
    assert models.skipped == [
        "No plugin form of transformer svdq-int4, transformer w4a16: the plugin computes in float16 and these "
        "graphs are float32; build with --dtype float16 for TensorRT."
    ]
    assert list(models.tensorrt["transformer"]) == ["fp16"] and list(models.tensorrt["text_encoder"]) == [
        *PRESETS,
        "fp16",
    ]
    assert set(models.portable["transformer"]) == {*PRESETS, "fp16"}


def test_a_component_that_tensorrt_cannot_parse_is_skipped_aloud_or_refused_for_a_gpu(written: Callable) -> None:
    build, models = written(op_type="Det")
    (sentence,) = models.skipped
    assert "No TensorRT form of text_encoder: " in sentence and "(Det) is no operator that TensorRT 10.3" in sentence
    assert list(models.tensorrt) == ["transformer"] and "text_encoder" in models.portable
    graphs = {"text_encoder": text_encoder("Det", "float16"), "transformer": block("float16")}
    with pytest.raises(UserError, match=r"TensorRT cannot parse tiny's text_encoder: .*Det.* Build with --target cpu"):
        refusals(build, graphs, gpu=True)


def test_an_artifact_without_the_form_says_why(tmp_path: Path) -> None:
    skipped = ["No plugin form of w4a16: the graphs are float32."]
    component = {"models": {"w4a16": "t/w.onnx", "fp16": "t/f.onnx"}, "tensorrt": {"fp16": "t/f.onnx"}}
    artifact = Artifact(tmp_path, {"components": {"t": component}, "skipped": skipped})
    assert artifact.tensorrt("t", "fp16") == tmp_path.resolve() / "t/f.onnx"
    with pytest.raises(UserError, match="no form of t for w4a16 that TensorRT parses: No plugin form of w4a16: the gr"):
        artifact.tensorrt("t", "w4a16")
    component["tensorrt"]["fp16"] = "../f.onnx"
    with pytest.raises(UserError, match="leads out of"):
        artifact.tensorrt("t", "fp16")
    del component["tensorrt"]
    with pytest.raises(UserError, match="built by an earlier version"):
        Artifact(tmp_path, {"components": {"t": component}, "skipped": []}).tensorrt("t", "fp16")
