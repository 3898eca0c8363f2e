"""build.sh on a device of stand-ins: what it builds, what it keeps, and each of its refusals in turn."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact.files import sha256
from tests.engines import tiny
from tests.engines.deploy.conftest import bundled
from tests.engines.deploy.jetson import Jetson, script

Make = Callable[[Path], Jetson]
COMPONENTS = {"text_encoder", "text_encoder_2", "transformer", "vae_decoder", "vae_encoder"}


def refused(device: Jetson, *arguments: str, **variables: str) -> str:
    """The one sentence on stderr with which build.sh ends."""
    done = device.build(*arguments, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list((device.bundle / "engines").glob("*.partial")) if (device.bundle / "engines").is_dir() else True
    return done.stderr.removeprefix("error: ").strip()


@pytest.fixture
def device(flux_bundle: Path, jetson: Make) -> Jetson:
    return jetson(flux_bundle)


def test_every_component_becomes_a_plan_with_its_record(device: Jetson) -> None:
    done = device.build()
    assert done.returncode == 0 and done.stderr == "", done.stderr
    plans = sorted((device.bundle / "engines").glob("*.plan"))
    assert [p.name for p in plans] == [f"{c}.fp16.sm87.trt10.3.plan" for c in sorted(COMPONENTS)]
    for plan in plans:
        said = json.loads(plan.with_name(f"{plan.name}.json").read_text())
        assert said["plan_sha256"] == sha256(plan) and said["bytes"] == plan.stat().st_size
        assert (said["sm"], said["tensorrt"], said["builder"], said["preset"]) == ("87", "10.3.0", "trtexec", "fp16")


def test_the_record_is_one_that_the_engines_package_reads(device: Jetson) -> None:
    from engines.trt import plan

    assert device.build().returncode == 0
    read = plan.read(device.bundle / "engines" / "transformer.fp16.sm87.trt10.3.plan")
    assert read.metadata["profiles"][0]["hidden_states"] == {k: [1, 16, 16] for k in ("min", "opt", "max")}


def test_a_second_run_keeps_what_did_not_change(device: Jetson) -> None:
    assert device.build().stdout.count("building") == 5
    again = device.build()
    assert (again.returncode, again.stdout.count("kept")) == (0, 5), again.stdout
    damaged = device.bundle / "engines" / "transformer.fp16.sm87.trt10.3.plan"
    damaged.write_text("half")
    third = device.build()
    assert (third.stdout.count("kept"), third.stdout.count("building")) == (4, 1)
    assert damaged.read_text() != "half"
    other = device.build(STAND_IN_NUMBER="100301")  # a patch of TensorRT: plans are bound to it
    assert other.stdout.count("building") == 5


def test_a_run_that_failed_is_taken_up_where_it_ended(device: Jetson) -> None:
    sentence = refused(device, STAND_IN_TRTEXEC="fail:transformer")
    assert "could not build transformer (" in sentence and "the kernel of this layer is missing" in sentence
    done = device.build()
    kept = done.stdout.count("kept")
    assert done.returncode == 0 and 0 < kept < 5 and done.stdout.count("building") == 5 - kept


def test_a_builder_that_was_killed_leaves_nothing_half_written(device: Jetson) -> None:
    assert "Memory ran out while" in refused(device, STAND_IN_TRTEXEC="memory")
    assert not list((device.bundle / "engines").glob("*.plan"))
    assert "wrote no engine" in refused(device, STAND_IN_TRTEXEC="nothing")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("etc/nv_tegra_release", None, "This is no Jetson"),
        ("etc/nv_tegra_release", "something else\n", "does not say which Jetson Linux this is ('something else')"),
        (
            "etc/nv_tegra_release",
            "# R35 (release), REVISION: 6.0, x\n",
            "This is Jetson Linux 35.6.0, the bundle is for",
        ),
        (
            "proc/device-tree/model",
            "NVIDIA Jetson AGX Thor\0",
            "This is a NVIDIA Jetson AGX Thor, the bundle is for Orin",
        ),
        ("proc/meminfo", "MemAvailable: 700000 kB\n", "683 MB of memory are available and building takes about"),
    ],
)
def test_a_device_that_does_not_fit_is_refused(device: Jetson, file: str, text: str | None, words: str) -> None:
    if text is None:
        (device.root / file).unlink()
    else:
        (device.root / file).write_text(text)
    assert words in refused(device)
    assert not list(device.bundle.glob("engines/*.plan"))


def test_another_tensorrt_a_full_disk_and_a_missing_tool_are_refused(device: Jetson) -> None:
    assert "This is TensorRT 8.6.1, the bundle is for 10.3" in refused(device, STAND_IN_NUMBER="8601")
    assert "This is TensorRT 10.16.1, the bundle is for 10.3" in refused(device, STAND_IN_NUMBER="101601")
    assert "48 MB are free on this disk" in refused(device, STAND_IN_FREE_KB="50000")
    assert "There is no trtexec (/nowhere)" in refused(device, TRTEXEC="/nowhere")
    script(device.root / "broken", "exit 127")
    assert "does not say its version" in refused(device, TRTEXEC=str(device.root / "broken"))
    assert "--fast is no option" in refused(device, "--fast")


def test_checks_of_space_can_be_passed_over_and_others_cannot(device: Jetson) -> None:
    (device.root / "proc/meminfo").write_text("MemAvailable: 700000 kB\n")
    done = device.build("--anyway", STAND_IN_FREE_KB="50000")
    assert done.returncode == 0 and done.stderr.count("warning: ") == 2
    assert "This is TensorRT 8.6.1" in refused(device, "--anyway", STAND_IN_NUMBER="8601")


def test_a_damaged_or_missing_file_is_named(device: Jetson) -> None:
    model = next((device.bundle / "models/vae_decoder").glob("*.onnx"))
    model.write_bytes(model.read_bytes()[:-1])
    assert "models/vae_decoder/fp16.onnx is missing or damaged" in refused(device)
    model.unlink()
    assert "models/vae_decoder/fp16.onnx is missing or damaged" in refused(device)
    (device.bundle / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in refused(device)


def test_two_at_a_time_are_refused(device: Jetson) -> None:
    (device.bundle / "engines").mkdir()
    with open(device.bundle / "engines/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another build.sh is at work" in refused(device)
    assert device.build().returncode == 0


def test_the_plugin_is_built_from_the_bundle_where_it_is_needed(flux: tiny.Tiny, jetson: Make, tmp_path: Path) -> None:
    device = jetson(bundled(flux, tmp_path / "artifact"))
    text = (device.bundle / "build.sh").read_text()
    (device.bundle / "build.sh").write_text(text.replace("USES_PLUGIN=0", "USES_PLUGIN=1"))
    _rehash(device.bundle)
    tools = device.root.parent / "tools"
    script(tools / "nvcc", "true")
    script(tools / "cmake", "exit 1")
    assert "could not be built (it printed no error): see engines/plugin.log" in refused(device)
    script(tools / "cmake", 'echo "CMake Error: no compiler"; exit 1')
    assert "could not be built (CMake Error: no compiler)" in refused(device)
    script(tools / "cmake", 'mkdir -p plugin/build; echo "$*" >> asked; echo library > plugin/build/libsvdq_plugin.so')
    done = device.build()
    assert done.returncode == 0, done.stderr
    asked = (device.bundle / "asked").read_text()
    assert "-DSVDQ_ARCHS=87 -DSVDQ_TENSORRT=10" in asked and "--build plugin/build" in asked
    assert (device.bundle / "plugin/libsvdq_plugin.so").read_text() == "library\n"
    assert "building plugin" not in device.build().stdout


def _rehash(bundle: Path) -> None:
    sums = (bundle / "SHA256SUMS").read_text()
    new = re.sub(r"[0-9a-f]{64}  build.sh", f"{sha256(bundle / 'build.sh')}  build.sh", sums)
    (bundle / "SHA256SUMS").write_text(new)


@pytest.mark.parametrize("jetpack", ["6.0", "6.2", "7.2", "7.2.2"])
def test_shellcheck_has_nothing_to_say(flux: tiny.Tiny, tmp_path: Path, jetpack: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is missing: apt-get install shellcheck")
    bundle = bundled(flux, tmp_path / "artifact", jetpack=jetpack)
    done = subprocess.run(["shellcheck", str(bundle / "build.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_release_gets_the_flags_of_its_trtexec(flux: tiny.Tiny, tmp_path: Path) -> None:
    def flags(jetpack: str) -> str:
        return (bundled(flux, tmp_path / jetpack, jetpack=jetpack) / "build.sh").read_text()

    old, usual, new = flags("6.0"), flags("6.2"), flags("7.2.2")
    assert "--fp16" in old and "--stronglyTyped" not in old and "TENSORRT=8.6" in old
    assert "--stronglyTyped" in usual and "--fp16" not in usual and "trt10.3.plan.partial" in usual
    assert "--stronglyTyped" not in new and "--fp16" not in new and "TENSORRT=11.4" in new
