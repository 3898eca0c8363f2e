"""README and CI say the same."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_ci_runs_the_readme_s_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    python3 -m venv")]
    assert len(commands) == 2 and commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_files_that_the_documents_link_to_exist() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_modules_that_the_documents_run_exist() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"python -m ([a-z_.]+)", document.read_text(encoding="utf-8")):
            path = ROOT / Path(*name.split("."))
            known = path.with_suffix(".py").exists() or (path / "__main__.py").exists() or name == "pytest"
            assert known, f"{document.name} runs {name}"
        for name in re.findall(r"python (bench/[a-z_]+\.py)", document.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{document.name} runs {name}"
