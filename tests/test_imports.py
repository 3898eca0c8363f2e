"""The import direction of the packages, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("artifact", "export", "passes", "plugins", "engines")

# What a package may import of ours, besides itself.
ALLOWED = {
    "artifact": set(),
    "plugins": set(),
    "passes": {"artifact", "plugins"},
    "engines": {"artifact", "plugins"},
    "export": {"artifact"},
}
# Commands know several stages; nothing else does.
COMMANDS = {
    f"export/{name}.py"
    for name in (
        "build", "compile", "deliver", "describe", "dry_run", "estimate", "options", "plan", "quantise", "rewrite",
    )
}  # fmt: skip
COMMANDS |= {f"export/lora/{name}.py" for name in ("engines", "fold", "model", "write")}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(filter(None, (base, node.module)))


def files() -> list[Path]:
    return sorted(p for package in OURS for p in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    package = name.split("/")[0]
    used = {i.split(".")[0] for i in imports(path)} & set(OURS) - {package}
    if name in COMMANDS:
        return
    assert used <= ALLOWED[package], f"{name} imports {sorted(used - ALLOWED[package])}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_solver_among_the_passes_knows_torch_and_it_knows_no_graph(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    used = {i.split(".")[0] for i in imports(path)}
    if name.startswith("passes/solver/"):
        assert not used & {"onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "tensorrt"}
    elif name.startswith(("passes/", "plugins/", "artifact/")) and name != "artifact/sampling.py":
        assert not used & {"torch", "diffusers", "transformers", "tensorrt"}


def test_the_walk_sees_relative_and_nested_imports(tmp_path: Path) -> None:
    nested = ROOT / "passes" / "solver" / "jobs.py"
    assert "passes.solver.key" in set(imports(nested))


@pytest.mark.parametrize(
    "module",
    [
        "engines", "engines.run", "engines.evaluate", "engines.build", "engines.benchmark", "engines.validate",
        "engines.predict", "engines.deploy", "passes.presets", "export.build", "export.lora.__main__",
    ],
)  # fmt: skip
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
