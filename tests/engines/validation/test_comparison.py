"""With what a preset is compared follows from what was given, is named, and is refused where it means nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.errors import UserError
from artifact.manifest import NAME, Artifact
from artifact.sampling import initial_noise
from engines.validation.comparison import choose_comparison
from tests.engines.tiny import PROMPTS, SIDE, Tiny

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def ours(flux: Tiny) -> Artifact:
    return Artifact.open(flux.root)


@pytest.fixture
def edited(copied: Path) -> Callable[[Edit], Artifact]:
    """A copy of the artifact whose manifest was changed."""

    def edit(change: Edit) -> Artifact:
        manifest = json.loads((copied / NAME).read_text(encoding="utf-8"))
        change(manifest)
        (copied / NAME).write_text(json.dumps(manifest), encoding="utf-8")
        return Artifact.open(copied, verify=False)

    return edit


def without_references(manifest: dict[str, Any]) -> None:
    del manifest["references"]


def test_own_references_come_first(ours: Artifact) -> None:
    found = choose_comparison(ours, "int4-rtn")
    assert found.said == "the 16-bit references stored, 3 prompts"
    assert found.prompts == PROMPTS and found.references is not None and found.artifact is None
    assert np.array_equal(found.noise, found.references.noise)


def test_another_builds_references_serve_an_artifact_without(ours: Artifact, edited: Any) -> None:
    bare = edited(without_references)
    found = choose_comparison(bare, "int4-rtn", ours)
    assert found.said == "the 16-bit references stored in flux, 3 prompts" and found.references is not None


def test_a_named_preset_of_another_build_starts_from_our_references_noise(ours: Artifact, edited: Any) -> None:
    other = edited(without_references)
    found = choose_comparison(ours, "int4-rtn", other, "fp16")
    assert (found.artifact, found.preset, found.references) == (other, "fp16", None)
    assert found.said == "preset fp16 of flux, 3 prompts of the stored references, from their noise"
    mine = choose_comparison(ours, "int4-rtn")
    assert np.array_equal(found.noise, mine.noise) and found.digest == mine.digest


def test_another_build_without_references_is_drawn_at_fp16(ours: Artifact, edited: Any) -> None:
    found = choose_comparison(ours, "int4-rtn", edited(without_references))
    assert found.preset == "fp16" and found.references is None


def test_own_prompts_are_drawn_by_the_own_fp16_preset(ours: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "ours.txt"
    file.write_text("a red circle\n\n  ein Käfer  \n", encoding="utf-8")
    found = choose_comparison(ours, "int4-rtn", prompts=file)
    assert found.prompts == ["a red circle", "ein Käfer"] and (found.artifact, found.preset) == (ours, "fp16")
    assert found.said == "preset fp16 of the same artifact, 2 prompts of ours.txt, seeds from 0"
    assert found.generation == ours.manifest["generation"]


def test_own_prompts_start_from_the_noise_of_their_number(flux: Tiny, ours: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "ours.txt"
    file.write_text("a\nb\n", encoding="utf-8")
    found = choose_comparison(ours, "int4-rtn", prompts=file)
    assert np.array_equal(found.noise, initial_noise(flux.rule, [0, 1], SIDE, SIDE))


def test_other_prompts_have_another_digest(ours: Artifact, tmp_path: Path) -> None:
    digests = set()
    for text in ("a\nb\n", "a\nc\n", "a\n"):
        (tmp_path / "p.txt").write_text(text, encoding="utf-8")
        digests.add(choose_comparison(ours, "int4-rtn", prompts=tmp_path / "p.txt").digest)
    assert len(digests) == 3


def test_nothing_to_compare_with_is_refused(edited: Any) -> None:
    with pytest.raises(UserError, match="holds no references to compare with: .* --against, or prompts"):
        choose_comparison(edited(without_references), "int4-rtn")


def test_two_builds_without_references_need_prompts(edited: Any, tmp_path: Path) -> None:
    bare = edited(without_references)
    twin = Artifact.open(shutil.copytree(bare.root, tmp_path / "twin"), verify=False)
    with pytest.raises(UserError, match="^Neither .* holds references"):
        choose_comparison(bare, "int4-rtn", twin)


@pytest.mark.parametrize("named", [None, "fp16"])
def test_a_preset_is_not_compared_with_itself(ours: Artifact, tmp_path: Path, named: str | None) -> None:
    (tmp_path / "p.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(UserError, match="Preset 'fp16' would be compared with itself"):
        choose_comparison(ours, "fp16", None, named, tmp_path / "p.txt")
    with pytest.raises(UserError, match="would be compared with itself"):
        choose_comparison(ours, "fp16", Artifact.open(ours.root), "fp16")


def test_a_build_of_another_model_is_refused(ours: Artifact, edited: Any) -> None:
    other = edited(lambda m: m["source"].update(sha256="f" * 64))
    with pytest.raises(UserError) as refused:
        choose_comparison(ours, "int4-rtn", other)
    assert str(refused.value) == (
        f"--against {other.root} was built from another model (tiny, SHA-256 ffffffffffff, not tiny, 000000000000): "
        "name a build of the same one."
    )


def test_a_preset_that_was_not_built_is_refused(ours: Artifact, edited: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Preset 'fp61' is not in .*did you mean 'fp16'"):
        choose_comparison(ours, "int4-rtn", None, "fp61")
    quantised = edited(lambda m: (m.update(presets=["int4-rtn"]), without_references(m)))
    with pytest.raises(UserError, match=r"holds no fp16 preset .* --against-preset \(int4-rtn\)"):
        choose_comparison(ours, "int4-rtn", quantised)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"caf\xe9\n", r"is not UTF-8 \(byte 3\)")],
)
def test_a_file_without_prompts_is_refused(ours: Artifact, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        choose_comparison(ours, "int4-rtn", prompts=tmp_path / "p.txt")


@pytest.mark.parametrize("name", ["prompts.json", "tensors.safetensors"])
def test_references_that_cannot_be_read_are_refused(copied: Path, name: str) -> None:
    (copied / "references" / name).write_bytes(b"\x00 nothing")
    with pytest.raises(UserError, match="The references in .* cannot be read"):
        choose_comparison(Artifact.open(copied, verify=False), "int4-rtn")
