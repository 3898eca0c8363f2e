"""docs/validate.md names every option of the command and every field of the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import typer.main

from engines.validate import app

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PAGE = (ROOT / "docs/validate.md").read_text(encoding="utf-8")
COMMON = {"--help", "--debug", "--quiet", "--preset"}  # the same in every command


def test_every_option_is_explained() -> None:
    command = typer.main.get_command(app)
    options = {o for p in command.params for o in p.opts if o.startswith("--")} - COMMON
    assert len(options) > 15
    assert sorted(o for o in options if f"`{o}" not in PAGE) == []


def test_every_field_is_explained() -> None:
    schema = json.loads((ROOT / "engines/validation/schema.json").read_text(encoding="utf-8"))
    fields = set(schema["properties"]) | {"peak_bytes", "interval", *schema["$defs"]["interval"]["properties"]}
    assert sorted(f for f in fields if f"`{f}`" not in PAGE) == []
