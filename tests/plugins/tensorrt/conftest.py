"""The plugin libraries and the hosts that call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.tensorrt import toolchain
from tests.plugins.tensorrt.toolchain import FAKE, HASH, SANITISE, TESTS, V2, V3

# A host is linked with the sanitiser's runtime because the library needs it; -O0 only compiles faster.
HOST = ["-O0", "-fsanitize=address"]


@pytest.fixture(scope="session")
def v3() -> Path:
    """The TensorRT 10 shell over the recording launch, with sanitisers."""
    return toolchain.build("v3-sanitised", [*V3, FAKE], toolchain.headers(10), [*SANITISE, "-shared", HASH])


@pytest.fixture(scope="session")
def v3_plain() -> Path:
    """The same as it is shipped, but for the source hash."""
    return toolchain.build("v3", [*V3, FAKE], toolchain.headers(10), ["-O2", "-shared"])


@pytest.fixture(scope="session")
def v3_host() -> Path:
    return toolchain.build("host", [TESTS / "host.cpp"], toolchain.headers(10), HOST)


@pytest.fixture(scope="session")
def fuzz() -> Path:
    return toolchain.build("fuzz", [TESTS / "fuzz.cpp"], toolchain.headers(10), HOST)


@pytest.fixture(scope="session")
def enqueue_host() -> Path:
    """enqueue.cpp, for libraries with sanitisers and without."""
    return toolchain.build("enqueue", [TESTS / "enqueue.cpp"], toolchain.headers(10), HOST)


@pytest.fixture(scope="session")
def v2() -> Path:
    """The TensorRT 8 shell over the recording launch, with sanitisers."""
    return toolchain.build("v2-sanitised", [*V2, FAKE], toolchain.headers(8), [*SANITISE, "-shared"])


@pytest.fixture(scope="session")
def v2_plain() -> Path:
    return toolchain.build("v2", [*V2, FAKE], toolchain.headers(8), ["-O2", "-shared"])


@pytest.fixture(scope="session")
def v2_host() -> Path:
    return toolchain.build("host-v2", [TESTS / "host_v2.cpp"], toolchain.headers(8), HOST)
