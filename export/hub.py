"""A model from the Hugging Face hub: only configs, safetensors and tokenizer files, never pickle or code."""

from __future__ import annotations

import re
from pathlib import Path

from artifact.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = re.compile(r"(model_index|generation)\.json|[^/]+/[^/]+\.(json|safetensors|txt|model)")
_VARIANT = re.compile(r"\.(fp16|non_ema|ema|bf16|fp32)[.-]|\.index\.(fp16|bf16)\.")


def wanted(files: list[str]) -> list[str]:
    """The files of a repository to download: variants (fp16, non_ema) only in folders with no plain weights."""
    files = [f for f in files if _WANTED.fullmatch(f)]
    plain = {f.split("/")[0] for f in files if f.endswith(".safetensors") and not _VARIANT.search(f)}
    return [f for f in files if not (_VARIANT.search(f) and f.split("/")[0] in plain)]


def download(model: str) -> Path:
    """The local snapshot of a hub repository. Raises UserError where it is neither cached nor reachable."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # it says of every try that it failed
    try:
        files = wanted(huggingface_hub.HfApi().list_repo_files(model))
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=files))
    except Exception as error:  # its own errors and those of its HTTP client, which is another one every few versions
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    try:
        return Path(huggingface_hub.snapshot_download(model, local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, OSError, ValueError):
        raise UserError(
            f"{model!r} is neither a directory here nor in the hub's cache, and the hub did not give it ({reason}): "
            "check the name, your network and `huggingface-cli login`, or give a directory."
        ) from None
