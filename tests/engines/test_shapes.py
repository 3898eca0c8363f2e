"""Input sizes of every component's graph from an image's size."""

from __future__ import annotations

import numpy as np
import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.shapes import Input, axis_sizes, graph_inputs, input_shapes, text_tokens
from tests.engines import tiny


def opened(made: tiny.Tiny) -> Artifact:
    return Artifact.open(made.root, verify=False)


def test_flux_has_four_latents_to_a_token_and_one_batch_whatever_the_guidance(flux: tiny.Tiny) -> None:
    sizes = axis_sizes(opened(flux), "transformer", 3, 64, 32)
    assert sizes["tokens"] == (64 // 4 // 2) * (32 // 4 // 2)
    assert sizes["batch"] == 3
    assert sizes["sequence"] == tiny.WORDS


def test_a_unet_sees_both_halves_of_the_guidance_and_the_vae_does_not(stable_diffusion: tiny.Tiny) -> None:
    artifact = opened(stable_diffusion)
    assert axis_sizes(artifact, "unet", 2, 32, 64)["batch"] == 4
    assert axis_sizes(artifact, "vae_decoder", 2, 32, 64) | {"height": 8, "width": 16, "batch": 2} == axis_sizes(
        artifact, "vae_decoder", 2, 32, 64
    )
    artifact.manifest["generation"]["guidance_scale"] = 1.0
    assert axis_sizes(artifact, "unet", 2, 32, 64)["batch"] == 2


def test_shapes_are_those_the_pipeline_feeds(stable_diffusion: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import engines
    from engines.session import Session

    fed: dict[str, dict[str, tuple[int, ...]]] = {}
    run = Session.run

    def watched(self: Session, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fed[self.name] = {n: v.shape for n, v in feeds.items()}
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", watched)
    with engines.load(stable_diffusion.root, "fp16") as pipe:
        pipe(tiny.PROMPTS[0], negative_prompt="grey")
    artifact = opened(stable_diffusion)
    for component in ("unet", "vae_decoder", "text_encoder"):
        expected = axis_sizes(artifact, component, 1, tiny.SIDE, tiny.SIDE)
        for name, shape in fed[component].items():
            assert shape[0] == expected["batch"], (component, name)
    assert fed["unet"]["sample"][2:] == (axis_sizes(artifact, "unet", 1, tiny.SIDE, tiny.SIDE)["height"],) * 2
    assert fed["text_encoder"]["input_ids"][1] == text_tokens(artifact, "text_encoder")


def test_the_shape_of_a_graphs_inputs_is_complete(flux: tiny.Tiny) -> None:
    artifact = opened(flux)
    model = artifact.model("vae_decoder", "fp16")
    assert input_shapes(artifact, "vae_decoder", model, 2, 64, 32) == {"latent_sample": (2, 4, 16, 8)}
    assert [i.dtype for i in graph_inputs(model)] == [np.float32]


def test_an_axis_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match="'frames'"):
        Input("x", np.dtype(np.float32), ("batch", "frames")).shape({"batch": 1})
