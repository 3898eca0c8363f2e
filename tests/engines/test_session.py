"""A session casts what it is fed, times its calls, and says plainly what is wrong with a graph or its numbers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifact.errors import UserError
from engines.faults import OutOfMemory
from engines.session import Session


def double(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """y = x + x on [batch, 3]."""
    x, y = (helper.make_tensor_value_info(n, kind, ["batch", 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def four_bit_linear(path: Path, k: int = 64, n: int = 8) -> tuple[Path, np.ndarray]:
    """x [batch, K] times an INT4 weight in the order that onnxruntime would fuse; and that weight in float32 [K, N]."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (k, n))
    scales = (rng.random((k // 32, n)) + 0.5).astype(np.float32)
    weight = numpy_helper.from_array(codes.astype(ml_dtypes.int4), "w")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["dense"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "dense"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(*a) for a in (("x", TensorProto.FLOAT, ["batch", k]),
                                                        ("y", TensorProto.FLOAT, ["batch", n])))  # fmt: skip
    graph = helper.make_graph(nodes, "linear", [x], [y], [weight, numpy_helper.from_array(scales, "s")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path, codes * np.repeat(scales, 32, axis=0)


def test_feeds_are_cast_and_float16_comes_back_as_float32(tmp_path: Path) -> None:
    session = Session(double(tmp_path / "m.onnx", TensorProto.FLOAT16), "m", threads=1)
    found = session.run({"x": np.array([[1.0, 2.0, 1 / 3]])})["y"]
    assert found.dtype == np.float32
    assert found.tolist() == [[2.0, 4.0, float(np.float16(1 / 3) * 2)]]


def test_every_call_is_timed(tmp_path: Path) -> None:
    session = Session(double(tmp_path / "m.onnx"), "m", threads=1)
    assert session.latencies_ms == []
    for _ in range(3):
        session.run({"x": np.zeros((1, 3))})
    assert len(session.latencies_ms) == 3 and all(t > 0 for t in session.latencies_ms)


def test_latencies_are_those_of_the_recent_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.backends.RECENT", 6)
    session = Session(double(tmp_path / "m.onnx"), "m", threads=1)
    for i in range(20):
        session.run({"x": np.zeros((1, 3))})
        assert len(session.latencies_ms) == i + 1 if i < 6 else 3 < len(session.latencies_ms) <= 6
    with pytest.raises(UserError, match="in call 21"):
        session.run({"x": np.full((1, 3), np.nan)})


def test_results_are_the_callers_own(tmp_path: Path) -> None:
    session = Session(double(tmp_path / "m.onnx"), "m", threads=1)
    feeds = np.ones((1, 3), np.float32)
    first = session.run({"x": feeds})["y"]
    feeds[:] = 5
    second = session.run({"x": feeds})["y"]
    third = session.run({"x": np.full((2, 3), 7.0)})["y"]
    assert first.tolist() == [[2.0] * 3] and second.tolist() == [[10.0] * 3] and third.tolist() == [[14.0] * 3] * 2
    first[:] = 0
    assert session.run({"x": np.ones((1, 3))})["y"].tolist() == [[2.0] * 3]


def test_buffers_of_a_shape_are_bound_once(tmp_path: Path) -> None:
    session = Session(double(tmp_path / "m.onnx"), "m", threads=1)
    session.run({"x": np.zeros((2, 3))})
    bound = session._bound
    session.run({"x": np.ones((2, 3))})
    assert session._bound is bound
    session.run({"x": np.ones((1, 3))})
    assert session._bound is not bound
    session.close()
    assert session._bound is None


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[ONNXRuntimeError] : 1 : FAIL : std::bad_alloc"),
              RuntimeError("Failed to allocate memory for requested buffer of size 5368709120")]
)  # fmt: skip
def test_memory_that_runs_out_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import onnxruntime

    def fail(*_: object, **__: object) -> None:
        raise error

    model = double(tmp_path / "m.onnx")
    opened = Session(model, "unet", threads=1).open()
    monkeypatch.setattr("engines.session._Bound.run", fail)
    with pytest.raises(OutOfMemory, match=r"graph of 'unet' ran out of memory on x \[2, 3\]"):
        opened.run({"x": np.zeros((2, 3))})
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(OutOfMemory, match="graph of 'unet' does not fit into memory"):
        Session(model, "unet").open()


def test_a_four_bit_weight_does_not_cost_the_activations_their_bits(tmp_path: Path) -> None:
    model, weight = four_bit_linear(tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((5, len(weight)), np.float32)
    found = Session(model, "m", threads=1).run({"x": x})["y"]
    assert np.abs(found - x @ weight).max() < 1e-5 * np.abs(x @ weight).max()


def test_names_and_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    session = Session(double(tmp_path / "m.onnx"), "the denoiser")
    with pytest.raises(UserError, match="'the denoiser' takes x but was given x, z"):
        session.run({"x": np.zeros((1, 3)), "z": np.zeros(1)})
    with pytest.raises(UserError, match="takes x but was given "):
        session.run({})
    with pytest.raises(UserError, match=r"'the denoiser' failed on x \[1, 4\]"):
        session.run({"x": np.zeros((1, 4))})


@pytest.mark.parametrize("value", [np.nan, np.inf, 60000.0])
def test_outputs_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    model = double(tmp_path / "m.onnx", TensorProto.FLOAT16)
    feeds = {"x": np.array([[0.0, value, 1.0]])}
    with pytest.raises(UserError, match="Output 'y' of 'm' holds NaN or infinity in call 1"):
        Session(model, "m").run(feeds)
    assert not np.isfinite(Session(model, "m", check_finite=False).run(feeds)["y"]).all()


def test_a_file_that_onnxruntime_refuses_is_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(double(tmp_path / "m.onnx").read_bytes()[:40])
    with pytest.raises(UserError, match="broken.onnx is no ONNX graph"):
        Session(broken, "unet").open()
    unknown = onnx.load(double(tmp_path / "m.onnx"))
    unknown.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(unknown, tmp_path / "unknown.onnx")
    with pytest.raises(UserError, match="refuses .*unknown.onnx, the graph of 'unet'"):
        Session(tmp_path / "unknown.onnx", "unet").open()
    with pytest.raises(UserError, match="none.onnx is missing"):
        Session(tmp_path / "none.onnx", "unet").open()


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "link"])
def test_weights_outside_the_model_s_directory_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\0" * 12)
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    model = onnx.load(double(folder / "m.onnx"))
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "12"}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.node[0].input[1] = "w"
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="leads out of"):
        Session(folder / "m.onnx", "unet").open()


def test_a_closed_session_opens_again(tmp_path: Path) -> None:
    session = Session(double(tmp_path / "m.onnx"), "m").open()
    session.close()
    assert session.run({"x": np.ones((2, 3))})["y"].shape == (2, 3)
