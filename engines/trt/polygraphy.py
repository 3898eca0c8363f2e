"""`python -m engines.trt.polygraphy ...`: the polygraphy command, whose --plugins loads our library, too.

Polygraphy only opens a library (LoadPlugins in its backend/trt/loader.py) and expects it to register itself. Ours
waits for TensorRT's loadLibrary, which is the one way that is the same from TensorRT 10 to 11. So this loads it, takes
it out of --plugins and hands all else over.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifact.command import reported
from artifact.errors import UserError
from engines.trt import versions
from plugins.library import PRODUCTS, load_into_tensorrt

OURS = tuple(f"lib{product}.so" for shell, product in PRODUCTS.items() if shell)


def without_ours(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments without our libraries, and those. A --plugins that named nothing else goes, too."""
    kept: list[str] = []
    ours: list[Path] = []
    of_plugins = False
    for word in arguments:
        if of_plugins and not word.startswith("-") and Path(word).name in OURS:
            ours.append(Path(word))
            continue
        if of_plugins and word.startswith("-") and kept[-1] == "--plugins":
            kept.pop()
        of_plugins = word == "--plugins" or (of_plugins and not word.startswith("-"))
        kept.append(word)
    if ours and kept and kept[-1] == "--plugins":
        kept.pop()
    return kept, ours


def load(libraries: Sequence[Path], trt: Any) -> None:
    """Make TensorRT know them. Raises UserError without TensorRT, PluginError for a library that it does not load."""
    if libraries and trt is None:
        raise UserError("The Python package tensorrt is not here, so --plugins has nothing to load into: install it.")
    for library in libraries:
        load_into_tensorrt(trt, library)


def main() -> int:
    """Polygraphy's own exit code."""
    with reported(debug=False):
        try:
            from polygraphy.tools import main as polygraphy
        except ImportError:
            raise UserError("Polygraphy is not here: pip install polygraphy.") from None
        sys.argv[1:], ours = without_ours(sys.argv[1:])
        load(ours, versions.python_module() if ours else None)
    return int(polygraphy() or 0)


if __name__ == "__main__":
    sys.exit(main())
