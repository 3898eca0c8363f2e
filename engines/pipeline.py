"""An artifact as something to call: diffusers' own pipeline classes on engines."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifact.errors import UserError, nearest
from artifact.manifest import Artifact
from artifact.sampling import Progress, initial_noise, sample
from engines.assembly import assemble, class_for
from engines.backends import Runner, WeightStreaming, choose_backend, runner
from engines.families import Layout, layout
from engines.modes import choose_mode, spare_bytes
from engines.pictures import beside_prompts, check_given
from engines.placement import Placement
from engines.residency import Residency, Staged, Watch


class EnginePipeline:
    """A preset of an artifact, loaded. Use it in a `with` block, or `close` it.

    `artifact`, `preset`, `backend`, `layout` and `sessions` (a runner by component) are open to readers; `generation`
    holds the keyword arguments of the diffusers call that the model wants by default. `mode` is the memory mode that
    holds now and `notes` say why it is not the one asked for. `watch` hears "load X", "free X" and "step N".
    """

    def __init__(
        self,
        artifact: Artifact,
        preset: str,
        threads: int | None = None,
        backend: str = "auto",
        memory: str | None = None,
        max_memory: str | int | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.artifact, self.preset = artifact, preset
        components = artifact.manifest["components"]
        self.layout: Layout = layout(components)
        self.generation: dict[str, Any] = dict(artifact.manifest["generation"])
        self.backend = choose_backend(artifact, preset, backend)
        mode = choose_mode(artifact, preset, self.backend, memory, max_memory)
        runners = {n: runner(artifact, n, preset, self.backend, threads) for n in components}
        roles = {n: c["role"] for n, c in components.items()}
        spare = spare_bytes(artifact, preset, self.backend, mode, max_memory)
        for name in artifact.component("denoiser"):
            if isinstance(streaming := runners[name], WeightStreaming):
                streaming.kept_weights = spare
        self._residency = Residency(runners, roles, mode, watch, encodes=artifact.pictures is not None)
        self.sessions: dict[str, Runner] = {n: Staged(n, self._residency) for n in components}
        self._pipes: dict[str, Any] = {}
        self._residency.load()

    @property
    def mode(self) -> str:
        """resident, pipelined or streaming (engines/residency.py says what each keeps in memory)."""
        return self._residency.mode

    @property
    def notes(self) -> list[str]:
        """Sentences on what went otherwise than asked: a mode that had to change for want of memory."""
        return self._residency.notes

    @property
    def placements(self) -> dict[str, Placement]:
        """Which nodes ran where, by component: of those that onnxruntime has run with more than its CPU provider."""
        found = {n: getattr(r, "placement", None) for n, r in self._residency.runners.items()}
        return {n: p for n, p in found.items() if p is not None}

    def __enter__(self) -> EnginePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free every graph, once a load in the background has ended; later calls are refused."""
        self._residency.close()

    def diffusers(self, task: str = "text2image") -> Any:
        """The diffusers pipeline object on these engines, built once for each task of `engines.assembly.TASKS`."""
        if task not in self._pipes:
            self._pipes[task] = assemble(self.artifact, self.sessions, task, self._residency.step)
        return self._pipes[task]

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Any = None,
        mask: Any = None,
        strength: float | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        height: int | None = None,
        width: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Draw `prompt`: a PIL image; for a list of prompts, a list of them.

        With `image` (PIL, cropped and resized to width x height) it is changed instead, by `strength` in (0, 1], 0.6
        where that is None; with `mask` (PIL, fitted likewise) only where that is white. A pipeline that draws from
        pictures (`artifact.pictures`) needs its image, and its mask or transparent pixels, at every call and takes no
        strength. What is None is as the model wants it. A batch with one seed takes seed, seed + 1, ...; image-to-image
        and inpainting start from torch's generator, as diffusers draws it, all else from
        `artifact.sampling.initial_noise`.
        Raises UserError for values that the pipeline cannot take.
        """
        from PIL import Image

        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        call = self._call(steps, height, width, guidance, negative_prompt)
        seeds = _seeds(seed, len(prompts))
        check_given(self.artifact, image, mask, strength)
        task = self.task(image, mask)
        if task == "text2image":
            size = call["height"], call["width"]
            noise = initial_noise(self.layout.latents, seeds, *size)
            pictures = beside_prompts(self.artifact, image, mask, len(prompts), *size)
            arrays = sample(self.diffusers(), prompts, noise, call, progress, pictures).images
            images = [Image.fromarray(a) for a in arrays]
        else:
            images = self._change(
                task, prompts, image, mask, 0.6 if strength is None else strength, seeds, call, progress
            )
        return images[0] if isinstance(prompt, str) else images

    def task(self, image: Any, mask: Any) -> str:
        """The task of `engines.assembly.TASKS` that a call with these is; the pictures of a pipeline that always draws
        from some make no other."""
        if image is None or self.artifact.pictures is not None:
            return "text2image"
        return "image2image" if mask is None else "inpainting"

    def _call(
        self, steps: int | None, height: int | None, width: int | None, guidance: float | None, negative: str | None
    ) -> dict[str, Any]:
        """The keyword arguments of the diffusers call, checked."""
        call = dict(self.generation)
        wanted = {
            "num_inference_steps": steps,
            "height": height,
            "width": width,
            "negative_prompt": negative,
            self.layout.guidance: guidance,
        }
        known = inspect.signature(class_for(self.artifact).__call__).parameters
        for what, keyword in (("negative prompt", "negative_prompt"), ("guidance", self.layout.guidance)):
            if wanted[keyword] is not None and keyword not in known:
                raise UserError(f"A {self.artifact.manifest['pipeline']} takes no {what}: leave it out.")
        call.update({k: v for k, v in wanted.items() if v is not None})
        for what in ("height", "width"):
            _check_size(what, call[what], self.layout.multiple)
        if call["num_inference_steps"] < 1:
            raise UserError(f"steps is {call['num_inference_steps']}: give 1 or more.")
        if guidance is not None and self.layout.guidance == "true_cfg_scale":
            call.setdefault("negative_prompt", "")  # without one, FLUX's pipeline skips the guidance silently
        return call

    def _change(
        self,
        task: str,
        prompts: list[str],
        image: Any,
        mask: Any,
        strength: float,
        seeds: list[int],
        call: dict[str, Any],
        progress: Progress | None,
    ) -> list[Any]:
        """Image-to-image, or inpainting with a mask, on a batch of prompts and one image."""
        import torch
        from PIL import ImageOps

        if not 0 < strength <= 1:
            raise UserError(f"strength is {strength}: give more than 0 (keeps the image) and at most 1 (ignores it).")
        steps = min(int(call["num_inference_steps"] * strength), call["num_inference_steps"])
        if steps < 1:
            raise UserError(
                f"strength {strength} of {call['num_inference_steps']} steps leaves no step to compute: "
                "raise one of them."
            )
        pipe = self.diffusers(task)
        size = (call["width"], call["height"])
        given = {"image": [ImageOps.fit(image.convert("RGB"), size)] * len(prompts)}
        if mask is not None:
            given["mask_image"] = [ImageOps.fit(mask.convert("L"), size)] * len(prompts)
        accepted = inspect.signature(pipe.__call__).parameters
        call = {k: v for k, v in call.items() if k in accepted or k not in ("height", "width")}
        if isinstance(call.get("negative_prompt"), str):
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)

        def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if progress:
                progress(step + 1, steps, "denoising")
            return {}

        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            return pipe(
                prompts,
                **given,
                strength=strength,
                generator=[torch.Generator().manual_seed(s) for s in seeds],
                callback_on_step_end=after_step,
                **call,
            ).images


def load(
    directory: Path | str,
    preset: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    backend: str = "auto",
    max_memory: str | int | None = None,
    memory: str | None = None,
    watch: Watch | None = None,
) -> EnginePipeline:
    """Open the artifact in `directory` and load `preset` (None: the first that was built).

    `threads` bounds onnxruntime's threads within an operator (None: one per core). `verify` compares every file with
    its recorded hash first. `backend` is one of `engines.backends.BACKENDS`. `memory` names a mode of
    `engines.modes.MODES`, `max_memory` ("600MB", "2GiB" or bytes) chooses the fastest one whose estimate is within it;
    without either everything stays in memory. `watch` hears of every load and every step.

    Raises UserError for a damaged artifact, an unknown preset, backend or mode, and a budget that is too small;
    OutOfMemory where not even the smallest mode fits.
    """
    artifact = Artifact.open(directory, verify)
    return EnginePipeline(artifact, choose(artifact, preset), threads, backend, memory, max_memory, watch)


def as_diffusers(
    directory: Path | str,
    preset: str | None = None,
    task: str = "text2image",
    threads: int | None = None,
    backend: str = "auto",
    max_memory: str | int | None = None,
) -> Any:
    """The diffusers pipeline class that the artifact was built from, on engines; call it as diffusers documents it.

    `task` "image2image" or "inpainting" gives the family's class for that. Raises what `load` raises.
    """
    return load(directory, preset, threads, backend=backend, max_memory=max_memory).diffusers(task)


def choose(artifact: Artifact, preset: str | None) -> str:
    """`preset` if it was built, the first one for None. Raises UserError naming those that were built."""
    built = artifact.manifest["presets"]
    if preset is None:
        return built[0]
    if preset not in built:
        raise UserError(
            f"Preset {preset!r} is not in {artifact.root}, which holds {', '.join(built)}: " + nearest(preset, built)
        )
    return preset


def _check_size(what: str, pixels: int, multiple: int) -> None:
    if pixels < multiple or pixels % multiple:
        below = max(pixels // multiple, 1) * multiple
        raise UserError(
            f"{what} is {pixels} pixels, the model needs a multiple of {multiple}: give {below} or {below + multiple}."
        )


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts: give one for each, or a single one.")
    if min(seeds, default=0) < 0:
        raise UserError(f"seed is {min(seeds)}: give 0 or more.")
    return seeds
