"""What a target other than the CPU gets besides: engines where they can be built, a bundle for a Jetson."""

from __future__ import annotations

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.targets import Target
from export.stages import Stages


def deliver(artifact: Artifact, target: Target, preset: str, stages: Stages) -> list[str]:
    """Build the engines of `preset`, or the script that does so on the device, and a Jetson's deploy bundle.

    Returns what was skipped, a sentence each: bundles run fewer pipelines than the compiler knows, and the artifact is
    whole without one. Raises UserError where TensorRT or the target refuses the preset.
    """
    if target.sm is None:
        return []
    from engines.trt.build import build_engines

    with stages.stage("engines") as tick:
        built = build_engines(
            artifact, preset, target, say=stages.detail, progress=lambda phase, done, total: tick(done, total, phase)
        )
    stages.say(f"script for a {target.title}: {built.script}")
    if target.jetpacks:
        from engines.deploy.bundle import write_bundle

        try:
            with stages.stage("bundle"):
                bundle = write_bundle(artifact, target, preset)
        except UserError as e:
            return [*built.skipped, f"No bundle was written for a {target.title}: {e}"]
        stages.say(f"all that the device needs: {bundle}")
    return built.skipped
