"""Plans in TensorRT: what reaches the driver and the runtime, and what is said where they refuse.

TensorRT and the driver are stand-ins that compute on the CPU (tests/engines/stand_in): buffers, addresses, streams and
recorded graphs really pass through, so that a whole pipeline draws its image by them.
"""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import engines
from artifact.errors import UserError
from artifact.files import sha256
from artifact.manifest import NAME, Artifact
from engines.faults import NotFinite, OutOfMemory
from engines.modes import CONTEXT_BYTES, estimated_bytes
from engines.trt import plan as plans
from engines.trt.plan import Plan
from engines.trt.session import PlanSession
from engines.trt.versions import Version
from tests.engines.stand_in.tensorrt_on_cpu import Driver, module
from tests.engines.tiny import PROMPTS, Tiny

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is missing: apt-get install gcc")
SOURCE = Path(__file__).parent / "stand_in" / "libcuda.c"
LARGEST = 4  # rows that the engines of a pipeline are "built" for


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cuda") / "libcuda.so"
    subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC", SOURCE, "-o", made], check=True)
    return made


@pytest.fixture
def driver(libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setenv("SVDQ_LIBCUDA", str(libcuda))
    opened = Driver(libcuda)
    held = opened.lib.stand_in_held()
    yield opened
    gc.collect()
    assert opened.lib.stand_in_used() == 0, "device memory was not freed"
    assert opened.lib.stand_in_held() == held, "a context, stream or graph was not given back"


@pytest.fixture
def trt(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = module(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    return made


def linear(path: Path, kind: int = TensorProto.FLOAT16) -> Path:
    """y = x + x and z = x * x on [batch, 3]."""
    x, y, z = (helper.make_tensor_value_info(n, kind, ["batch", 3]) for n in "xyz")
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Mul", ["x", "x"], ["z"])]
    graph = helper.make_graph(nodes, "linear", [x], [y, z])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def metadata(**changed: Any) -> dict[str, Any]:
    return {
        "component": "unet", "preset": "svdq-int4", "sm": "87", "tensorrt": "10.3.0", "plugin_sha256": None,
        "plugin_in_plan": False, "onnx_sha256": "0" * 64, "source_sha256": "0" * 64, "refittable": False,
        "weight_streaming": False, "builder": "api",
        "profiles": [{"x": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}], **changed,
    }  # fmt: skip


def session(root: Path, content: dict[str, Any] | None = None, **changed: Any) -> PlanSession:
    """An engine of the graph above, for 1 to 4 rows, in a directory that stands for an artifact."""
    (root / "engines").mkdir(exist_ok=True)
    path = root / "engines" / "unet.plan"
    about = {"onnx": str(linear(root / "m.onnx")), "profile": {"x": [[1, 3], [4, 3]]}, **(content or {})}
    path.write_text(json.dumps(about), encoding="utf-8")
    return PlanSession(Artifact(root, {}), plans.write(path, metadata(**changed)), "unet")


def x(rows: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.arange(3.0 * rows).reshape(rows, 3)}


def test_arrays_pass_through_device_memory_and_float16_comes_back_as_float32(trt: Any, tmp_path: Path) -> None:
    opened = session(tmp_path)
    found = opened.run({"x": np.array([[1.0, 2.0, 1 / 3]])})
    third = np.float16(1 / 3)
    assert found["y"].dtype == np.float32 and list(found) == ["y", "z"] == opened.outputs and opened.inputs == ["x"]
    assert found["y"].tolist() == [[2.0, 4.0, float(third + third)]]
    assert found["z"].tolist() == [[1.0, 4.0, float(third * third)]]
    assert len(opened.latencies_ms) == 1
    opened.close()


def test_a_repeated_shape_is_recorded_once_and_replayed(trt: Any, driver: Driver, tmp_path: Path) -> None:
    opened = session(tmp_path).open()
    before = driver.lib.stand_in_launches()
    for i in range(5):
        feeds = {"x": np.full((2, 3), float(i))}
        assert opened.run(feeds)["y"].tolist() == [[2.0 * i] * 3] * 2
    assert opened._context.calls == 2  # as it is, and into the recording
    assert driver.lib.stand_in_launches() - before == 4
    held = driver.lib.stand_in_used()
    assert opened.run(x(4))["z"][3].tolist() == [81.0, 100.0, 121.0]  # another shape: buffers of its own
    assert driver.lib.stand_in_used() == 2 * held
    assert opened.run(x(2))["y"].tolist() == [[0, 2, 4], [6, 8, 10]]
    opened.close()
    assert driver.lib.stand_in_used() == 0


def test_what_cannot_be_recorded_is_enqueued_at_every_call(trt: Any, driver: Driver, tmp_path: Path) -> None:
    opened = session(tmp_path, {"recordable": False})
    before = driver.lib.stand_in_launches()
    for i in range(4):
        assert opened.run({"x": np.full((1, 3), float(i))})["y"].tolist() == [[2.0 * i] * 3]
    assert driver.lib.stand_in_launches() == before
    opened.close()


def test_a_closed_session_frees_in_order_and_opens_again(trt: Any, driver: Driver, tmp_path: Path) -> None:
    opened = session(tmp_path).open()
    opened.run(x())
    opened.close()
    opened.close()
    assert trt.events == ["deserialize", "end of context", "end of engine", "end of runtime"]
    assert opened.run(x())["y"].shape == (2, 3)
    opened.close()


def test_the_plugin_s_library_is_loaded_before_the_engine(trt: Any, tmp_path: Path) -> None:
    library = tmp_path / "plugin" / "sm87" / "libsvdq_plugin.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"a library")
    opened = session(tmp_path, {"needs_plugin": True}, plugin_sha256=sha256(library)).open()
    assert trt.events == ["plugin", "deserialize"] and trt.registry.loaded == [str(library)]
    opened.close()


def test_a_missing_library_is_a_sentence(trt: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no plugin library .*sm87/libsvdq_plugin.so"):
        session(tmp_path, {"needs_plugin": True}, plugin_sha256="0" * 64).open()


def test_code_in_a_plan_runs_only_where_the_record_says_so(trt: Any, tmp_path: Path) -> None:
    for carried in (True, False):
        opened = session(tmp_path, plugin_sha256="0" * 64 if carried else None, plugin_in_plan=carried).open()
        assert opened._runtime.engine_host_code_allowed is carried
        opened.close()


def test_an_engine_that_tensorrt_refuses_is_told_in_its_words(trt: Any, tmp_path: Path) -> None:
    broken = session(tmp_path)
    broken.plan.path.write_text("not a plan", encoding="utf-8")
    with pytest.raises(UserError, match=r"refuses the engine unet.plan \(Serialization assertion magic tag failed"):
        broken.open()


def test_names_and_shapes_outside_the_profile_are_named(trt: Any, tmp_path: Path) -> None:
    opened = session(tmp_path)
    with pytest.raises(UserError, match="'unet' takes x but was given z"):
        opened.run({"z": np.zeros((1, 3))})
    for shape in ((5, 3), (1, 4), (3,)):
        with pytest.raises(UserError) as raised:
            opened.run({"x": np.zeros(shape)})
        assert f"Input 'x' of 'unet' is {list(shape)} and its engine was built for [1, 3] to [4, 3]" in str(
            raised.value
        )
    assert opened.run(x())["y"].shape == (2, 3)
    opened.close()


@pytest.mark.parametrize("value", [np.nan, 60000.0])
def test_outputs_that_are_not_finite_are_refused(trt: Any, tmp_path: Path, value: float) -> None:
    opened = session(tmp_path)
    opened.run(x(1))
    with pytest.raises(NotFinite, match="Output 'y' of 'unet' holds NaN or infinity in call 2"):
        opened.run({"x": np.array([[0.0, value, 1.0]])})
    opened.close()


def test_out_of_device_memory_is_told_apart(trt: Any, driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="engine of 'unet' does not fit into the GPU's memory"):
        session(tmp_path, {"too_big": True}).open()
    opened = session(tmp_path).open()
    driver.limit(20)
    with pytest.raises(OutOfMemory, match=r"'unet' ran out of the GPU's memory on x \[4, 3\]"):
        opened.run(x(4))
    assert driver.lib.stand_in_used() == 0
    driver.limit(1 << 20)
    assert opened.run(x(4))["y"].shape == (4, 3)
    opened.close()


def test_weights_are_streamed_where_the_engine_was_built_for_it(trt: Any, tmp_path: Path) -> None:
    streamed = session(tmp_path, {"streamable": 1000}, weight_streaming=True)
    streamed.open().close()
    streamed.stream_weights = True
    streamed.open().close()
    streamed.kept_weights = 300
    streamed.open().close()
    streamed.kept_weights = 5000  # more than there are
    streamed.open().close()
    assert trt.budgets == [1000, 0, 300, 1000]
    other = session(tmp_path)
    other.stream_weights = True
    with pytest.raises(UserError, match="was not built for streaming its weights"):
        other.open()


def test_without_a_driver_or_tensorrt_there_is_one_sentence(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="tensorrt does not load here"):
        session(tmp_path).open()


@pytest.fixture
def deployed(flux: Tiny, tmp_path: Path, trt: Any) -> Path:
    """The FLUX artifact with "engines" of every component."""
    root = Path(shutil.copytree(flux.root, tmp_path / "deployed"))
    manifest = json.loads((root / NAME).read_text(encoding="utf-8"))
    for component in manifest["components"].values():
        component["tensorrt"] = component["models"]
    (root / NAME).write_text(json.dumps(manifest), encoding="utf-8")
    (root / "engines").mkdir()
    artifact = Artifact.open(root)
    for name in manifest["components"]:
        engine(artifact, name)
    return root


def engine(artifact: Artifact, name: str, **changed: Any) -> Plan:
    """A plan of a component's graph for 1 to LARGEST rows and sides of up to 64 pixels."""
    model = artifact.model(name, "fp16")
    profile = {}
    for value in onnx.load(model).graph.input:
        dims = [d.dim_value or (d.dim_param == "batch" and LARGEST) or 64 for d in value.type.tensor_type.shape.dim]
        least = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        profile[value.name] = [least, dims]
    path = artifact.root / "engines" / plans.name(name, "fp16", 87, Version(10, 3))
    path.write_text(json.dumps({"onnx": str(model), "profile": profile, "streamable": 5}), encoding="utf-8")
    ranges = {n: {"min": low, "opt": high, "max": high} for n, (low, high) in profile.items()}
    about = metadata(
        component=name, preset="fp16", profiles=[ranges], onnx_sha256=plans.graph_sha256(artifact, model), **changed
    )
    return plans.write(path, about)


def test_a_pipeline_on_plans_draws_what_onnxruntime_draws(deployed: Path, trt: Any, driver: Driver) -> None:
    with engines.load(deployed, backend="onnxruntime", threads=1) as pipe:
        assert pipe.backend == "onnxruntime"
        expected = np.asarray(pipe(PROMPTS[0], seed=4), int)
    for mode in ("resident", "pipelined"):
        with engines.load(deployed, backend="tensorrt", memory=mode) as pipe:
            assert (pipe.backend, pipe.mode) == ("tensorrt", mode)
            found = np.asarray(pipe(PROMPTS[0], seed=4), int)
            pipe(PROMPTS[0], seed=4)
        assert np.abs(found - expected).max() <= 1
        assert driver.lib.stand_in_used() == 0
    assert driver.lib.stand_in_launches() > 8


def test_plans_for_this_machine_are_taken_without_asking(deployed: Path, trt: Any) -> None:
    with engines.load(deployed) as pipe:
        assert pipe.backend == "tensorrt"
    with engines.load(deployed, "int4-rtn") as pipe:  # has no engines
        assert pipe.backend == "onnxruntime"


def test_a_missing_plan_is_said(deployed: Path, trt: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gone = next((deployed / "engines").glob("vae_decoder.*.plan"))
    gone.unlink()
    plans.sidecar(gone).unlink()
    with pytest.raises(UserError, match="has no engine of vae_decoder for fp16 on sm_87 with TensorRT 10.3"):
        engines.load(deployed, backend="tensorrt")
    with engines.load(deployed) as pipe:
        assert pipe.backend == "onnxruntime"
    assert "TensorRT is not used" in capsys.readouterr().err


def test_a_truncated_plan_is_said(deployed: Path, trt: Any) -> None:
    damaged = next((deployed / "engines").glob("transformer.*.plan"))
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(UserError, match="has 20 bytes and was built with"):
        engines.load(deployed, backend="tensorrt")


def test_streaming_streams_the_weights_of_engines(deployed: Path, trt: Any) -> None:
    artifact = Artifact.open(deployed, verify=False)
    for name in artifact.manifest["components"]:
        engine(artifact, name, weight_streaming=True)
    with engines.load(deployed, backend="tensorrt", memory="streaming") as pipe:
        pipe(PROMPTS[0])
    assert set(trt.budgets) == {0}


def test_a_budget_for_memory_says_how_many_weights_stay_on_the_device(deployed: Path, trt: Any) -> None:
    artifact = Artifact.open(deployed, verify=False)
    made = {n: engine(artifact, n, weight_streaming=True, activation_bytes=10) for n in artifact.manifest["components"]}
    size = {n: p.metadata["bytes"] for n, p in made.items()}
    least = estimated_bytes(artifact, "fp16", "tensorrt", "streaming")
    assert least == CONTEXT_BYTES + 10 + 2 * 10  # what the denoiser and the two text encoders need to run
    pipelined = estimated_bytes(artifact, "fp16", "tensorrt", "pipelined")
    assert pipelined == CONTEXT_BYTES + size["transformer"] + 10 + size["text_encoder"] + size["text_encoder_2"] + 20
    with engines.load(deployed, backend="tensorrt", max_memory=least + 3) as pipe:
        assert pipe.mode == "streaming"
        pipe(PROMPTS[0])
    assert sorted(set(trt.budgets)) == [0, 3]  # the denoiser's, and everybody else's
    with pytest.raises(UserError, match="in streaming mode, more than --max-memory"):
        engines.load(deployed, backend="tensorrt", max_memory=least - 1)


def test_engines_without_weight_streaming_still_have_the_smallest_mode(deployed: Path, trt: Any) -> None:
    artifact = Artifact.open(deployed, verify=False)
    plan_bytes = [plans.find(artifact, n, "fp16").metadata["bytes"] for n in artifact.manifest["components"]]
    assert estimated_bytes(artifact, "fp16", "tensorrt", "streaming") == CONTEXT_BYTES + max(plan_bytes)
    with engines.load(deployed, backend="tensorrt", memory="streaming") as pipe:
        assert pipe(PROMPTS[0]).size
    assert set(trt.budgets) == {5}  # nothing was streamed


def test_out_of_device_memory_while_loading_takes_the_next_mode(
    deployed: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_plan, loaded = PlanSession._open, []

    def refuse_the_third(self: PlanSession) -> None:
        loaded.append(self.name)
        open_plan(self)
        if len(loaded) == 3:
            raise OutOfMemory("cuMemAlloc_v2")

    monkeypatch.setattr(PlanSession, "_open", refuse_the_third)
    with engines.load(deployed, backend="tensorrt") as pipe:
        assert pipe.mode == "pipelined" and "Memory ran out while loading" in pipe.notes[0]
        assert pipe(PROMPTS[0]).size
