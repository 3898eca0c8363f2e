"""How commands end: a user's error, an interruption, a package that is not installed, a fault of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.command import needed, reported
from artifact.errors import UserError
from plugins.errors import PluginError

ROOT = Path(__file__).resolve().parent.parent.parent


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop, reported(debug=False):
        raise error
    return int(str(stop.value.code)), capsys.readouterr().err


def test_a_command_that_is_terminated_ends_its_processes() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from artifact.command import reported\n"
        "from engines.apart import Apart\n"
        "with reported(False), Apart('timeit', ['-n', '1', 'import time; time.sleep(60)'], 'x') as apart:\n"
        "    print(apart._process.pid, flush=True); apart.result()\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    child = int(command.stdout.readline())
    os.kill(child, 0)  # it runs
    command.terminate()
    assert command.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize("error", [UserError("Do this."), PluginError("Do this.")])
def test_a_users_error_is_one_line_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(error, capsys) == (2, "error: Do this.\n")


def test_a_fault_of_ours_says_how_to_see_where(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ended(KeyError("x"), capsys)
    assert code == 1 and said.startswith("internal error: KeyError") and "--debug" in said


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")]
)
def test_memory_that_ran_out_is_one_line_that_says_what_to_do(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ended(error, capsys)
    assert code == 2 and said.startswith("error: Memory ran out") and "--max-memory" in said and said.count("\n") == 1


def test_debug_lets_every_exception_through() -> None:
    with pytest.raises(UserError), reported(debug=True):
        raise UserError("Do this.")


def test_an_interruption_ends_as_the_shell_expects(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt(), capsys) == (130, "interrupted\n")


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = ended(ModuleNotFoundError("No module named 'diffusers.x'", name="diffusers.x"), capsys)
    assert code == 2 and "'diffusers'" in said and "svdq-edge[export]" in said


def test_a_module_of_ours_that_is_missing_is_our_fault(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'engines.nowhere'", name="engines.nowhere")
    assert ended(error, capsys)[0] == 1
    with pytest.raises(ModuleNotFoundError), needed():
        raise error


def test_the_build_command_without_its_packages_ends_with_that_sentence() -> None:
    code = (
        "import sys; sys.modules['onnx_ir'] = None; import runpy; runpy.run_module('export.build', run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and ran.stderr.startswith("error: The Python package 'onnx_ir'"), ran.stderr
    assert len(ran.stderr.splitlines()) == 1
