"""What a change of LoRAs means for what was made of the artifact before."""

from __future__ import annotations

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.trt import plan
from engines.trt.refit import structure_sha256


def advice(artifact: Artifact) -> list[str]:
    """A sentence for each kind of engine, bundle or report that does not belong to the graphs any more."""
    refit: list[str] = []
    again: list[str] = []
    for path in sorted((artifact.root / plan.DIRECTORY).glob(f"*{plan.SUFFIX}")):
        try:
            built = plan.read(path).metadata
            graph = artifact.tensorrt(built["component"], built["preset"])
        except (UserError, KeyError):  # damaged, or of a preset that this artifact has not
            again.append(path.name)
            continue
        if built["onnx_sha256"] == plan.graph_sha256(artifact, graph):
            continue
        same = built.get("structure_sha256") == structure_sha256(artifact, graph)
        (refit if same and built["refittable"] else again).append(path.name)
    found = []
    if refit:
        found.append(f"to refit, with `python -m engines.build {artifact.root} --refit`: {', '.join(refit)}")
    if again:
        found.append(f"to build again, with `python -m engines.build {artifact.root}`: {', '.join(again)}")
    for bundle in sorted(artifact.root.glob("deploy-*.tar.zst")):
        found.append(f"to pack again, with `python -m engines.deploy {artifact.root}`: {bundle.name}")
    if (artifact.root / "report.json").is_file():
        found.append("report.html and the reference images are those of the model without LoRAs")
    return found
