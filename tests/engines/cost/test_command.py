"""python -m engines.predict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from artifact.manifest import Artifact
from engines import machine
from engines.cost import ceilings, host
from engines.cost.ceilings import Ceilings
from engines.cost.probes import STEPS
from engines.cost.structure import Structure
from engines.evaluate import FORMAT as REPORT
from engines.predict import app
from engines.targets import find
from tests.engines.cost.invented import always

STRUCTURE = Structure(session=1e6, half=10.0, other=5.0, kind=100.0)
BAND = {
    "type": ["object", "null"],
    "required": ["low", "expected", "high"],
    "additionalProperties": False,
    "properties": {k: {"type": "number", "minimum": 0} for k in ("low", "expected", "high")},
}
COUNT = {"type": "integer", "minimum": 0}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "format", "target", "preset", "height", "width", "steps", "batch", "components", "host_ms", "image_ms",
        "resident_bytes", "pipelined_bytes", "resident_band", "pipelined_band", "runtime_bytes", "usable_bytes", "fits",
        "assumptions", "unverified", "measured",
    ],
    "properties": {
        "format": {"const": 4},
        "target": {"type": "string"},
        "preset": {"type": "string"},
        **dict.fromkeys(("height", "width", "steps", "batch"), COUNT),
        **dict.fromkeys(("resident_bytes", "pipelined_bytes", "runtime_bytes", "usable_bytes"), COUNT),
        "measured": {
            "type": ["object", "null"],
            "required": ["components", "image_ms", "date"],
            "additionalProperties": False,
            "properties": {
                "components": {"type": "object", "additionalProperties": {"type": "number"}},
                "image_ms": {"type": "number"},
                "date": {"type": "string"},
            },
        },
        **dict.fromkeys(("host_ms", "image_ms", "resident_band", "pipelined_band"), BAND),
        "fits": {"enum": ["resident", "pipelined", "no"]},
        "assumptions": {"type": "array", "items": {"type": "string"}, "minItems": 3},
        "unverified": {"type": "array", "items": {"type": "string"}},
        "components": {
            "type": "array",
            "minItems": 3,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": [
                    "name", "role", "calls", "call_ms", "operations", "moved_bytes", "nodes", "weight_bytes",
                    "activation_bytes", "workspace_bytes", "structure_bytes", "uncounted",
                ],
                "properties": {
                    "name": {"type": "string"},
                    "role": {"enum": ["denoiser", "text_encoder", "vae_decoder"]},
                    "call_ms": BAND,
                    "uncounted": {"type": "object", "additionalProperties": COUNT},
                    **{k: COUNT for k in ("calls", "operations", "moved_bytes", "nodes", "weight_bytes",
                                          "activation_bytes", "workspace_bytes", "structure_bytes")},
                },
            },
        },
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def run(artifact: Artifact, *arguments: str) -> Result:
    return CliRunner().invoke(app, [str(artifact.root), *arguments])


def test_json_holds_the_whole_prediction(tiny_flux: Artifact) -> None:
    done = run(tiny_flux, "--target", "orin-nano", "--json", "--steps", "7", "--batch", "2", "--height", "64")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert (found["steps"], found["batch"], found["height"], found["target"]) == (7, 2, 64, "orin-nano")


def test_the_table_tells_what_fits_what_was_assumed_and_what_is_unverified(tiny_flux: Artifact) -> None:
    done = run(tiny_flux, "--target", "orin-nano")
    said = " ".join(done.output.split())
    assert done.exit_code == 0
    for part in ("fits, all components at once", "unverified", "docs/roofline.md", "assumed, not measured", "vae"):
        assert part in said
    assert "not at the upper end" not in said
    assert "unverified" not in run(tiny_flux, "--target", "h200").output


def test_what_may_not_fit_is_said(tiny_flux: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little more memory than the context and the graphs take, and less than their band."""
    small = replace(find("orin-nano"), memory_gb=2.41)
    monkeypatch.setattr("engines.targets.find", lambda name: small)
    said = " ".join(run(tiny_flux, "--target", "orin-nano").output.split())
    assert "fits, all components at once, but not at the upper end of the band" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "orin-nono"), "orin-nano"), (("--target", "h200", "--preset", "fp61"), "fp61"),
        (("--target", "h200", "--height", "33"), "height is 33"), (("--target", "h200", "--steps", "0"), "steps is 0"),
        (("--target", "h200", "--batch", "-1"), "batch is -1"), (("--target", "h200", "--measure"), "--target cpu"),
        (("--target", "h200", "--threads", "2"), "--target cpu"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_code_2(tiny_flux: Artifact, arguments: tuple[str, ...], said: str) -> None:
    done = run(tiny_flux, *arguments)
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output


def test_a_directory_without_an_artifact_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path), "--target", "h200"])
    assert done.exit_code == 2 and "manifest.json" in done.output


def draw(self: host.Host, known: Ceilings) -> None:
    """What the host's work takes, without any."""
    known.seconds[self.key] = dict.fromkeys(((n,) for n in STEPS), 1e-3)


def test_this_machine_is_measured_once_and_again_on_request(
    tiny_unet: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    structures: list[int] = []

    def measure(self: ceilings.Ceilings, keys: list[str], rounds: int = 3, progress: object = None) -> None:
        asked.append(set(keys))
        for key in set(keys) - set(ceilings.ALWAYS):
            self.seconds[key] = dict.fromkeys(ceilings.grid(key), 2e-6)
        always(self)

    monkeypatch.setattr(ceilings.Ceilings, "measure", measure)
    monkeypatch.setattr("engines.cost.structure.measure", lambda: (structures.append(1), STRUCTURE)[1])
    monkeypatch.setattr(host.Host, "measure", lambda self, known: (asked.append({self.key}), draw(self, known)))
    arguments = ("--target", "cpu", "--threads", "1", "--preset", "fp16", "--json")
    first, second = run(tiny_unet, *arguments), run(tiny_unet, *arguments)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout and len(asked) == 2  # nodes, then the work between the graphs
    jsonschema.validate(json.loads(first.stdout), SCHEMA)
    predicted = json.loads(first.stdout)
    assert predicted["image_ms"]["expected"] > 0 and predicted["measured"] is None  # no report
    assert predicted["runtime_bytes"] > STRUCTURE.session and len(structures) == 1
    run(tiny_unet, *arguments, "--measure")
    assert len(asked) == 4 and asked[:2] == asked[2:] and len(structures) == 2
    run(tiny_unet, *arguments, "--height", "64")
    assert len(asked) == 5  # the host's work depends on the image


def test_what_the_report_measured_here_stands_beside_the_prediction(
    tiny_unet: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact(Path(shutil.copytree(tiny_unet.root, tmp_path / "measured")), tiny_unet.manifest)
    monkeypatch.setattr(Ceilings, "cached", classmethod(lambda cls, threads: _Guess(threads)))
    monkeypatch.setattr(host.Host, "measure", draw)
    names = [n for n, c in artifact.manifest["components"].items() if c["role"] != "vae_encoder"]
    latency = {"components": {n: {"median_ms": 2.0} for n in names}, "image": {"median_ms": 50.0}}
    generation = artifact.manifest["generation"]
    report = {
        "format": REPORT, "machine": machine.describe(), "settings": {"threads": 1}, "generation": generation,
        "presets": [{"name": "fp16", "latency": latency}],
    }  # fmt: skip
    arguments = ("--target", "cpu", "--threads", "1", "--preset", "fp16")

    def asked(*more: str, **changed: object) -> str:
        (artifact.root / "report.json").write_text(json.dumps(report | changed), encoding="utf-8")
        done = run(artifact, *arguments, *more)
        assert done.exit_code == 0, done.output
        return done.stdout

    found = json.loads(asked("--json"))
    jsonschema.validate(found, SCHEMA)
    assert found["measured"]["components"] == dict.fromkeys(names, 2.0) and found["measured"]["image_ms"] == 50.0
    off = found["image_ms"]["expected"] / 50 - 1
    assert f"measured on {report['machine']['date'][:10]}: 50 ({off:+.0%}) ms an image" in asked()
    elsewhere = report["machine"] | {"cpu": "another"}
    for other in (asked("--json", machine=elsewhere), asked("--json", settings={"threads": None}),
                  asked("--json", "--steps", "9"), asked("--json", presets=[])):  # fmt: skip
        assert json.loads(other)["measured"] is None


class _Guess(Ceilings):
    """Ceilings that know everything."""

    def __init__(self, threads: int | None) -> None:
        super().__init__(threads)
        always(self).structure = STRUCTURE

    def missing(self, keys: Iterable[str]) -> list[str]:
        for key in (k for k in keys if k not in self.seconds):
            self.seconds[key] = dict.fromkeys(ceilings.grid(key), 2e-6)
        return []
