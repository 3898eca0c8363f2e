"""Putting a diffusers pipeline together: its class, engines for modules, the artifact's tokenizers and scheduler."""

from __future__ import annotations

import inspect
import json
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.session import Session


def assemble(artifact: Artifact, sessions: dict[str, Session], image_to_image: bool) -> Any:
    """The pipeline object of the class that the manifest names, or of its family's image-to-image class.

    No weights are read. Raises UserError where this diffusers lacks the class or a folder of the artifact is missing.
    """
    import diffusers

    name = artifact.manifest["pipeline"]
    if image_to_image:
        name = name.removesuffix("Pipeline") + "Img2ImgPipeline"
    pipeline_class = getattr(diffusers, name, None)
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, diffusers.DiffusionPipeline)):
        raise UserError(
            f"diffusers {diffusers.__version__} has no {name}: "
            + (
                "this family has no image-to-image."
                if image_to_image
                else "install the version that the manifest names."
            )
        )
    given = {**_stand_ins(artifact, sessions), **_folders(artifact), **artifact.manifest.get("pipeline_config", {})}
    given["requires_safety_checker"] = False
    parameters = inspect.signature(pipeline_class).parameters
    arguments = {n: given.get(n, None if p.default is p.empty else p.default) for n, p in parameters.items()}
    return pipeline_class(**arguments)


def _stand_ins(artifact: Artifact, sessions: dict[str, Session]) -> dict[str, Any]:
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
