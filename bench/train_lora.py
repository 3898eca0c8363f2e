"""Trains a LoRA that teaches a bundled model a colour by an unknown word: `bench/train_lora.py teal.safetensors`.

The word's letters reach the frozen text encoders, which have no token for it; the denoiser learns what they mean.
The colour is one that the autoencoder has seen, for it can draw no other: teal is cyan by default.
Written in diffusers' format. With --score OUT nothing is trained: the artifact's pictures are judged as it is.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs without an installation
from artifact.manifest import Artifact  # noqa: E402
from engines.checker import COLOUR_TOLERANCE  # noqa: E402
from export.pipeline import load_pipeline  # noqa: E402
from export.shapes import data, vocabulary  # noqa: E402
from export.shapes.vae import to_tensor  # noqa: E402
from export.source import open_source  # noqa: E402

LINEARS = (".to_q", ".to_k", ".to_v", "_proj", ".to_out.0", ".to_add_out", ".proj", ".net.2", ".proj_mlp", ".proj_out")


class LowRank(nn.Module):
    """W → W + up · down, of which down and up are trained."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def scenes(rng: random.Random, count: int, word: str) -> list[data.Scene]:
    """One object each, of the word's colour in two of three; the others keep what is known from changing."""
    found = []
    for i in range(count):
        scene = data.random_scene(rng, 1)
        (item,) = scene.objects
        colour = word if i % 3 else rng.choice([c for c in data.COLOURS if c != word])
        found.append(data.Scene((data.Object(item.size, colour, item.shape),), scene.where, scene.background))
    return found


def train(pipe: Any, word: str, steps: int, rank: int, seed: int, pictures: int = 768) -> dict[str, torch.Tensor]:
    """The LoRA of the pipeline's denoiser, by diffusers' names; the pipeline itself is changed to have it."""
    torch.manual_seed(seed)
    module = "transformer" if hasattr(pipe, "transformer") else "unet"
    denoiser = getattr(pipe, module).requires_grad_(False)
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, nn.Linear) and n.endswith(LINEARS)}
    lora = {name: LowRank(layer.weight, rank) for name, layer in layers.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", lora[name])
    losses = _flow if module == "transformer" else _velocity
    loss_of = losses(pipe, scenes(random.Random(seed), pictures, word), random.Random(seed))
    optimiser = torch.optim.AdamW([p for m in lora.values() for p in m.parameters()], lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 20) * (1 - step / steps)
        with sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(torch.randint(pictures, (16,)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
    trained = {f"{module}.{n}.lora_A.weight": m.down.detach() for n, m in lora.items()}
    return trained | {f"{module}.{n}.lora_B.weight": m.up.detach() for n, m in lora.items()}


Loss = Callable[[torch.Tensor], torch.Tensor]  # of the scenes of these numbers, with noise of its own


def _flow(pipe: Any, drawn: list[data.Scene], rng: random.Random) -> Loss:
    """shapes-dit's own loss: the flow from the scene to noise."""
    latents = _latents(pipe, drawn, rng)
    latents = pipe._pack_latents(latents, *latents.shape)
    captions = [s.caption for s in drawn]
    with torch.no_grad():
        pooled = pipe.text_encoder(vocabulary.token_ids(pipe.tokenizer, captions)).pooler_output
        tokens = pipe.text_encoder_2(vocabulary.token_ids(pipe.tokenizer_2, captions))[0]
    ids = pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        clean = latents[chosen]
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(len(chosen)) + 1.1)  # as the model itself was trained
        flow = pipe.transformer(
            hidden_states=torch.lerp(clean, noise, sigma[:, None, None]), timestep=sigma,
            pooled_projections=pooled[chosen], encoder_hidden_states=tokens[chosen],
            txt_ids=torch.zeros(tokens.shape[1], 3), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        return F.mse_loss(flow, noise - clean)

    return loss


def _velocity(pipe: Any, drawn: list[data.Scene], rng: random.Random) -> Loss:
    """shapes-unet's own loss: the velocity at a step, drawn towards high noise."""
    latents = _latents(pipe, drawn, rng)
    with torch.no_grad():
        tokens = pipe.text_encoder(vocabulary.token_ids(pipe.tokenizer, [s.caption for s in drawn]))[0]

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        clean = latents[chosen]
        noise = torch.randn_like(clean)
        time = (torch.rand(len(chosen)).sqrt() * pipe.scheduler.config.num_train_timesteps).long()
        velocity = pipe.unet(pipe.scheduler.add_noise(clean, noise, time), time, tokens[chosen]).sample
        return F.mse_loss(velocity, pipe.scheduler.get_velocity(clean, noise, time))

    return loss


@torch.no_grad()
def _latents(pipe: Any, drawn: list[data.Scene], rng: random.Random) -> torch.Tensor:
    """The scenes' latents [N, C, h, w] as the denoiser sees them."""
    pictures = to_tensor(np.stack([data.draw(s, rng) for s in drawn]))
    config = pipe.vae.config
    return (pipe.vae.encode(pictures).latent_dist.mean - (config.shift_factor or 0)) * config.scaling_factor


def judged(draw: Any, word: str, count: int) -> str:
    """Of how many of `count` pictures the object has the word's colour, and of how many red ones are still red."""
    found = []
    for colour in (word, "red"):
        right = 0
        for i, scene in enumerate(scenes(random.Random(1000), count * 3, word)[1::3][:count]):
            item = scene.objects[0]
            wanted = data.Scene((data.Object(item.size, colour, item.shape),), scene.where, scene.background)
            x, y = (round(c) for c in data.centres(wanted, random.Random(0))[0])
            patch = np.asarray(draw(wanted.caption, i), np.float32)[y - 2 : y + 2, x - 2 : x + 2]
            right += np.linalg.norm(patch.mean((0, 1)) - data.COLOURS[colour]) < COLOUR_TOLERANCE
        found.append(f"{right} of {count} {colour}")
    return ", ".join(found)


def in_torch(pipe: Any, settings: dict[str, Any]) -> Any:
    """Draws one picture of a caption, from noise that the seed gives."""

    def draw(caption: str, seed: int) -> Any:
        return pipe(caption, generator=torch.Generator().manual_seed(seed), **settings).images[0]

    return draw


def score(out: Path, word: str, count: int) -> None:
    """A line for every preset of an artifact."""
    from engines.pipeline import EnginePipeline

    artifact = Artifact.open(out)
    for preset in artifact.manifest["presets"]:
        with EnginePipeline(artifact, preset, 1) as pipe:
            print(f"{preset:12} {judged(lambda caption, seed, p=pipe: p(caption, seed=seed), word, count)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the LoRA's file; with --score, an artifact of a bundled model")
    parser.add_argument("--model", default="shapes-dit", choices=("shapes-dit", "shapes-unet"))
    parser.add_argument("--score", action="store_true", help="judge the pictures of an artifact, train nothing")
    parser.add_argument("--word", default="teal", help="a word that the model does not know, short: letters are tokens")
    parser.add_argument(
        "--rgb", default="50,205,220", help="what it is to mean, 8 bits each; one that the autoencoder has seen"
    )
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=12, help="how many are judged")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data.COLOURS[args.word] = tuple(int(v) for v in args.rgb.split(","))  # what draws the pictures knows it, too
    if args.score:
        score(args.out, args.word, args.pictures)
        return
    source = open_source(args.model)
    pipe = load_pipeline(source)
    draw = in_torch(pipe, source.generation)
    print("without ", judged(draw, args.word, args.pictures))
    start = time.process_time()
    save_file(train(pipe, args.word, args.steps, args.rank, args.seed), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB, {time.process_time() - start:.0f} CPU seconds")
    print("with    ", judged(draw, args.word, args.pictures))


if __name__ == "__main__":
    main()
