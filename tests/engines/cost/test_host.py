"""What an image takes between its graphs."""

from __future__ import annotations

import numpy as np
import pytest

from artifact.manifest import Artifact
from engines.cost import host
from engines.cost.ceilings import Ceilings
from engines.cost.host import Host, StandIn
from engines.cost.prediction import calls_per_image
from engines.cost.probes import STEPS

SIZE = 1, 32, 32


@pytest.mark.parametrize("name", ["tiny_flux", "tiny_unet"])
def test_the_pipeline_draws_with_graphs_that_answer_at_once(name: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    work, known = Host(artifact, "fp16", SIZE, calls_per_image(artifact, 1), 1), Ceilings(1)
    work.measure(known, runs=1)
    assert set(known.seconds) == {host.key(artifact, SIZE)} and set(known.seconds[work.key]) == {(n,) for n in STEPS}
    assert all(s > 0 for s in known.seconds[work.key].values())


def test_every_step_costs_the_same(tiny_flux: Artifact) -> None:
    few, many = STEPS
    known = Ceilings(1, {"host": {(few,): 1.0 + few, (many,): 1.0 + many}})
    assert host.seconds(known, "host", 20) == pytest.approx(21.0)
    assert host.seconds(known, "another", 20) is None


def test_other_sizes_have_other_work(tiny_flux: Artifact) -> None:
    assert host.key(tiny_flux, SIZE) != host.key(tiny_flux, (2, 32, 32))


def test_what_a_stand_in_takes_does_not_count() -> None:
    ticks = iter(range(100))
    made = {"y": np.ones(3, np.float32)}
    stand_in = StandIn("unet", ["x"], made, lambda: float(next(ticks)))
    answer = stand_in.run({"x": np.zeros(1)})
    assert stand_in.spent == 1.0 and stand_in.outputs == ["y"]
    answer["y"][:] = 0
    assert made["y"].all()  # the next call gives them again
