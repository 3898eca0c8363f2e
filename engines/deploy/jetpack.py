"""The JetPack releases that a bundle can be made for: one row each, data only.

Sources: NVIDIA's JetPack archive and the release notes of Jetson Linux. A release of JetPack comes with one TensorRT,
and plans are bound to it. JetPack 5.1 is left out: its TensorRT 8.5 and its Python 3.8 are older than what runs here.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifact.errors import UserError, nearest
from engines.targets import Target


@dataclass(frozen=True)
class Release:
    """`l4t`: major versions of Jetson Linux that /etc/nv_tegra_release may show, as a regular expression.

    `tensorrt` "10.3"; `chips`: compute capabilities that it runs on.
    """

    name: str
    l4t: str
    tensorrt: str
    chips: tuple[str, ...]

    @property
    def shell(self) -> int:
        """Which of the plugin's two shells its TensorRT loads: 8 (IPluginV2DynamicExt) or 10 (IPluginV3)."""
        return 8 if self.tensorrt.startswith("8.") else 10

    def family(self, chip: str) -> str:
        """The word that /proc/device-tree/model has for a compute capability."""
        return FAMILIES[chip]


ORIN, THOR = "8.7", "11.0"
FAMILIES = {ORIN: "Orin", THOR: "Thor"}
RELEASES = (
    Release("6.0", "36", "8.6", (ORIN,)),
    Release("6.1", "36", "10.3", (ORIN,)),
    Release("6.2", "36", "10.3", (ORIN,)),
    Release("7.0", "38", "10.13", (THOR,)),
    Release("7.1", "38", "10.13", (THOR,)),
    Release("7.2", "3[89]", "10.16", (ORIN, THOR)),
    Release("7.2.2", "3[89]", "11.4", (ORIN, THOR)),
)
DEFAULTS = {ORIN: "6.2", THOR: "7.1"}


def release(target: Target, name: str | None) -> Release:
    """The row of that name that runs on `target`; None: the one that most devices of its kind have.

    Raises UserError for a target that is no Jetson and for a release that is unknown or not for it.
    """
    chip = target.compute_capability
    fitting = [r for r in RELEASES if chip in r.chips and target.shared_memory]
    if target.name == "cpu":
        raise UserError(
            "There is nothing to deploy to the target cpu: copy the artifact itself and run its portable form with "
            "python -m engines.run."
        )
    if not fitting:
        raise UserError(
            f"A bundle is for a Jetson, and {target.name} is none: copy the artifact to the machine and build its "
            "engines there with python -m engines.build."
        )
    wanted = name or DEFAULTS[str(chip)]
    for row in fitting:
        if row.name == wanted:
            return row
    known = [r.name for r in fitting]
    if any(r.name == wanted for r in RELEASES):
        raise UserError(f"JetPack {wanted} does not run on {target.title}: choose {', '.join(known)}.")
    raise UserError(f"There is no --jetpack {wanted!r} for {target.name}: {nearest(wanted, known)}")
