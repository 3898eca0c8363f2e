"""Files that appear whole, the store, the lock and the manifest."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from artifact import manifest
from artifact.errors import UserError, nearest
from artifact.files import PARTIAL, inside, remove_partials, write_json, written_whole
from artifact.free import available_cores
from artifact.lock import held
from artifact.sampling import LatentRule, initial_noise
from artifact.store import Store, key_of


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert not path.exists() and not list(path.parent.iterdir())
    with written_whole(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_an_old_file_survives_a_failed_rewrite(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in (f"x/a.1{PARTIAL}", "x/kept"):
        (tmp_path / name).write_text("")
    (tmp_path / f"x/.fp16.onnx{PARTIAL}").mkdir()  # a model that was being written, its weights in it
    (tmp_path / f"x/.fp16.onnx{PARTIAL}/fp16.onnx.data").write_text("")
    remove_partials(tmp_path)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["kept"]


def test_what_others_are_writing_in_a_shared_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".cache/ab").mkdir(parents=True)
    for name in (f".cache/ab/abc.7{PARTIAL}", f"x.7{PARTIAL}"):
        (tmp_path / name).write_text("")
    remove_partials(tmp_path, shared=tmp_path / ".cache")
    assert [p.name for p in tmp_path.rglob(f"*{PARTIAL}")] == [f"abc.7{PARTIAL}"]


def test_two_writers_of_one_number_do_not_meet(tmp_path: Path) -> None:
    """As processes in two containers do, where each is the seventh."""
    path = tmp_path / "file"
    with written_whole(path) as one:
        one.write_text("first")
        with written_whole(path) as two:
            two.write_text("second")
        assert one.read_text() == "first" and path.read_text() == "second"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="leads out of"):
        inside(tmp_path, name)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of"):
        inside(tmp_path / "root", "link/x")


def test_the_store_gives_back_every_dtype_and_the_metadata(tmp_path: Path) -> None:
    store = Store(tmp_path)
    arrays = {
        "half": np.arange(3, dtype=np.float16),
        "brain": np.ones((2, 0), ml_dtypes.bfloat16),
        "codes": np.array([[-7, 7]], np.int8),
    }
    store.put_arrays("ab12", arrays, {"error": "0.5"})
    found = store.get_arrays("ab12")
    assert found is not None and found[1] == {"error": "0.5"}
    for name, array in arrays.items():
        assert found[0][name].dtype == array.dtype
        np.testing.assert_array_equal(found[0][name], array)
    assert store.get_arrays("cd34") is None


def test_a_flipped_bit_or_a_cut_reads_as_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for damage in (lambda b: b[:-9], lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:], lambda b: b""):
        store.put_arrays("ab", {"a": np.arange(50)}, {})
        path = store.path("ab")
        path.write_bytes(damage(path.read_bytes()))
        assert store.get_arrays("ab") is None and not path.exists()


def test_an_entry_that_another_process_has_made_anew_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.put_bytes("ab", b"whole")
    store.path("ab").write_bytes(b"damaged" + bytes(32))
    digest = hashlib.sha256

    def slow(data: bytes):
        monkeypatch.setattr(hashlib, "sha256", digest)
        store.put_bytes("ab", b"whole")
        return digest(data)

    monkeypatch.setattr(hashlib, "sha256", slow)
    assert store.get_bytes("ab") is None
    assert store.get_bytes("ab") == b"whole"


def test_keys_tell_apart_what_concatenation_would_not() -> None:
    keys = [key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of(np.zeros(2)), key_of(np.zeros((2, 1))),
            key_of(np.zeros(2, np.float32)), key_of()]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key_of("a", np.arange(4)[::2]) == key_of("a", np.array([0, 2]))


def test_the_second_build_in_a_directory_says_who_holds_it(tmp_path: Path) -> None:
    code = f"""
import sys; from pathlib import Path; from artifact.free import available_cores
from artifact.lock import held
with held(Path({str(tmp_path)!r})):
    print("held", flush=True); sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is being built by process {first.pid} on"), held(tmp_path):
            pass
        first.kill()
    with held(tmp_path):  # a killed holder holds nothing
        pass


def test_a_container_s_share_of_the_cores_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    assert available_cores(tmp_path) == 8
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for text, cores in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)):
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{text}\n")
        assert available_cores(tmp_path) == cores


def artifact(root: Path) -> manifest.Artifact:
    (root / "model.onnx").write_text("graph")
    return manifest.write(root, {"files": manifest.record(root, ["model.onnx"])})


def test_an_artifact_opens_until_a_file_changes_or_goes(tmp_path: Path) -> None:
    artifact(tmp_path)
    manifest.Artifact.open(tmp_path)
    (tmp_path / "model.onnx").write_text("GRAPH")
    with pytest.raises(UserError, match=r"model.onnx is not the file that was built"):
        manifest.Artifact.open(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model.onnx is missing"):
        manifest.Artifact.open(tmp_path)


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no manifest"):
        manifest.Artifact.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not a manifest"):
        manifest.Artifact.open(tmp_path)
    write_json(tmp_path / "manifest.json", {"format": 99})
    with pytest.raises(UserError, match="format 99"):
        manifest.Artifact.open(tmp_path)


def test_a_manifest_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    artifact(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["files"]["../outside"] = content["files"]["model.onnx"]
    write_json(tmp_path / "manifest.json", content)
    with pytest.raises(UserError, match="leads out of"):
        manifest.Artifact.open(tmp_path)


def test_nearest_names_come_first() -> None:
    assert nearest("svdq-int", ["fp16", "svdq-int4"]) == "did you mean 'svdq-int4'?"
    assert nearest("zzz", ["a", "b"]) == "known are 'a', 'b'."


def test_noise_is_a_seed_s_own_whatever_the_batch() -> None:
    rule = LatentRule(channels=16, scale=4, packed=True)
    both = initial_noise(rule, [3, 4], 64, 32)
    assert both.shape == (2, 32, 64) and both.dtype == np.float32
    np.testing.assert_array_equal(initial_noise(rule, [4], 64, 32)[0], both[1])
    assert LatentRule(4, 8, False).shape(64, 32) == (4, 8, 4)
