"""A hub id: what is fetched, and what an unreachable hub is answered with."""

from __future__ import annotations

import huggingface_hub
import pytest

from artifact.errors import UserError
from export import hub
from export.source import open_source


def test_only_configs_safetensors_and_tokenizers_are_fetched():
    files = [
        "model_index.json", "README.md", "flux1-schnell.safetensors", "run.py", "unet/config.json", "unet/code.py",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin", "tokenizer/merges.txt",
        "tokenizer_2/spiece.model", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip
    assert hub.wanted(files) == [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt",
        "tokenizer_2/spiece.model", "vae/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip


class ConnectError(Exception):
    """As HTTP clients have their own, of no common base."""


def no_name(*_, **__):
    raise ConnectError("[Errno -2] Name or service not known")


def not_cached(*_, **__):
    raise huggingface_hub.errors.LocalEntryNotFoundError("no network")


@pytest.mark.parametrize("offline", [no_name, not_cached])
def test_an_unreachable_hub_is_one_sentence(monkeypatch, offline):

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    with pytest.raises(UserError, match="neither a directory here nor in the hub's cache"):
        open_source("someone/something")


def test_a_cached_snapshot_is_used_offline(monkeypatch, flux_directory):
    def offline(*_, **__):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    def cached(model, local_files_only=False, **_):
        assert local_files_only
        return str(flux_directory)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert open_source("someone/something").root == flux_directory
