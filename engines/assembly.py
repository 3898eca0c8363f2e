"""Putting a diffusers pipeline together: its class, engines for modules, the artifact's tokenizers and scheduler."""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from artifact.errors import UserError, nearest
from artifact.manifest import Artifact
from engines.backends import Runner
from engines.families import layout

# What a pipeline is for, and what diffusers puts into the class's name for it.
TASKS = {"text2image": "", "image2image": "Img2Img", "inpainting": "Inpaint"}
_PACKED_TIME = 1000  # FLUX's and Qwen-Image's pipelines give their scheduler's timesteps divided by this


def assemble(
    artifact: Artifact,
    sessions: Mapping[str, Runner],
    task: str = "text2image",
    on_step: Callable[[int, int], None] | None = None,
) -> Any:
    """The pipeline object of the class that the manifest names, or of its family's class for another task.

    No weights are read. `on_step` hears (step, of how many) before every call of the denoiser. Raises UserError for an
    unknown task, and where this diffusers lacks the class or a folder of the artifact is missing.
    """
    pipeline_class = class_for(artifact, task)
    modules = _stand_ins(artifact, sessions)
    given = {**modules, **_folders(artifact), **artifact.manifest.get("pipeline_config", {})}
    given["requires_safety_checker"] = False
    parameters = inspect.signature(pipeline_class).parameters
    arguments = {n: given.get(n, None if p.default is p.empty else p.default) for n, p in parameters.items()}
    pipe = pipeline_class(**arguments)
    if on_step is not None:
        packed = layout(artifact.manifest["components"]).latents.packed
        denoiser = artifact.manifest["components"][artifact.component("denoiser")[0]]["module"]
        modules[denoiser].before_step = _counted(pipe, _PACKED_TIME if packed else 1, on_step)
    return pipe


def class_for(artifact: Artifact, task: str = "text2image") -> Any:
    """diffusers' class for a task on the artifact. Raises UserError as `assemble` does."""
    import diffusers

    if task not in TASKS:
        raise UserError(f"There is no task {task!r}: {nearest(task, list(TASKS))}")
    name = artifact.manifest["pipeline"].removesuffix("Pipeline") + TASKS[task] + "Pipeline"
    pipeline_class = getattr(diffusers, name, None)
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, diffusers.DiffusionPipeline)):
        raise UserError(
            f"diffusers {diffusers.__version__} has no {name}: "
            + (
                "install the version that the manifest names."
                if task == "text2image"
                else f"this family has no {task}."
            )
        )
    return pipeline_class


def _counted(pipe: Any, scale: float, on_step: Callable[[int, int], None]) -> Callable[[float], None]:
    """Turns the timestep that the denoiser is called with into its place among the scheduler's timesteps.

    The pipeline is asked at every call, since its user may put another scheduler into it.
    """
    behind = weakref.ref(pipe)  # the pipeline holds the module that holds this

    def before_step(timestep: float) -> None:
        alive = behind()
        times = np.asarray(alive.scheduler.timesteps, np.float64) if alive is not None else np.zeros(0)
        if times.size:
            on_step(int(np.abs(times - scale * timestep).argmin()) + 1, times.size)

    return before_step


def _stand_ins(artifact: Artifact, sessions: Mapping[str, Runner]) -> dict[str, Any]:
    """Stand-ins by their name in the pipeline."""
    from engines.modules import Denoiser, TextEncoder, Vae

    modules: dict[str, Any] = {}
    for name, component in artifact.manifest["components"].items():
        role, config, session = component["role"], component["config"], sessions[name]
        if role == "denoiser":
            modules[component["module"]] = Denoiser(config, component["class"], session)
        elif role == "text_encoder":
            modules[component["module"]] = TextEncoder(config, component["class"], session)
        elif role == "vae_decoder":
            encoder = artifact.component("vae_encoder")
            modules[component["module"]] = Vae(
                config, component["class"], session, sessions[encoder[0]] if encoder else None
            )
    return modules


def _folders(artifact: Artifact) -> dict[str, Any]:
    """Tokenizers and scheduler by their name in the pipeline, from the artifact's folders and nothing else."""
    import diffusers
    from transformers import AutoTokenizer

    loaded: dict[str, Any] = {}
    for name, folder in artifact.manifest["folders"].items():
        path = artifact.path(folder)
        if not path.is_dir():
            raise UserError(f"{artifact.root / folder} is missing: copy the artifact again or rebuild it.")
        if name == "scheduler":
            config = json.loads((path / "scheduler_config.json").read_text(encoding="utf-8"))
            loaded[name] = getattr(diffusers, config["_class_name"]).from_config(config)
        elif name.startswith("tokenizer"):
            loaded[name] = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return loaded
