"""A store with a limit: what goes, what stays, with several processes at once and with killed ones."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifact.eviction import BUILDS
from artifact.files import PARTIAL
from artifact.store import DIGEST_BYTES, Store

SIZE = 1000
ENTRY = SIZE + DIGEST_BYTES
HOUR = 3_600_000_000_000
ROOT = Path(__file__).resolve().parents[2]


def fill(root: Path, *keys: str, hours_ago: int = 10) -> None:
    """Entries of an earlier build, the first the longest unused."""
    store = Store(root)
    for i, key in enumerate(keys):
        store.put_bytes(key, bytes(SIZE))
        then = time.time_ns() - hours_ago * HOUR + i * HOUR // 100
        os.utime(store.path(key), ns=(then, then))


def held(root: Path) -> set[str]:
    return {p.name for p in root.glob("??/*")}


def test_the_entries_used_least_recently_go_and_the_sum_stays_below_the_limit(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2", "cc3", "aa4")
    store = Store(tmp_path, limit_bytes=4 * ENTRY)
    assert store.get_bytes("aa1") == bytes(SIZE)  # used: it is the last to go now
    store.put_bytes("dd5", bytes(SIZE))
    assert held(tmp_path) == {"aa1", "cc3", "aa4", "dd5"}
    store.put_bytes("dd6", bytes(2 * SIZE))
    assert held(tmp_path) == {"aa1", "dd5", "dd6"}


def test_reading_marks_an_entry_for_later_builds_too(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2", "cc3")
    Store(tmp_path).get_bytes("aa1")
    Store(tmp_path, limit_bytes=2 * ENTRY).put_bytes("dd4", bytes(SIZE))
    assert held(tmp_path) == {"aa1", "dd4"}


def test_without_a_limit_nothing_goes(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2")
    with Store(tmp_path).in_use():
        Store(tmp_path).put_bytes("cc3", bytes(SIZE))
    assert held(tmp_path) == {"aa1", "bb2", "cc3"}


def test_what_this_build_has_used_stays_even_beyond_the_limit(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2")
    store = Store(tmp_path, limit_bytes=ENTRY)
    store.get_bytes("aa1")
    for key in ("cc3", "dd4"):
        store.put_bytes(key, bytes(SIZE))
    assert held(tmp_path) == {"aa1", "cc3", "dd4"}


def test_a_worker_s_copy_of_the_store_evicts_no_entry_of_the_build(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=ENTRY)
    store.put_bytes("aa1", bytes(SIZE))
    pickle.loads(pickle.dumps(store)).put_bytes("bb2", bytes(SIZE))
    assert held(tmp_path) == {"aa1", "bb2"}


def test_a_build_that_writes_nothing_evicts_when_it_ends(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2")
    store = Store(tmp_path, limit_bytes=ENTRY)
    with store.in_use():
        store.get_bytes("aa1")
        assert held(tmp_path) == {"aa1", "bb2"}
    assert held(tmp_path) == {"aa1"}


BUILD = """
import sys
from artifact.store import Store
store = Store(sys.argv[1])
with store.in_use():
    assert store.get_bytes("aa1")
    print("used", flush=True)
    sys.stdin.read()
"""


def started(root: Path) -> subprocess.Popen[str]:
    """Another process's build, which has used aa1 and goes on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root)], stdin=-1, stdout=-1, text=True, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "used\n"
    return process


def test_what_another_process_s_build_uses_stays_until_it_ends(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2")
    with started(tmp_path) as other:
        store = Store(tmp_path, limit_bytes=ENTRY)
        store.put_bytes("cc3", bytes(SIZE))
        assert held(tmp_path) == {"aa1", "cc3"}
        other.communicate("")
    assert not list((tmp_path / BUILDS).iterdir())
    store.put_bytes("dd4", bytes(SIZE))
    assert held(tmp_path) == {"cc3", "dd4"}


def test_a_killed_build_protects_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "aa1", "bb2")
    with started(tmp_path) as other:
        os.kill(other.pid, signal.SIGKILL)
    assert list((tmp_path / BUILDS).iterdir())
    Store(tmp_path, limit_bytes=ENTRY).put_bytes("cc3", bytes(SIZE))
    assert held(tmp_path) == {"cc3"} and not list((tmp_path / BUILDS).iterdir())


def half_written(root: Path, key: str) -> Path:
    """What a process leaves that is killed while it writes an entry."""
    path = root / key[:2] / f"{key}.4711{PARTIAL}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(SIZE))
    return path


def test_what_a_killed_build_left_half_written_goes_with_the_next_build_unless_another_runs(tmp_path: Path) -> None:
    fill(tmp_path, "aa1")
    with started(tmp_path) as other:
        left = half_written(tmp_path, "bb2")
        with Store(tmp_path).in_use():
            assert left.exists()  # the other build may be writing it
        long_ago = time.time() - 5 * 3600
        os.utime(left, (long_ago, long_ago))
        with Store(tmp_path).in_use():
            assert not left.exists()
        left = half_written(tmp_path, "bb2")
        os.kill(other.pid, signal.SIGKILL)
    with Store(tmp_path).in_use():
        assert not left.exists() and held(tmp_path) == {"aa1"}


def test_what_is_being_written_is_neither_counted_nor_evicted(tmp_path: Path) -> None:
    left = half_written(tmp_path, "bb2")
    os.utime(left, (0, 0))
    Store(tmp_path, limit_bytes=ENTRY).put_bytes("cc3", bytes(SIZE))
    Store(tmp_path, limit_bytes=ENTRY).put_bytes("dd4", b"")
    assert left.exists() and "dd4" in held(tmp_path)


def test_an_entry_counts_as_used_by_its_build_though_a_machine_s_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, limit_bytes=ENTRY)
    now = time.time_ns()
    monkeypatch.setattr("artifact.store.time.time_ns", lambda: now - HOUR)
    for key in ("aa1", "bb2", "cc3"):
        store.put_bytes(key, bytes(SIZE))
    assert held(tmp_path) == {"aa1", "bb2", "cc3"}


HAMMER = """
import random, sys
from artifact.store import Store
root, seed = sys.argv[1], int(sys.argv[2])
order = random.Random(seed)
for build in range(12):
    store = Store(root, limit_bytes=20_000)
    with store.in_use():
        mine = [f"{i % 7:02}{i}" for i in order.sample(range(60), 8)]
        for key in mine:
            if store.get_bytes(key) is None:
                store.put_bytes(key, key.encode() * 300)
        for key in mine:
            assert store.get_bytes(key) == key.encode() * 300, f"{key} went while it was needed"
"""


def test_processes_that_share_a_store_never_lose_what_they_use(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(tmp_path), str(seed)], stderr=-1, text=True, env=environment
        )
        for seed in range(4)
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    Store(tmp_path, limit_bytes=20_000).put_bytes("zz", b"")
    assert sum(p.stat().st_size for p in tmp_path.glob("??/*")) <= 20_000


def test_a_store_that_cannot_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "aa1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("artifact.eviction.FileLock", refuse)
    assert Store(tmp_path).get_bytes("aa1") == bytes(SIZE)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MiB, and a function that gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(option: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    if mount("size=1m"):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder, lambda: mount("remount,size=8m")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_what_is_needed_and_the_store_goes_on_when_there_is_room(small_disk) -> None:
    from artifact.errors import UserError

    folder, enlarge = small_disk
    store = Store(folder)
    with store.in_use():
        store.put_bytes("aa1", bytes(700_000))
        with pytest.raises(UserError, match=r"is full \(0 MiB free, 3 MiB needed\)"):
            store.put_bytes("bb2", bytes(3_000_000))
        assert held(folder) == {"aa1"} and store.get_bytes("aa1") == bytes(700_000)
        assert enlarge() == 0
        store.put_bytes("bb2", bytes(3_000_000))
        assert held(folder) == {"aa1", "bb2"}
