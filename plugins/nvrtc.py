"""NVRTC, NVIDIA's run-time compiler, as a library called through ctypes: one CUDA source file to one cubin.

Only its C interface is used (NVRTC user guide, "Basic usage"), which has been the same since CUDA 11.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path


class CompileFailed(Exception):
    """The source does not compile; the text is the compiler's log."""


class Nvrtc:
    """One libnvrtc.so, loaded by its path so that a framework's own NVRTC in the same process is left alone.

    Raises OSError where it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lib = ctypes.CDLL(str(path))

    def version(self) -> tuple[int, int]:
        """(12, 6) for CUDA 12.6."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source: Path, options: Sequence[str]) -> tuple[bytes, str]:
        """The cubin of `source` and the compiler's log. Raises CompileFailed."""
        program = ctypes.c_void_p()
        text = source.read_bytes()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, source.name.encode(), 0, None, None)
        try:
            words = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            failed = self._lib.nvrtcCompileProgram(program, len(options), words)
            log = self._bytes("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program).rstrip(b"\0").decode()
            if failed:
                raise CompileFailed(log or self._text(failed))
            return self._bytes("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program), log
        finally:
            self._lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, size_of: str, get: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(size_of, program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(get, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        function: Callable[..., int] = getattr(self._lib, name)
        if status := function(*arguments):
            raise RuntimeError(f"{name}: {self._text(status)}")

    def _text(self, status: int) -> str:
        self._lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        return str(self._lib.nvrtcGetErrorString(status).decode())
