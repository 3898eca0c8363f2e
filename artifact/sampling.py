"""One definition of a run, whatever computes it: the same prompts, noise and call for torch and for engines.

The noise comes from numpy, not from torch, so that a device without torch starts from the very same latents.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a device, which reads this file too, is given no pictures
    from artifact.pictures import Pictures

Progress = Callable[[int, int, str], None]  # (done, total, what)


@dataclass(frozen=True)
class LatentRule:
    """How a pipeline's initial latents are laid out for an image of height x width pixels.

    `channels` latent channels at 1/`scale` of the pixels; `packed`: FLUX's and Qwen-Image's
    [B, (h/2)(w/2), 4·channels] instead of [B, channels, h, w].
    """

    channels: int
    scale: int
    packed: bool

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one image's latents, without the batch."""
        h, w = height // self.scale, width // self.scale
        return (h // 2 * (w // 2), 4 * self.channels) if self.packed else (self.channels, h, w)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def initial_noise(rule: LatentRule, seeds: Sequence[int], height: int, width: int) -> np.ndarray:
    """float32 [len(seeds), ...] standard normal noise, one PCG64 stream per seed."""
    shape = rule.shape(height, width)
    return np.stack([np.random.Generator(np.random.PCG64(s)).standard_normal(shape, np.float32) for s in seeds])


@dataclass(frozen=True)
class Sampled:
    """What one run gave: `images` uint8 [B, H, W, 3]; `latents` float32 [B, steps, ...] after every step."""

    images: np.ndarray
    latents: np.ndarray


def sample(
    pipe: Any,
    prompts: Sequence[str],
    noise: np.ndarray,
    generation: dict[str, Any],
    progress: Progress | None = None,
    pictures: Pictures | None = None,
    decode: bool = True,
) -> Sampled:
    """Run a diffusers pipeline (of torch modules or of engines) on a batch of prompts from the given noise.

    `noise` is float32 [B, ...] from `initial_noise`; `generation` are keyword arguments of the pipeline's call;
    `pictures` one for every prompt where the pipeline takes some. What draws more noise, a scheduler at every step
    (SDXL-Turbo's) or a picture's encoder, draws it from a stream that the image's own noise seeds. Without `decode`
    the images are none, [B, 0, 0, 3]: the decoder is not called.
    """
    import torch

    kept: list[np.ndarray] = []

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"].float().cpu().numpy().copy())
        if progress:
            progress(step + 1, generation["num_inference_steps"], "denoising")
        return {}

    def after_step_alone(step: int, timestep: Any, latents: Any) -> None:
        after_step(None, step, timestep, {"latents": latents})

    call = {**generation, **(pictures.arguments() if pictures is not None else {})}
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        call["callback_on_step_end"] = after_step
    else:  # PixArt's pipeline has only diffusers' older way
        call["callback"] = after_step_alone
    if isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        images = pipe(
            list(prompts),
            latents=torch.from_numpy(noise),
            output_type="np" if decode else "latent",
            generator=[torch.Generator().manual_seed(zlib.crc32(image.tobytes())) for image in noise],
            **call,
        ).images
    drawn = np.asarray(images) * 255 if decode else np.zeros((len(prompts), 0, 0, 3))
    return Sampled(drawn.round().astype(np.uint8), np.stack(kept, axis=1))
