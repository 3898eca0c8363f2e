"""Trains a LoRA that teaches shapes-dit a colour by a word it does not know: `bench/train_lora.py teal.safetensors`.

The word's letters reach the frozen text encoders, which have no token for it; the transformer learns what they mean.
The colour is one that the autoencoder has seen, for it can draw no other: teal is cyan by default.
Written in diffusers' format. With --score OUT nothing is trained: the artifact's pictures are judged as it is.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
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
    """The LoRA of the pipeline's transformer, by diffusers' names; the pipeline itself is changed to have it."""
    torch.manual_seed(seed)
    transformer = pipe.transformer.requires_grad_(False)
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and n.endswith(LINEARS)}
    lora = {name: LowRank(layer.weight, rank) for name, layer in layers.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", lora[name])
    latents, pooled, tokens = _encoded(pipe, scenes(random.Random(seed), pictures, word), random.Random(seed))
    ids = pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
    optimiser = torch.optim.AdamW([p for m in lora.values() for p in m.parameters()], lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 20) * (1 - step / steps)
        chosen = torch.randint(len(latents), (16,))
        clean = latents[chosen]
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(len(chosen)) + 1.1)  # as the model itself was trained
        with sdpa_kernel(SDPBackend.MATH):
            flow = transformer(
                hidden_states=torch.lerp(clean, noise, sigma[:, None, None]), timestep=sigma,
                pooled_projections=pooled[chosen], encoder_hidden_states=tokens[chosen],
                txt_ids=torch.zeros(tokens.shape[1], 3), img_ids=ids, return_dict=False,
            )[0]  # fmt: skip
        loss = F.mse_loss(flow, noise - clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
    trained = {f"transformer.{n}.lora_A.weight": m.down.detach() for n, m in lora.items()}
    return trained | {f"transformer.{n}.lora_B.weight": m.up.detach() for n, m in lora.items()}


@torch.no_grad()
def _encoded(pipe: Any, drawn: list[data.Scene], rng: random.Random) -> tuple[torch.Tensor, ...]:
    """Packed latents [N, 64, C], pooled CLIP [N, K] and T5's tokens [N, L, K] of the scenes."""
    pictures = to_tensor(np.stack([data.draw(s, rng) for s in drawn]))
    vae = pipe.vae
    latents = (vae.encode(pictures).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    captions = [s.caption for s in drawn]
    clip, t5 = (vocabulary.token_ids(t, captions) for t in (pipe.tokenizer, pipe.tokenizer_2))
    packed = pipe._pack_latents(latents, *latents.shape)
    return packed, pipe.text_encoder(clip).pooler_output, pipe.text_encoder_2(t5)[0]


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


def in_torch(pipe: Any) -> Any:
    """Draws one picture of a caption, from noise that the seed gives."""
    settings = open_source("shapes-dit").generation

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
    parser.add_argument("out", type=Path, help="the LoRA's file; with --score, an artifact of shapes-dit")
    parser.add_argument("--score", action="store_true", help="judge the pictures of an artifact, train nothing")
    parser.add_argument(
        "--word", default="teal", help="a word that shapes-dit does not know, short: letters are tokens"
    )
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
    pipe = load_pipeline(open_source("shapes-dit"))
    print("without ", judged(in_torch(pipe), args.word, args.pictures))
    start = time.process_time()
    save_file(train(pipe, args.word, args.steps, args.rank, args.seed), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB, {time.process_time() - start:.0f} CPU seconds")
    print("with    ", judged(in_torch(pipe), args.word, args.pictures))


if __name__ == "__main__":
    main()
