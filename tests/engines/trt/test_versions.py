"""Versions: read, written, ordered, and found on the machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from artifact.errors import UserError
from engines.trt import trtexec, versions
from engines.trt.versions import Version
from tests.engines.trt.conftest import command


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("10.3.0", Version(10, 3, 0)),
        ("10.3", Version(10, 3)),
        ("8.6.1.6", Version(8, 6, 1)),
        ("v10.16.1.11", Version(10, 16, 1)),
        ("10.13.3.9.post1", Version(10, 13, 3)),
    ],
)
def test_a_version_is_read(text: str, version: Version) -> None:
    assert Version.parse(text) == version


@pytest.mark.parametrize("text", ["", "10", "ten.three", "10.3.0 beta", "10..3"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no TensorRT version"):
        Version.parse(text)


@pytest.mark.parametrize(
    ("number", "text"), [(8601, "8.6.1"), (8502, "8.5.2"), (100300, "10.3.0"), (101600, "10.16.0"), (110401, "11.4.1")]
)
def test_nvidia_s_numbers_are_read(number: int, text: str) -> None:
    assert str(Version.of_number(number)) == text


def test_order_names_and_shells() -> None:
    assert Version(8, 6, 1) < Version(10, 3) < Version(10, 16) < Version(11, 0)
    assert Version(10, 16, 1).short == "10.16"
    assert [Version(8, 6).shell, Version(10, 3).shell, Version(11, 1).shell] == [8, 10, 10]


def test_the_python_package_wins_then_the_library_then_trtexec(
    bare: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert versions.installed() is None
    tool = command(tmp_path, "8.6.1")
    monkeypatch.setattr(trtexec, "find", lambda *_: tool)
    assert versions.installed() == Version(8, 6, 1)
    monkeypatch.setattr(versions, "of_library", lambda: Version(10, 3))
    assert versions.installed() == Version(10, 3)
    monkeypatch.setattr(versions, "python_module", lambda: SimpleNamespace(__version__="11.1.0.106"))
    assert versions.installed() == Version(11, 1)
