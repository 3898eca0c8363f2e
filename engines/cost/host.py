"""What an image takes between its graphs: tokenizer, scheduler, diffusers' work on small tensors, the picture.

The artifact's own pipeline draws with stand-ins for its graphs that answer at once with values of the right shapes.
Before one answers, other data take the core's cache, as a graph's would; neither is counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from artifact.manifest import Artifact
from artifact.pictures import any_pictures
from artifact.sampling import initial_noise, sample
from engines.cost.ceilings import OTHER_DATA, Ceilings
from engines.cost.graph import read
from engines.cost.pace import clock
from engines.cost.probes import STEPS
from engines.families import layout
from engines.references import Timed
from engines.shapes import graph_inputs, input_shapes

Size = tuple[int, int, int]  # batch, height, width in pixels


def key(artifact: Artifact, size: Size) -> str:
    """The host work of all artifacts of this pipeline, called alike, whatever their graphs."""
    generation = artifact.manifest["generation"]
    guided = f"{layout(artifact.manifest['components']).guidance} {'negative_prompt' in generation}"
    return f"host|{artifact.manifest['pipeline']}|{guided}|{'x'.join(map(str, size))}"


def seconds(ceilings: Ceilings, of: str, steps: int) -> float | None:
    """Of an image in so many steps, each of them like any other; None where it was not measured."""
    known = ceilings.seconds.get(of)
    if known is None:
        return None
    few, many = (known[(n,)] for n in STEPS)
    each = (many - few) / (STEPS[1] - STEPS[0])
    return max(few + (steps - STEPS[0]) * each, 0.0)


class StandIn:
    """A Runner that computes nothing: `outputs` are copies of arrays made beforehand. `spent` seconds do not count."""

    def __init__(
        self, name: str, inputs: list[str], made: Mapping[str, np.ndarray], clock: Callable[[], float]
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, list(made)
        self.latencies_ms: list[float] = []
        self.spent = 0.0
        self._made, self._clock = made, clock
        self._other = np.zeros(OTHER_DATA)

    def open(self) -> StandIn:
        return self

    def close(self) -> None:
        """There is nothing to free."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        start = self._clock()
        self._other += 1.0
        found = {name: value.copy() for name, value in self._made.items()}
        self.spent += self._clock() - start
        return found


class Host:
    """The pipeline of an artifact on stand-ins. Imports torch and diffusers."""

    def __init__(
        self, artifact: Artifact, preset: str, size: Size, calls: Mapping[str, int], threads: int | None
    ) -> None:
        from engines.assembly import assemble

        batch, height, width = size
        self.key = key(artifact, size)
        self._clock = clock(threads)
        self._stand_ins: dict[str, Any] = {}
        for name in artifact.manifest["components"]:
            model, made = artifact.model(name, preset), {}
            if name in calls:
                outputs = read(model, input_shapes(artifact, name, model, *size)).outputs
                made = {t.name: np.full(t.shape or (), 0.5, np.float32) for t in outputs}
            inputs = [i.name for i in graph_inputs(model)]
            self._stand_ins[name] = StandIn(name, inputs, made, self._clock)
        self._pipe = assemble(artifact, self._stand_ins)
        self._prompts = [Timed.of(artifact).prompt] * batch
        pictures = artifact.pictures
        self._pictures = None if pictures is None else any_pictures(pictures, batch, height, width)
        rule = layout(artifact.manifest["components"]).latents
        self._noise = initial_noise(rule, range(batch), height, width)
        self._call = artifact.manifest["generation"] | {"height": height, "width": width}

    def measure(self, ceilings: Ceilings, runs: int = 3) -> None:
        """Keep the median time of an image in few and in more steps."""
        for steps in STEPS:
            self._draw(steps)
            drawn = [ceilings.pace.relative(partial(self._draw, steps)) for _ in range(runs)]
            ceilings.keep(self.key, (steps,), statistics.median(drawn))

    def _draw(self, steps: int) -> float:
        for each in self._stand_ins.values():
            each.spent = 0.0
        start = self._clock()
        call = self._call | {"num_inference_steps": steps}
        sample(self._pipe, self._prompts, self._noise, call, pictures=self._pictures)
        return self._clock() - start - sum(each.spent for each in self._stand_ins.values())
