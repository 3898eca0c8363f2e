"""Prompts as users give them: a text file, one prompt per line."""

from __future__ import annotations

from pathlib import Path

from artifact.errors import UserError


def read_prompts(path: Path | str) -> list[str]:
    """The lines of a UTF-8 file, blank ones left out. Raises UserError where it cannot be read or holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, one prompt per line.") from None
    except OSError as error:
        raise UserError(f"Cannot read the prompts in {path} ({error.strerror}): give a text file.") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write at least one, one per line.")
    return prompts
