"""python -m engines.predict."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from artifact.manifest import Artifact
from engines.cost import ceilings, host
from engines.cost.probes import STEPS
from engines.predict import app
from tests.engines.cost.invented import always

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
        "resident_bytes", "pipelined_bytes", "usable_bytes", "fits", "assumptions", "unverified",
    ],
    "properties": {
        "format": {"const": 2},
        "target": {"type": "string"},
        "preset": {"type": "string"},
        **dict.fromkeys(("height", "width", "steps", "batch"), COUNT),
        **dict.fromkeys(("resident_bytes", "pipelined_bytes", "usable_bytes"), COUNT),
        "host_ms": BAND,
        "image_ms": BAND,
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
                    "activation_bytes", "workspace_bytes", "uncounted",
                ],
                "properties": {
                    "name": {"type": "string"},
                    "role": {"enum": ["denoiser", "text_encoder", "vae_decoder"]},
                    "call_ms": BAND,
                    "uncounted": {"type": "object", "additionalProperties": COUNT},
                    **{k: COUNT for k in ("calls", "operations", "moved_bytes", "nodes", "weight_bytes",
                                          "activation_bytes", "workspace_bytes")},
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
    assert "unverified" not in run(tiny_flux, "--target", "h200").output


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


def test_this_machine_is_measured_once_and_again_on_request(
    tiny_unet: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def measure(self: ceilings.Ceilings, keys: list[str], rounds: int = 3, progress: object = None) -> None:
        asked.append(set(keys))
        for key in set(keys) - set(ceilings.ALWAYS):
            self.seconds[key] = dict.fromkeys(ceilings.grid(key), 2e-6)
        always(self)

    def draw(self: host.Host, known: ceilings.Ceilings) -> None:
        asked.append({self.key})
        known.seconds[self.key] = dict.fromkeys(((n,) for n in STEPS), 1e-3)

    monkeypatch.setattr(ceilings.Ceilings, "measure", measure)
    monkeypatch.setattr(host.Host, "measure", draw)
    arguments = ("--target", "cpu", "--threads", "1", "--preset", "fp16", "--json")
    first, second = run(tiny_unet, *arguments), run(tiny_unet, *arguments)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout and len(asked) == 2  # nodes, then the work between the graphs
    jsonschema.validate(json.loads(first.stdout), SCHEMA)
    assert json.loads(first.stdout)["image_ms"]["expected"] > 0
    run(tiny_unet, *arguments, "--measure")
    assert len(asked) == 4 and asked[:2] == asked[2:]
    run(tiny_unet, *arguments, "--height", "64")
    assert len(asked) == 5  # the host's work depends on the image
