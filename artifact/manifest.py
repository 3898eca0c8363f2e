"""manifest.json: what was built, from what, with which versions; the only entry point for readers.

Layout (`format` 1)::

    format      1
    name        the artifact's name
    pipeline    class name of the diffusers pipeline, e.g. "FluxPipeline"
    source      {"model": name as given, "sha256": hash over its configs and weights}
    target      "cpu", ...
    dtype       T of the graphs: "float16" | "float32"
    reserve_rank  rank that the TensorRT form keeps free for a LoRA, beyond that of the branch
    versions    {package: version} that made it
    latents     how the initial latents are laid out (artifact.sampling.LatentRule)
    pipeline_config  the pipeline's own scalar settings, from model_index.json
    pictures    what the pipeline takes beside every prompt (artifact.pictures.PictureRule), or null
    generation  keyword arguments of the pipeline's call that the model wants by default
    presets     names of the presets built, in the order of the request; the first is the default
    components  {name: {"role": "denoiser" | "text_encoder" | "vae_decoder" | "vae_encoder",
                        "module": name in the pipeline (e.g. "vae"), "class": class name, "config": {...},
                        "models": {preset: path of the .onnx for onnxruntime},
                        "tensorrt": {preset: path of the .onnx that TensorRT parses}, without those that `skipped`
                        tells of; where nothing is 4-bit it is the same file, else it refers to its data, too,
                        "inputs": [...], "outputs": [...],
                        "instruction_tokens": tokens that the pipeline puts before a prompt and drops again, of a text
                        encoder of SANA}}
    folders     {"tokenizer": "tokenizer", "scheduler": "scheduler", ...}: what diffusers and transformers load
    files       {path: {"sha256": ..., "bytes": ...}} of everything a reader may open
    exports     {component: [{"shapes": {...}, "max_abs_error": ..., "max_abs": ..., "relative": ...,
                        "allowed": ...}, ...]}: check against torch
    layers      {preset: {component: {layer: {"error": ..., "alpha": ..., "beta": ..., "rank": ..., "k": ...,
                        "n": ..., "scheme": ..., "weights": [the source's weights that it is stacked from],
                        "columns": [first, end) of them or null for all, "bytes": ..., "bytes_16bit": ...}}}}
    references  {"prompts": [...], "seeds": [...], "files": [...]}, or {} where none were drawn
    skipped     [sentence, ...]: steps that were not done, and why
    lora        where LoRAs are folded in: {"state": ..., "presets": [...],
                        "ranks": {preset: {component: {layer: [before, after]}}},
                        "adapters": [{"name", "sha256", "strength", ...}], "base": what the entries above were before,
                        "files": [...]}; see export/lora/state.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import inside, sha256s, write_json
from artifact.pictures import PictureRule

NAME = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Artifact:
    """A directory with a manifest whose files were found as they were written."""

    root: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: Path | str, verify: bool = True) -> Artifact:
        """Read the manifest; with `verify`, also the hash of every file it names.

        Raises UserError where the directory holds no artifact, or a file is missing, changed or out of it.
        """
        root = Path(directory)
        path = root / NAME
        if not path.is_file():
            raise UserError(f"{root} holds no {NAME}: give the directory that `python -m export.build` printed.")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            known = manifest["format"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not a manifest (damaged or half-copied): copy it again or rebuild.") from None
        if known != FORMAT:
            raise UserError(f"{path} has format {known!r}, this version reads {FORMAT}: rebuild the artifact.")
        artifact = cls(root, manifest)
        if verify:
            artifact.verify()
        return artifact

    def verify(self) -> None:
        """Compare every file with its recorded hash. Raises UserError naming the first that differs."""
        entries = self.manifest["files"]
        paths = {name: inside(self.root, name) for name in entries}
        for name, path in paths.items():
            if not path.is_file():
                raise UserError(f"{self.root / name} is missing: copy the artifact again or rebuild it.")
        whole = [name for name, path in paths.items() if path.stat().st_size == entries[name]["bytes"]]
        found = dict(zip(whole, sha256s([paths[name] for name in whole]), strict=True))
        for name, entry in entries.items():
            if found.get(name) != entry["sha256"]:
                raise UserError(
                    f"{self.root / name} is not the file that was built (its hash differs): "
                    "copy the artifact again or rebuild it."
                )

    @property
    def pictures(self) -> PictureRule | None:
        """What the pipeline takes beside every prompt; None for text alone."""
        rule = self.manifest.get("pictures")
        return PictureRule(**rule) if rule else None

    def path(self, name: str) -> Path:
        """Absolute path of a file or folder that the manifest names. Raises UserError where it leads outside."""
        return inside(self.root, name)

    def component(self, role: str) -> list[str]:
        """Names of the components with this role, in the manifest's order."""
        return [n for n, c in self.manifest["components"].items() if c["role"] == role]

    def model(self, component: str, preset: str) -> Path:
        """The .onnx file of a component for a preset, as onnxruntime runs it."""
        return self.path(self.manifest["components"][component]["models"][preset])

    def tensorrt(self, component: str, preset: str) -> Path:
        """The .onnx file of a component for a preset, as TensorRT parses it. Raises UserError where there is none."""
        forms = self.manifest["components"][component].get("tensorrt", {})
        if preset not in forms:
            said = (f"No TensorRT form of {component}:", "No plugin form of ")
            why = [s for s in self.manifest["skipped"] if s.startswith(said)]
            raise UserError(
                f"{self.root} has no form of {component} for {preset} that TensorRT parses: "
                + (why[0] if why else "it was built by an earlier version; build it again.")
            )
        return self.path(forms[preset])


def record(root: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The `files` entries of the named files below `root`."""
    names = sorted(names)
    digests = sha256s([root / n for n in names])
    return {n: {"sha256": d, "bytes": (root / n).stat().st_size} for n, d in zip(names, digests, strict=True)}


def write(root: Path, manifest: dict[str, Any]) -> Artifact:
    """Write the manifest, which makes the directory an artifact."""
    write_json(root / NAME, {"format": FORMAT, **manifest})
    return Artifact(root, {"format": FORMAT, **manifest})
