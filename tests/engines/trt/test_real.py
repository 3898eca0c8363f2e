"""A real TensorRT on a real GPU: an engine with the plugin is built, found, run, and gives what onnxruntime gives."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from artifact.manifest import Artifact
from engines import shapes, targets
from engines.trt import machine, plan, versions
from engines.trt.build import build_engines
from tests.engines.trt.small import PRESET

pytestmark = pytest.mark.trt


@pytest.fixture(scope="module")
def here() -> targets.Target:
    if machine.sm() is None:
        pytest.skip("there is no NVIDIA GPU here")
    if versions.of_module() is None:
        pytest.skip("the Python package tensorrt is not here")
    target = targets.auto()
    if target.sm is None or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("this GPU is in no row of the targets")
    return target


def close(built: np.ndarray, reference: np.ndarray) -> None:
    """float16's rounding through a dozen layers; a wrong layout, scale or nibble is off by a hundred percent."""
    assert built.shape == reference.shape and np.isfinite(built).all()
    error = np.linalg.norm(built - reference) / np.linalg.norm(reference)
    assert error < 0.03, error


@pytest.mark.parametrize("options", ["plain", "refit", "in-plan"])
def test_an_engine_with_the_plugin_gives_what_onnxruntime_gives(
    artifact: Artifact, here: targets.Target, options: str
) -> None:
    from engines.session import Session
    from engines.trt.job import Options
    from engines.trt.session import PlanSession

    asked = Options(refit=options == "refit", plugin_in_plan=options == "in-plan")
    built = build_engines(artifact, PRESET, here, options=asked)
    assert not built.skipped and len(built.plans) == 3
    compare(artifact, "transformer", Session(artifact.model("transformer", PRESET), "reference"), PlanSession)


def compare(artifact: Artifact, component: str, reference: object, session: type) -> None:
    model = artifact.model(component, PRESET)
    rng = np.random.default_rng(0)
    sizes = shapes.input_shapes(artifact, component, model)
    feeds = {i.name: (rng.standard_normal(sizes[i.name]) * 0.5).astype(i.dtype) for i in shapes.graph_inputs(model)}
    runner = session(artifact, plan.find(artifact, component, PRESET), component)
    try:
        made = runner.run(feeds)
    finally:
        runner.close()
    for name, value in reference.run(feeds).items():  # type: ignore[attr-defined]
        close(made[name], value)


def test_a_bundled_model_s_denoiser_is_built_run_and_validated(here: targets.Target, tmp_path: Path) -> None:
    from engines.session import Session
    from engines.trt.session import PlanSession
    from engines.validate import Settings, validate
    from engines.validation.budgets import limits
    from engines.validation.comparison import choose_comparison
    from tests.compile.commands import SMALL, build

    code, _, stderr = build("--out", tmp_path / "dit", *SMALL)
    assert code == 0, stderr
    artifact = Artifact.open(tmp_path / "dit")
    built = build_engines(artifact, PRESET, here)
    assert len(built.plans) == len(artifact.manifest["components"])
    compare(artifact, "transformer", Session(artifact.model("transformer", PRESET), "reference"), PlanSession)
    settings = Settings(backend="tensorrt", images=3, seconds=30)
    found = validate(artifact, PRESET, choose_comparison(artifact, PRESET), settings, limits=limits({"min_psnr": 25}))
    assert (found["backend"], found["exit_code"]) == ("tensorrt", 0), found["budgets"]
    assert found["memory"]["peak_bytes"] > 0 and set(found["disk"]["plans"]) == set(artifact.manifest["components"])
