"""The layers that TensorRT reports, in the words of three versions (files written by us: data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artifact.errors import UserError
from engines.trt import graph
from engines.trt.graph import Graph
from engines.trt.layers import judge, nodes_of, parse
from tests.engines.trt.small import ISLAND

DATA = Path(__file__).parent / "data"
VERSIONS = ("8.6", "10.3", "11.1")
PLUGINS = ("attn.to_qkv", "ff.net.0.proj")
ORDER = ("attn.to_qkv", "MatMul_3", "MatMul_4", "Softmax_9", "ff.net.0.proj", "to_float", "square", "to_half")
GRAPH = Graph(PLUGINS, ORDER, frozenset(ISLAND), frozenset({"to_float", "square"}), frozenset({"wide", "squared"}))


def content(version: str) -> dict[str, Any]:
    return json.loads((DATA / f"layers-{version}.json").read_text(encoding="utf-8"))


def judged(content: dict[str, Any], of: Graph = GRAPH) -> list[str]:
    return judge(parse(json.dumps(content)), of, "the engine")


def layer(content: dict[str, Any], node: str) -> dict[str, Any]:
    """The layer that holds a node."""
    return next(x for x in content["Layers"] if node in x["Name"] or node in x.get("Metadata", ""))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_good_engine_s_layers_are_read_and_counted(version: str) -> None:
    layers = parse((DATA / f"layers-{version}.json").read_text(encoding="utf-8"))
    assert [x.name for x in layers if x.is_plugin] == list(PLUGINS)
    assert not any("profile 1" in x.name for x in layers)
    wide = [x for x in layers if x.gives_float32]
    assert "square" in nodes_of(wide[0], GRAPH)
    said = judged(content(version))
    assert f"{len(layers)} layers, 2 in the plugin, {len(wide)} in float32" in said[0]
    assert len(said) == (1 if version == "8.6" else 2)  # from 10 on the file has a helper of TensorRT's own


@pytest.mark.parametrize("version", VERSIONS)
def test_a_four_bit_node_that_became_another_layer_is_named(version: str) -> None:
    bad = content(version)
    layer(bad, "ff.net.0.proj")["LayerType"] = "gemm"
    with pytest.raises(UserError, match=r"1 of 2 4-bit layers .*first is 'ff.net.0.proj', which became gemm"):
        judged(bad)
    bad["Layers"] = [x for x in bad["Layers"] if x["Name"] != "ff.net.0.proj"]
    with pytest.raises(UserError, match="is nowhere among the engine's layers"):
        judged(bad)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_product_in_float32_is_named(version: str) -> None:
    bad = content(version)
    wrong = layer(bad, "MatMul_3")
    for tensor in wrong["Outputs"]:
        for key in ("Format/Datatype", "DataType", "Format"):
            if key in tensor:
                tensor[key] = "Row major linear FP32" if version == "8.6" or key == "Format" else "Float"
    with pytest.raises(UserError, match="1 layers of the engine compute in float32") as raised:
        judged(bad)
    assert wrong["Name"] in str(raised.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_island_is_only_allowed_because_the_graph_has_it(version: str) -> None:
    narrow = Graph(PLUGINS, ORDER, frozenset(), frozenset(), frozenset())
    with pytest.raises(UserError, match="compute in float32"):
        judged(content(version), narrow)


def test_a_product_that_names_no_node_is_refused_in_float32_and_a_helper_is_counted() -> None:
    bad = content("10.3")
    bad["Layers"][-2] |= {"LayerType": "gemm"}
    with pytest.raises(UserError, match="'__myl_Move_myl0_5'"):
        judged(bad)


def test_a_layer_that_names_no_node_may_give_a_tensor_that_is_float32_in_the_graph() -> None:
    fine = content("10.3")
    fine["Layers"][-2] |= {"LayerType": "gemm", "Outputs": [{"Name": "squared", "Format/Datatype": "Float"}]}
    assert len(judged(fine)) == 1


def test_bfloat16_and_integers_are_not_float32() -> None:
    for kind in ("BFloat16", "Row major linear BFloat16 format", "Int8", "FP8", "Row major linear FP16 format", "Half"):
        good = content("10.3")
        good["Layers"][-2]["Outputs"][0]["Format/Datatype"] = kind
        assert len(judged(good)) == 1, kind


def test_a_plugin_layer_with_float32_results_is_refused() -> None:
    bad = content("11.1")
    layer(bad, "attn.to_qkv")["Outputs"][0]["DataType"] = "Float"
    with pytest.raises(UserError, match="'attn.to_qkv'"):
        judged(bad)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"Layers": 3}', '{"Layers": [{"LayerType": "x"}]}', "&&&& FAILED"])
def test_what_is_no_layer_information_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="layer information") as raised:
        parse(text)
    assert "\n" not in str(raised.value)


def test_the_small_graph_s_islands_and_four_bit_nodes_are_known(pristine: Path) -> None:
    found = graph.read(pristine / "transformer/svdq-int4.trt.onnx")
    assert len(found.plugins) == 7 and set(found.plugins) <= set(found.order)
    assert found.float32 == set(ISLAND)
    assert found.float32_results == {"to_float", "square"}
    assert {"wide", "squared"} <= found.float32_values and "narrow" not in found.float32_values
    assert found.between("to_half", "to_float") == ISLAND
    assert found.between("to_half", "nowhere") == ()
