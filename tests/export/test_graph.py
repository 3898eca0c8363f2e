"""Exported graphs: names kept, nothing of the machine in them, the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file

from artifact.errors import UserError
from export import weights
from export.components import components
from export.fake_module import fake_module
from export.graph import export_graph, write_graph
from export.graph_cache import graph_bytes, graph_key, load_prepared
from export.source import Source, open_source
from export.tidy import SCOPE
from export.weights import bind_weights, weight_values
from passes.dtypes import dtypes
from passes.verify_tensorrt import objection
from tests.export.models import GRAPHS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("source_name", "name"), GRAPHS)
def test_every_parameter_of_a_linear_is_an_initializer_of_its_own_name(graph, source_name, name):
    _, component, model = graph(source_name, name)
    module, _ = fake_module(component, "float32")
    for path, child in module.named_modules():
        if isinstance(child, torch.nn.Linear):
            users = [use.node for use in model.graph.initializers[f"{path}.weight"].uses()]
            assert [n.op_type for n in users] in (["Transpose"], ["Gemm"]), path
            if users[0].op_type == "Transpose":
                assert {u.node.op_type for u in users[0].outputs[0].uses()} == {"MatMul"}, path
                assert all(u.idx == 1 for u in users[0].outputs[0].uses())
            assert users[0].metadata_props[SCOPE] == path
            assert child.bias is None or f"{path}.bias" in model.graph.initializers
    assert {v.name for v in weight_values(model)} <= {n for n, _ in module.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize(("source_name", "name"), GRAPHS)
def test_inputs_outputs_and_sizes_are_named(graph, source_name, name):
    _, component, model = graph(source_name, name)
    axes = component.row.axes(component.config)
    values = (*model.graph.inputs, *model.graph.outputs)
    assert [v.name for v in model.graph.outputs] == list(component.row.outputs)
    assert {v.name for v in values} == set(axes)
    for value in values:
        for size, expected in zip(value.shape, axes[value.name], strict=True):
            assert isinstance(size, int) if expected is None else size == ir.SymbolicDim(expected)
    assert model.opset_imports[""] <= 20 and model.ir_version <= 10


@pytest.mark.parametrize(("source_name", "name"), GRAPHS)
def test_nothing_of_the_machine_is_in_the_bytes(graph, source_name, name):
    _, _, model = graph(source_name, name)
    data = graph_bytes(model)
    for trace in (str(ROOT), str(Path.home()), sys.prefix, os.getcwd(), "/tmp", ".py", "site-packages", "pkg.torch"):
        assert trace.encode() not in data, trace
    assert {k for n in model.graph.all_nodes() for k in n.metadata_props} <= {SCOPE}


@pytest.mark.parametrize(("source_name", "name"), GRAPHS)
def test_every_kind_of_graph_is_one_that_tensorrt_parses_without_doubles(graph, source_name, name):
    _, _, model = graph(source_name, name)
    assert objection(model) is None
    assert ir.DataType.DOUBLE not in dtypes(model).values()


def test_weights_are_references_into_the_source_and_hold_nothing(graph):
    source, component, model = graph("flux", "transformer", "float16")
    expected = load_file(source.weights(component.module).files[0])
    values = weight_values(model)
    assert {v.name for v in values} == set(expected)
    for value in values:
        assert isinstance(value.const_value, ir.ExternalTensor)
        assert np.array_equal(value.const_value.numpy(), expected[value.name])


def test_weights_of_another_dtype_are_converted_when_read(graph):
    _, _, model = graph("flux", "text_encoder_2", "float16")
    kinds = {v.name: type(v.const_value) for v in weight_values(model)}
    islands = {n for n, kind in kinds.items() if issubclass(kind, ir.LazyTensor)}
    assert islands == {f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight" for i in (0, 1)}
    assert all(model.graph.initializers[n].const_value.numpy().dtype == np.float32 for n in islands)


def test_a_converted_weight_is_written_some_rows_at_a_time(graph, tmp_path, monkeypatch):
    _, _, model = graph("flux", "text_encoder_2", "float16")
    weight = model.graph.initializers["encoder.block.0.layer.1.DenseReluDense.wo.weight"].const_value
    whole, pieces = weight.numpy(), []
    monkeypatch.setattr(weights, "PIECE_BYTES", 3 * whole[0].nbytes)
    tofile = ir.Tensor.tofile
    monkeypatch.setattr(ir.Tensor, "tofile", lambda self, f: (pieces.append(len(self.numpy())), tofile(self, f))[1])
    with open(tmp_path / "w", "wb") as file:
        weight.tofile(file)
    assert (tmp_path / "w").read_bytes() == whole.tobytes()
    assert max(pieces) == 3 and sum(pieces) == len(whole)


def test_exporting_again_gives_the_same_bytes(graph):
    source, component, model = graph("flux", "text_encoder_2")
    assert graph_bytes(bind_weights(export_graph(component, "float32"), source, component)) == graph_bytes(model)


def test_another_process_with_another_hash_seed_gives_the_same_bytes(graph):
    source, _, _ = graph("flux", "transformer")
    names = ["transformer"]
    script = f"""
import hashlib
from export.source import Source, open_source
from export.components import components
from export.graph import export_graph, write_graph
from export.graph_cache import graph_bytes
for c in components(open_source({str(source.root)!r})):
    if c.name in {names!r}:
        print(c.name, hashlib.sha256(graph_bytes(export_graph(c, "float32"))).hexdigest())
"""
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    expected = {n: hashlib.sha256(graph_bytes(graph("flux", n)[2])).hexdigest() for n in names}
    assert dict(line.split() for line in done.stdout.splitlines()) == expected


def test_the_store_returns_the_graph_unbound_and_without_paths(graph, store):
    source, component, model = graph("flux", "vae_decoder")
    stored = load_prepared(store, graph_key(component, "float32"))
    assert stored is not None
    assert {v.const_value.location for v in weight_values(stored)} == {"weights"}
    assert graph_bytes(bind_weights(stored, source, component)) == graph_bytes(model)


def test_the_key_tells_dtype_and_config_apart(flux):
    one, two = [c for c in components(flux) if c.module == "vae"]
    assert len({graph_key(one, "float32"), graph_key(one, "float16"), graph_key(two, "float32")}) == 3


def test_config_and_weights_of_two_models_are_refused(graph, copy):
    _, _, model = graph("flux", "vae_decoder")
    source = _with_vae(copy, lambda tensors: tensors.update({"decoder.conv_in.weight": np.zeros((8, 4, 3, 3), "f2")}))
    component = next(c for c in components(source) if c.name == "vae_decoder")
    with pytest.raises(UserError, match="shape .8, 4, 3, 3.*not of one model"):
        bind_weights(model.clone(), source, component)


def test_a_lacking_weight_is_named(graph, copy):
    _, _, model = graph("flux", "vae_decoder")
    source = _with_vae(copy, lambda tensors: tensors.pop("decoder.conv_in.weight"))
    component = next(c for c in components(source) if c.name == "vae_decoder")
    with pytest.raises(UserError, match="no 'decoder.conv_in.weight'"):
        bind_weights(model.clone(), source, component)


def _with_vae(root: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Source:
    """The model with its VAE's tensors changed."""
    file = root / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return open_source(str(root))


def test_attention_names_of_old_files_are_found(graph, copy):
    _, component, model = graph("flux", "vae_decoder")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in list(tensors):
            for new, before in old.items():
                if ".attentions." in name and f".{new}." in name:
                    tensors[name.replace(new, before)] = tensors.pop(name)

    bound = bind_weights(model.clone(), _with_vae(copy, rename), component)
    for one, two in zip(weight_values(bound), weight_values(model), strict=True):
        assert np.array_equal(one.const_value.numpy(), two.const_value.numpy())


def test_files_with_hard_links_are_written_all_the_same(copy, graph, tmp_path):
    """onnx-ir and onnxruntime refuse external data in them."""
    _, _, model = graph("flux", "vae_decoder", "float16")
    source = open_source(str(copy))
    component = next(c for c in components(source) if c.name == "vae_decoder")
    for file in source.weights("vae").files:
        os.link(file, tmp_path / file.name)
    bound = bind_weights(model.clone(), source, component)
    write_graph(bound, tmp_path / "model.onnx")
    for name, value in ir.load(tmp_path / "model.onnx").graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), model.graph.initializers[name].const_value.numpy()), name
