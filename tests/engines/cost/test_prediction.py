"""Graphs put together as the pipeline calls them: latency, memory, whether it fits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.cost import cpu, host, structure
from engines.cost.ceilings import Ceilings, grid
from engines.cost.prediction import CPU_BAND, MEMORY_BAND, Form, Prediction, calls_per_image, fits, predict
from engines.cost.probes import STEPS
from engines.cost.structure import Structure
from engines.modes import CONTEXT_BYTES
from engines.shapes import input_shapes
from engines.targets import TARGETS, find
from tests.engines.cost.graphs import model, node
from tests.engines.cost.invented import always

NANO = find("orin-nano")


def invented(keys: set[str]) -> Ceilings:
    """Every node takes a microsecond and a nanosecond per unit of its size."""
    known = Ceilings(1, {k: {p: 1e-6 + 1e-9 * math.prod(p) for p in grid(k)} for k in keys})
    return always(known)


def image(p: Prediction) -> float:
    assert p.image_ms is not None
    return p.image_ms.expected


def test_components_are_called_as_the_pipeline_calls_them(tiny_flux: Artifact, tiny_unet: Artifact) -> None:
    # As engines.measure counts them (tests/engines/test_report.py): FLUX's true guidance calls its denoiser twice.
    assert calls_per_image(tiny_flux, 3) == {
        "transformer": 6, "text_encoder": 2, "text_encoder_2": 2, "vae_decoder": 1
    }  # fmt: skip
    assert calls_per_image(tiny_unet, 3) == {"unet": 3, "text_encoder": 2, "vae_decoder": 1}


def test_without_guidance_each_is_called_once_a_step(tiny_unet: Artifact) -> None:
    content = tiny_unet.manifest | {"generation": tiny_unet.manifest["generation"] | {"guidance_scale": 1.0}}
    assert calls_per_image(Artifact(tiny_unet.root, content), 5) == {"unet": 5, "text_encoder": 1, "vae_decoder": 1}


def test_an_image_is_the_sum_of_its_calls(tiny_flux: Artifact) -> None:
    p = predict(tiny_flux, NANO, "fp16")
    for end in ("low", "expected", "high"):
        total = sum(c.calls * getattr(c.call_ms, end) for c in p.components)
        assert getattr(p.image_ms, end) == pytest.approx(total)
    assert p.image_ms is not None and p.image_ms.low < p.image_ms.expected < p.image_ms.high


@pytest.mark.parametrize("change", [{"height": 64}, {"width": 64}, {"batch": 3}, {"steps": 4}])
def test_more_work_is_never_cheaper(tiny_unet: Artifact, change: dict[str, int]) -> None:
    small, large = predict(tiny_unet, NANO, "fp16"), predict(tiny_unet, NANO, "fp16", **change)  # type: ignore[arg-type]
    assert image(large) > image(small) and large.resident_bytes >= small.resident_bytes
    for a, b in zip(small.components, large.components, strict=True):
        assert b.operations >= a.operations and b.activation_bytes >= a.activation_bytes
        assert b.weight_bytes == a.weight_bytes


def test_memory_is_what_the_components_hold(tiny_flux: Artifact) -> None:
    p = predict(tiny_flux, NANO, "fp16")
    each = {c.name: c.weight_bytes + c.activation_bytes + c.workspace_bytes for c in p.components}
    assert p.resident_bytes == CONTEXT_BYTES + sum(each.values())
    others = max(each["text_encoder"] + each["text_encoder_2"], each["vae_decoder"])
    assert p.pipelined_bytes == CONTEXT_BYTES + each["transformer"] + others < p.resident_bytes
    assert p.usable_bytes == 6_000_000_000 and p.fits == "resident"
    weights = sum(c.weight_bytes for c in p.components)
    assert p.resident_band.expected == p.resident_bytes and p.pipelined_band.expected == p.pipelined_bytes
    assert p.resident_band.low - weights == pytest.approx((p.resident_bytes - weights) / 2)
    assert p.resident_band.high - weights == pytest.approx((p.resident_bytes - weights) * 2)
    assert p.pipelined_band.high < p.resident_band.high


def test_the_band_of_memory_on_this_cpu_is_of_the_graphs_alone(tiny_flux: Artifact) -> None:
    p = predict(tiny_flux, find("cpu"), "fp16")
    graphs = p.resident_bytes - p.runtime_bytes
    assert p.resident_band.high == pytest.approx(p.runtime_bytes + graphs * (1 + MEMORY_BAND))
    assert p.resident_band.low == pytest.approx(p.runtime_bytes + graphs * (1 - MEMORY_BAND))


def test_what_fits(tiny_flux: Artifact) -> None:
    assert [fits(10, 5, n) for n in (None, 4, 5, 9, 10)] == [None, "no", "pipelined", "pipelined", "resident"]
    small = replace(NANO, memory_gb=2.41)  # 0.41 GB beside the system's 2: a little more than the context
    assert predict(tiny_flux, NANO, "fp16").resident_bytes < 410_000_000
    assert predict(tiny_flux, small, "fp16").fits == "resident"
    assert predict(tiny_flux, replace(NANO, memory_gb=2.4), "fp16").fits == "no"


def test_unverified_figures_are_named_and_widen_the_band(tiny_flux: Artifact) -> None:
    sure = predict(tiny_flux, replace(NANO, unverified=frozenset()), "fp16")
    unsure = predict(tiny_flux, replace(NANO, unverified=frozenset({"fp16_tflops", "power_w"})), "fp16")
    assert sure.unverified == () and unsure.unverified == ("fp16_tflops",)
    assert sure.image_ms is not None and unsure.image_ms is not None
    assert unsure.image_ms.low < sure.image_ms.low and unsure.image_ms.high > sure.image_ms.high
    assert unsure.image_ms.expected == sure.image_ms.expected
    assert any("Unverified figures" in s for s in unsure.assumptions)
    assert not any("Unverified figures" in s for s in sure.assumptions)


def test_every_target_is_predicted(tiny_flux: Artifact) -> None:
    for target in TARGETS[1:]:
        assert image(predict(tiny_flux, target, "fp16")) > 0


def test_this_cpu_is_predicted_from_its_ceilings_and_its_optimised_graph(tiny_unet: Artifact) -> None:
    row = find("cpu")
    blank = predict(tiny_unet, row, "fp16")
    assert blank.image_ms is None and blank.resident_bytes > 0 and blank.usable_bytes
    assert any("not predicted" in s for s in blank.assumptions)
    models = {n: tiny_unet.model(n, "fp16") for n in calls_per_image(tiny_unet, 1)}
    graphs = [cpu.graph(m, input_shapes(tiny_unet, n, m)) for n, m in models.items()]
    assert any(op.title.startswith("com.microsoft") for g in graphs for op in g.ops)  # as onnxruntime fused them
    assert all(op.known for g in graphs for op in g.ops)
    known = invented(cpu.keys(graphs))
    without = predict(tiny_unet, row, "fp16", ceilings=known)
    assert without.host_ms is None and without.image_ms is None and all(c.call_ms for c in without.components)
    generation = tiny_unet.manifest["generation"]
    size = 1, generation["height"], generation["width"]
    known.seconds[host.key(tiny_unet, size)] = {(n,): 1e-3 * (10 + n) for n in STEPS}
    p = predict(tiny_unet, row, "fp16", ceilings=known)
    assert p.host_ms is not None and p.host_ms.expected == pytest.approx(10 + p.steps)
    calls = sum(c.calls * c.call_ms.expected for c in p.components if c.call_ms)
    assert image(p) == pytest.approx(calls + p.host_ms.expected)
    assert p.image_ms is not None and p.image_ms.high == pytest.approx(p.image_ms.expected * (1 + CPU_BAND))
    assert image(p) > 1e-3 * sum(len(g.ops) for g in graphs)
    assert p.runtime_bytes == 0 and not any(c.structure_bytes for c in p.components)
    known.structure = Structure(session=1e6, half=10.0, other=5.0, kind=100.0)
    more = predict(tiny_unet, row, "fp16", ceilings=known)
    held = {n: structure.nodes(m, input_shapes(tiny_unet, n, m)) for n, m in models.items()}
    kinds = frozenset().union(*(n.kinds for n in held.values()))
    assert more.runtime_bytes == 1e6 + 100 * len(kinds)  # code of an operator is there once
    each = {c.name: c.structure_bytes for c in more.components}
    assert each == {n: 10 * h.halves + 5 * h.other for n, h in held.items()} and all(each.values())
    assert more.resident_bytes == p.resident_bytes + more.runtime_bytes + sum(each.values())


def test_ceilings_that_lack_a_kind_predict_nothing(tiny_unet: Artifact) -> None:
    p = predict(tiny_unet, find("cpu"), "fp16", ceilings=invented({"Neg||FLOAT"}))
    assert p.image_ms is None


def test_an_operator_that_is_not_counted_is_listed() -> None:
    from engines.cost.graph import walk

    nodes = [node("Odd", ["x"], ["y"], "strange"), node("Neg", ["x"], ["z"])]
    form = Form(walk(model(nodes, {"x": [4]}, ["y", "z"]), {"x": (4,)}))
    assert form.uncounted == {"strange.Odd": 1} and form.operations == 4


def test_what_is_not_counted_is_said(tiny_flux: Artifact) -> None:
    from engines.cost.prediction import _assumptions

    p = predict(tiny_flux, NANO, "fp16")
    odd = replace(p.components[0], uncounted={"strange.Odd": 2})
    assert f"Not counted in {odd.name}: strange.Odd (2)." in _assumptions(NANO, None, (odd,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 30}, "height is 30: give a multiple of 8"), ({"width": -8}, "width is -8"),
        ({"steps": 0}, "steps is 0"), ({"batch": 0}, "batch is 0"), ({"preset": "fp61"}, "fp61"),
    ],
)  # fmt: skip
def test_what_the_pipeline_cannot_take_is_refused(tiny_flux: Artifact, change: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        predict(tiny_flux, NANO, **change)  # type: ignore[arg-type]


def test_a_component_that_is_missing_is_refused(tiny_flux: Artifact) -> None:
    for role, gone in (("vae_decoder", ["vae_decoder"]), ("text_encoder", ["text_encoder", "text_encoder_2"])):
        parts = {n: c for n, c in tiny_flux.manifest["components"].items() if n not in gone}
        broken = Artifact(tiny_flux.root, tiny_flux.manifest | {"components": parts})
        with pytest.raises(UserError, match=f"has no {role}: rebuild"):
            predict(broken, NANO, "fp16")


def test_a_graph_that_does_not_fit_the_memory_is_not_opened(
    tiny_unet: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.cost import optimised

    model = tiny_unet.model("unet", "fp16")
    monkeypatch.setattr(optimised, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"Opening .*\.onnx here takes about .* predict it for another target"):
        optimised.optimised(model, input_shapes(tiny_unet, "unet", model))
