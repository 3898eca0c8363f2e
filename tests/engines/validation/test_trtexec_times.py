"""trtexec's file of times is read; whatever else is there is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifact.errors import UserError
from engines.validation.trtexec_times import files_by_component, read

# Written by hand after exportJSONTrace (see the module): three inferences, the last without copies. Not recorded.
WRITTEN = """[
  { "startEnqMs" : 200.1, "endEnqMs" : 200.2, "startH2dMs" : 200.1, "endH2dMs" : 200.6, "startComputeMs" : 200.6, \
"endComputeMs" : 207.6, "startD2hMs" : 207.6, "endD2hMs" : 208.1, "h2dMs" : 0.5, "computeMs" : 7, "d2hMs" : 0.5, \
"latencyMs" : 8 }
, { "startEnqMs" : 208.1, "endEnqMs" : 208.2, "startH2dMs" : 208.1, "endH2dMs" : 208.6, "startComputeMs" : 208.6, \
"endComputeMs" : 217.6, "startD2hMs" : 217.6, "endD2hMs" : 218.1, "h2dMs" : 0.5, "computeMs" : 9, "d2hMs" : 0.5, \
"latencyMs" : 10 }
, { "startEnqMs" : 1.2e+03, "endEnqMs" : 1.2e+03, "startH2dMs" : 1.2e+03, "endH2dMs" : 1.2e+03, \
"startComputeMs" : 1.2e+03, "endComputeMs" : 1.212e+03, "startD2hMs" : 1.212e+03, "endD2hMs" : 1.212e+03, \
"h2dMs" : 0, "computeMs" : 12, "d2hMs" : 0, "latencyMs" : 12 }
]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "times.json"
    path.write_text(WRITTEN, encoding="utf-8")
    return path


def test_latency_and_compute_are_read(file: Path) -> None:
    found = read(file)
    assert (found["file"], found["inferences"], found["p50_ms"], found["compute_p50_ms"]) == ("times.json", 3, 10, 9)
    assert found["p90_ms"] == pytest.approx(11.6)
    assert found["interval"] is None and found["note"] is None


def test_a_device_that_throttles_under_trtexec_is_noted(file: Path) -> None:
    file.write_text(json.dumps([{"latencyMs": 10 + i / 10, "computeMs": 9} for i in range(50)]), encoding="utf-8")
    found = read(file)
    assert (
        "Latency grew by 39 %" in found["note"] and found["interval"]["low_ms"] < 12.45 < found["interval"]["high_ms"]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no inference"),
        ("", "is not what trtexec --exportTimes writes"),
        (WRITTEN[:300], "is not what trtexec --exportTimes writes"),
        ('{"count": 3}', "is not what trtexec --exportTimes writes"),
        ('[{"name": "layer", "averageMs": 1}]', "KeyError: 'latencyMs'"),
        ("[1, 2]", "is not what trtexec"),
        ("[null]", "is not what trtexec"),
        ('[{"latencyMs": null, "computeMs": 1}]', "is not what trtexec"),
        ('[{"latencyMs": NaN, "computeMs": 1}]', "holds a time of nan ms"),
        ('[{"latencyMs": 1, "computeMs": -1}]', "holds a time of -1.0 ms"),
        ('[{"latencyMs": 0, "computeMs": 0}]', "holds a time of 0.0 ms"),
    ],
)
def test_another_file_is_refused(file: Path, content: str, words: str) -> None:
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read(file)
    assert words in str(refused.value) and str(file) in str(refused.value)


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not what trtexec"):
        read(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read .*none.json"):
        read(tmp_path / "none.json")


def test_files_are_given_by_component() -> None:
    found = files_by_component(["unet=a=b.json", "vae_decoder=/c.json"], ["unet", "vae_decoder"])
    assert found == {"unet": Path("a=b.json"), "vae_decoder": Path("/c.json")}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a.json"], "names no component: write it as unet=times.json"),
        (["=a.json"], "names no component"),
        (["unet="], "names no component"),
        (["unt=a.json"], "has no component 'unt', did you mean 'unet'"),
        (["unet=a.json", "unet=b.json"], "names 'unet' twice"),
    ],
)
def test_another_form_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        files_by_component(given, ["unet"])
