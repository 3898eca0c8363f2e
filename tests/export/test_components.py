"""Which graphs a pipeline becomes, and which of its linears are quantised."""

from __future__ import annotations

import json

import pytest
import torch

from artifact.errors import UserError
from export.components import components, latent_rule
from export.fake_module import fake_module
from export.source import open_source


def linears(source, name: str) -> dict[str, str]:
    """{dotted name: treatment} of a component's linears."""
    part = next(c for c in components(source) if c.name == name)
    module, _ = fake_module(part, "float16")
    return {n: part.row.treatment(n) for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}


def test_flux_becomes_five_graphs_in_the_order_of_a_run(flux):
    assert [(c.name, c.role, c.module) for c in components(flux)] == [
        ("text_encoder", "text_encoder", "text_encoder"),
        ("text_encoder_2", "text_encoder", "text_encoder_2"),
        ("transformer", "denoiser", "transformer"),
        ("vae_decoder", "vae_decoder", "vae"),
        ("vae_encoder", "vae_encoder", "vae"),
    ]
    rule = latent_rule(flux)
    assert (rule.channels, rule.scale, rule.packed) == (4, 2, True)


def test_stable_diffusion_becomes_four_graphs(sd):
    assert [c.name for c in components(sd)] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert latent_rule(sd).shape(32, 32) == (4, 16, 16)


def test_only_the_vae_of_sdxl_stays_float32(sdxl):
    assert {c.name: c.dtype("float16") for c in components(sdxl)} == {
        "text_encoder": "float16", "text_encoder_2": "float16", "unet": "float16",
        "vae_decoder": "float32", "vae_encoder": "float32",
    }  # fmt: skip


def test_flux_keeps_embeddings_and_the_last_projection_and_quantises_modulations_by_weight_alone(flux):
    found = linears(flux, "transformer")
    kept = {n for n, t in found.items() if t == "keep"}
    assert kept == {
        "x_embedder", "context_embedder", "norm_out.linear", "proj_out",
        *(f"time_text_embed.{e}_embedder.linear_{i}" for e in ("timestep", "text") for i in (1, 2)),
    }  # fmt: skip
    assert {n for n, t in found.items() if t == "weight_only"} == {
        "transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear",
        "single_transformer_blocks.0.norm.linear",
    }  # fmt: skip
    # 8 attention projections and 2 feed-forwards of 2 linears; 3 projections, the MLP and the way out.
    assert sum(t == "quantise" for t in found.values()) == 12 + 5


def test_the_unet_keeps_cross_attention_keys_and_values(sdxl):
    found = linears(sdxl, "unet")
    quantised = {n for n, t in found.items() if t == "quantise"}
    assert quantised and all(".transformer_blocks." in n for n in quantised)
    kept = {n.rsplit(".", 1)[1] for n in found if ".attn2." in n and n not in quantised}
    assert kept == {"to_k", "to_v"}
    assert any(n.endswith("time_emb_proj") for n in found) and any(n.startswith("add_embedding") for n in found)


def test_every_linear_is_named_by_one_list_only(flux, sdxl):
    from fnmatch import fnmatchcase

    for source, name in ((flux, "transformer"), (sdxl, "unet")):
        row = next(c for c in components(source) if c.name == name).row
        for linear in linears(source, name):
            globs = {"quantise": row.quantise, "weight_only": row.weight_only, "keep": row.keep}
            lists = [kind for kind in globs if any(fnmatchcase(linear, g) for g in globs[kind])]
            assert len(lists) == 1, (linear, lists)


def test_a_unet_with_inputs_that_no_pipeline_here_feeds_is_refused(sd, tmp_path):
    import shutil

    root = shutil.copytree(sd.root, tmp_path / "lcm")
    config = json.loads((root / "unet/config.json").read_text())
    (root / "unet/config.json").write_text(json.dumps(config | {"time_cond_proj_dim": 256}))
    with pytest.raises(UserError, match="time_cond_proj_dim 256"):
        components(open_source(str(root)))
