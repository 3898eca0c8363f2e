"""JSON files of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifact.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing, no JSON or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: download or save the model again.") from None
    except ValueError:
        raise UserError(f"{path} is not JSON (damaged or half-copied): download or copy it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not a JSON object: download or copy it again.")
    return value
