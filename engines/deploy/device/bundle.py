"""A bundle on the device: its manifest, its files as they were written, its plans as build.sh made them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import inside, sha256

FORMAT = "bundle 2"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """The directory that holds run.py; `manifest` is what engines/deploy/bundle.py wrote."""

    root: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: Path, verify: bool = True) -> Bundle:
        """Read the manifest and, with `verify`, compare every file with its hash. Raises UserError naming the first
        that is missing or changed."""
        path = root / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            known = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is missing or damaged: copy the bundle again.") from None
        if known != FORMAT:
            raise UserError(
                f"{path} has format {known!r}, this run.py reads {FORMAT!r}: keep a bundle's files together."
            )
        bundle = cls(root, manifest)
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Raises UserError naming the first file that is not as it was written."""
        for name, entry in self.manifest["files"].items():
            path = inside(self.root, name)
            if not path.is_file():
                raise UserError(f"{self.root / name} is missing: copy the bundle again.")
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                raise UserError(f"{self.root / name} is damaged (its hash differs): copy the bundle again.")

    def path(self, name: str) -> Path:
        """Absolute path of a file of the bundle."""
        return inside(self.root, name)

    @property
    def plugin(self) -> Path:
        """The plugin's library, which build.sh makes where the bundle brought none."""
        return self.path(f"plugin/{self.manifest['plugin']['library']}")

    def plan(self, component: str, sm: str, tensorrt: str) -> Path:
        """The component's plan, checked for this GPU ("87") and this TensorRT ("10.3.0").

        Raises UserError, one sentence, where there is none, it is truncated or changed, or it was built for another
        GPU, TensorRT, plugin or bundle.
        """
        entry = self.manifest["components"][component]
        path = self.path(entry["plan"])
        about = path.with_name(f"{path.name}.json")
        again = "run build.sh again on this device."
        if not path.is_file() or not about.is_file():
            raise UserError(f"There is no engine of {component} ({path}): run build.sh on this device first.")
        try:
            said = json.loads(about.read_text(encoding="utf-8"))
            version, known = said["tensorrt"], (said["bytes"], said["plan_sha256"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{about} is damaged: {again}") from None
        if said["sm"] != sm:
            raise UserError(f"{path} was built for sm_{said['sm']} and this GPU is sm_{sm}: {again}")
        if version != tensorrt:
            raise UserError(f"{path} was built by TensorRT {version} and this is TensorRT {tensorrt}: {again}")
        if said["onnx_sha256"] != entry["onnx_sha256"]:
            raise UserError(f"{path} was built from another graph than this bundle's: {again}")
        if said["plugin_sha256"] and (not self.plugin.is_file() or said["plugin_sha256"] != sha256(self.plugin)):
            raise UserError(f"{path} was built with another plugin than {self.plugin}: {again}")
        if path.stat().st_size != known[0] or sha256(path) != known[1]:
            raise UserError(f"{path} is truncated or damaged (its hash differs): {again}")
        return path
