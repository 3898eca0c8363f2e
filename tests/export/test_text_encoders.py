"""Gemma-2 and Qwen2.5-VL in 4-bit weights: float32 around the layers, and in TensorRT bfloat16 within them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import engines
from artifact.manifest import Artifact
from artifact.store import Store
from export.check import check_against_torch
from export.components import Component, components
from export.dry_run import dry_run
from export.graph import write_graph
from export.graph_cache import prepared
from export.lora.apply import apply, remove
from export.options import Options
from export.source import Source, open_source
from export.weights import find_weight
from passes.layers import Layer
from passes.presets import PRESETS, plugin_form
from passes.solved import Quantised, Solved
from passes.solver import solve_layer
from passes.verify_tensorrt import objection
from passes.weights import LayerLoader
from passes.write import write_model
from tests.compile import loras
from tests.compile.commands import build
from tests.export import models
from tests.export.families import layers_of, policy_of, relative, run
from tests.passes.nodewise import disagreements, oracle, svdq_nodes
from tests.passes.plugin_nodes import attributes, compute, constants

MODELS: dict[str, Callable[[Path], Path]] = {"sana": models.sana, "qwen": models.qwen_image}
PREFIX = {"sana": "", "qwen": "model.language_model."}
LINEARS = [*(f"self_attn.{n}_proj" for n in "qkvo"), *(f"mlp.{n}_proj" for n in ("gate", "up", "down"))]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Callable:
    """A name → (source, its text encoder, the graph, its layers, as solved)."""

    @cache
    def get(name: str) -> tuple[Source, Component, ir.Model, list[Layer], Solved]:
        source = open_source(str(MODELS[name](tmp_path_factory.mktemp("text") / name)))
        part = next(c for c in components(source) if c.role == "text_encoder")
        assert part.float32
        graph = prepared(source, part, "float16", store)
        layers = layers_of(part, graph)
        return source, part, graph, layers, solved(source, part, layers)

    return get


def solved(source: Source, part: Component, layers: list[Layer]) -> Solved:
    """As a build solves them: weights alone, rounded to the nearest."""
    found = {}
    tensors = source.weights(part.module)
    for layer in layers:
        names = [name for name in (*layer.weights, *layer.biases) if name is not None]
        refs = {name: find_weight(part, tensors, name) for name in names}  # Qwen's files have older names
        recipe = PRESETS["w4a16"].recipe(layer, "float32")
        found[layer.name] = Quantised(recipe, solve_layer(*LayerLoader(layer, refs, "", None)(), recipe))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_attentions_and_feed_forwards_have_4_bit_weights_and_the_text_stays(
    text: Callable, tmp_path: Path, name: str
) -> None:
    _, part, graph, layers, found = text(name)
    assert {x.name for x in layers} == {f"{PREFIX[name]}layers.{i}.{n}" for i in (0, 1) for n in LINEARS}
    PRESETS["fp16"].apply(whole := graph.clone(), policy_of(part), {})
    portable = PRESETS["w4a16"].apply(graph.clone(), policy_of(part), found)
    for node in svdq_nodes(portable):
        assert node.attributes["act_bits"].as_int() == 16
        assert node.inputs[-1].dtype == ir.DataType.FLOAT  # bias
    for model, file in ((whole, "whole"), (portable, "four")):
        write_model(model, tmp_path / f"{file}.onnx")
    for number in range(len(part.row.check_shapes)):
        four, wide = (run(tmp_path / f"{file}.onnx", part, number, "float32") for file in ("four", "whole"))
        assert np.isfinite(four).all()
        assert 1e-3 < relative(four, wide) < 0.35  # random weights of width 32: a check of the wiring
    for layer, wrong, worst in disagreements(ir.load(tmp_path / "four.onnx"), rows=9):
        assert wrong == 0, f"{layer}: {wrong} elements beyond the bound, the worst at {worst:.2f} of it"


@pytest.mark.parametrize("name", MODELS)
def test_the_plugin_form_computes_these_layers_in_bfloat16_between_casts(text: Callable, name: str) -> None:
    _, part, graph, layers, found = text(name)
    portable = PRESETS["w4a16"].apply(graph.clone(), policy_of(part), found)
    before = {n.name: n for n in svdq_nodes(portable)}
    inputs = {layer.input for layer in layers}
    lowered = plugin_form(0, len(layers), ir.DataType.BFLOAT16)(portable.clone()).model
    assert objection(lowered) is None
    for node in svdq_nodes(lowered):
        held = constants(node)
        assert {a.dtype for n, a in held.items() if n != "qweight"} == {np.dtype(ml_dtypes.bfloat16)}
        cast = node.inputs[0].producer()
        (after,) = [use.node for use in node.outputs[0].uses()]
        assert (cast.op_type, cast.attributes["to"].as_int()) == ("Cast", ir.DataType.BFLOAT16)
        assert (after.op_type, after.attributes["to"].as_int()) == ("Cast", ir.DataType.FLOAT)
        k = attributes(node)["k"]
        x = np.random.default_rng(0).standard_normal((9, k)).astype(ml_dtypes.bfloat16)
        y = compute(x, held, attributes(node))[0].astype(np.float64)
        wide = oracle(before[node.name], x.astype(np.float32))[0].astype(np.float64)
        assert 0 < relative(y, wide) < 2.0**-7, node.name  # y and the scales have 8 bits
    casts = [n for n in lowered.graph if n.op_type == "Cast" and n.attributes["to"].as_int() == ir.DataType.BFLOAT16]
    assert len(casts) == len(inputs) == 2 * 4  # q, k and v read one x, gate and up another


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_the_table_of_words_keeps_the_16_bits_of_its_file(tmp_path: Path, store: Store, kind: type) -> None:
    model = models.sana(tmp_path / "model")
    (file,) = (model / "text_encoder").glob("*.safetensors")
    save_file({name: array.astype(kind) for name, array in load_file(file).items()}, file, {"format": "pt"})
    source = open_source(str(model))
    part = next(c for c in components(source) if c.role == "text_encoder")
    graph = prepared(source, part, "float16", store)
    table = graph.graph.initializers["embed_tokens.weight"]
    (gather,) = [use.node for use in table.uses()]
    (cast,) = [use.node for use in gather.outputs[0].uses()]
    assert table.const_value.dtype == ir.DataType.from_numpy(np.dtype(kind)) and table.const_value.nbytes == 64 * 32 * 2
    assert (gather.op_type, cast.op_type, cast.attributes["to"].as_int()) == ("Gather", "Cast", ir.DataType.FLOAT)
    assert objection(graph) is None
    write_graph(graph, tmp_path / "model.onnx")
    rows = check_against_torch(tmp_path / "model.onnx", source, part, "float16")
    assert max(r["relative"] for r in rows) <= 1e-4


@pytest.fixture(scope="module")
def sana_built(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """A SANA artifact whose Gemma is saved as Gemma2ForCausalLM saves it: every name with "model." before it."""
    root = tmp_path_factory.mktemp("sana")
    model = models.sana(root / "model")
    (file,) = (model / "text_encoder").glob("*.safetensors")
    save_file({f"model.{name}": array for name, array in load_file(file).items()}, file)
    flags = ("--rank", "16", "--data-free", "--references", "0", "--text-encoder-bits", "4")
    code, _, stderr = build("--model", model, "--out", root / "out", "--cache", store.root, *flags)
    assert code == 0, stderr
    return root / "out"


def test_a_build_has_both_forms_and_draws_from_them(sana_built: Path) -> None:
    artifact = Artifact.open(sana_built)
    entry = artifact.manifest["components"]["text_encoder"]
    assert entry["models"]["svdq-int4"] == "text_encoder/w4a16.onnx"
    assert entry["tensorrt"]["svdq-int4"] == "text_encoder/w4a16.trt.onnx"
    assert not [s for s in artifact.manifest["skipped"] if "form" in s]
    assert len(artifact.manifest["layers"]["svdq-int4"]["text_encoder"]) == 14
    lowered = ir.load(artifact.tensorrt("text_encoder", "svdq-int4"))
    assert objection(lowered) is None and len(svdq_nodes(lowered)) == 14
    with engines.load(sana_built) as pipe:
        image = np.asarray(pipe("a large red circle", seed=0))
    assert image.std() > 1


def test_a_dry_run_knows_how_large_it_becomes(sana_built: Path, store: Store) -> None:
    asked = Options(
        model=str(sana_built.with_name("model")), out=sana_built, cache=store.root, rank=16, data_free=True,
        references=0, text_encoder_bits="4",
    )  # fmt: skip
    row = next(r for r in dry_run(asked).rows if (r.component, r.form) == ("text_encoder", "w4a16"))
    assert row.layers == row.solved == 14
    held = ir.load(Artifact.open(sana_built).model("text_encoder", "svdq-int4")).graph.initializers.values()
    size = sum(v.const_value.nbytes for v in held if v.name.startswith(("layers.", "embed", "norm")))
    assert row.bytes_after == pytest.approx(size, rel=0.15)  # of layers this small, zeros for a bias are much


def test_a_lora_of_a_float32_text_encoder_is_folded_in_both_forms(sana_built: Path, tmp_path: Path) -> None:
    matrices = loras.random({"layers.0.self_attn.q_proj": (32, 32), "layers.1.mlp.down_proj": (32, 64)}, "text_encoder")
    before = (sana_built / "manifest.json").read_bytes()
    apply(sana_built, [loras.as_kohya(tmp_path / "a.safetensors", matrices)], [], "svdq-int4")
    artifact = Artifact.open(sana_built)
    portable = {n.name: n for n in svdq_nodes(ir.load(artifact.model("text_encoder", "svdq-int4")))}
    packed = {n.name: n for n in svdq_nodes(ir.load(artifact.tensorrt("text_encoder", "svdq-int4")))}
    for name, (a, b) in matrices.items():
        name = name.removeprefix("text_encoder.")
        held = constants(portable[name])
        np.testing.assert_allclose(held["down"] @ held["up"], loras.product(a, b).T, atol=1e-6)
        x = np.random.default_rng(0).standard_normal((9, a.shape[1])).astype(ml_dtypes.bfloat16)
        y = compute(x, constants(packed[name]), attributes(packed[name]))[0].astype(np.float64)
        wide = oracle(portable[name], x.astype(np.float32))[0].astype(np.float64)
        assert relative(y, wide) < 2.0**-7
        rows = artifact.manifest["layers"]["svdq-int4"]["text_encoder"][name]
        assert rows["rank"] == 16
    remove(sana_built)
    assert (sana_built / "manifest.json").read_bytes() == before
