"""The memory modes: which graphs are in memory when, the same image from each, and what happens without memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import engines
from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.faults import NotFinite, OutOfMemory
from engines.modes import MODES, choose_mode, estimated_bytes, parse_bytes
from engines.residency import Residency, Staged
from tests.engines.tiny import PROMPTS, Tiny

ROLES = {"denoiser": "denoiser", "clip": "text_encoder", "t5": "text_encoder", "decoder": "vae_decoder",
         "encoder": "vae_encoder"}  # fmt: skip


class Fake:
    """A runner that keeps a log of what was open when, and fails as it is told."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self.latencies_ms, self.world = name, [], world
        self.inputs = self.outputs = ["x"]

    latencies_ms: list[float]

    def open(self) -> Fake:
        self.world.opened_by[self.name] = threading.current_thread()
        self.world.before_open(self.name)
        self.world.open.add(self.name)
        self.world.log.append((f"open {self.name}", frozenset(self.world.open)))
        return self

    def close(self) -> None:
        self.world.open.discard(self.name)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        assert self.name in self.world.open, f"{self.name} ran without being open"
        self.world.before_run(self.name)
        self.world.log.append((f"run {self.name}", frozenset(self.world.open)))
        return {"x": np.zeros(1)}


class World:
    """Five runners under a residency, and what happened to them."""

    def __init__(self, mode: str, encodes: bool = False) -> None:
        self.log: list[tuple[str, frozenset[str]]] = []
        self.open: set[str] = set()
        self.opened_by: dict[str, threading.Thread] = {}
        self.watched: list[str] = []
        self.before_open = self.before_run = lambda name: None
        self.residency = Residency({n: self.runner(n) for n in ROLES}, ROLES, mode, self.watched.append, encodes)

    before_open: Any
    before_run: Any

    def runner(self, name: str) -> Any:
        return Fake(name, self)

    def image(self, steps: int = 4, encoder: bool = False) -> None:
        """The calls of one image with two prompts (the second is the negative one)."""
        for name in ("clip", "t5") * 2 + (("encoder",) * encoder):
            self.residency.run(name, {})
        for step in range(1, steps + 1):
            self.residency.step(step, steps)
            self.residency.run("denoiser", {})
        self.residency.run("decoder", {})

    def beside(self, what: str) -> list[set[str]]:
        """What was open whenever `what` happened."""
        return [set(state) for said, state in self.log if said == what]

    @property
    def most(self) -> int:
        return max(len(state) for _, state in self.log)


def test_resident_opens_everything_once_and_the_image_encoder_when_it_is_asked_for() -> None:
    world = World("resident")
    world.residency.load()
    assert world.open == set(ROLES) - {"encoder"}
    world.image()
    world.image(encoder=True)
    assert sorted(s for s, _ in world.log if s.startswith("open")) == sorted(f"open {n}" for n in ROLES)
    world.residency.close()
    assert world.open == set()


def test_resident_opens_the_image_encoder_with_the_others_where_every_image_is_drawn_from_a_picture() -> None:
    world = World("resident", encodes=True)
    world.residency.load()
    assert world.open == set(ROLES)
    world.residency.close()


def test_pipelined_keeps_the_denoiser_and_frees_the_encoders_before_its_first_step() -> None:
    world = World("pipelined")
    world.residency.load()
    assert world.open == {"denoiser"}
    for encoder in (False, True):
        world.log.clear()
        world.image(encoder=encoder)
        assert not any(state & {"clip", "t5"} for state in world.beside("run denoiser"))
        assert not any("decoder" in state for s in ("clip", "t5", "encoder") for state in world.beside(f"run {s}"))
        assert all("denoiser" in state for _, state in world.log)
        assert len(world.beside("open clip")) == len(world.beside("open t5")) == 1  # for both prompts
        assert world.open == {"denoiser"}
    assert world.beside("run encoder") == [{"denoiser", "encoder"}]
    world.residency.close()


def test_the_decoder_is_loaded_by_another_thread_while_the_last_steps_run() -> None:
    world = World("pipelined")
    world.residency.load()
    ready, seen = threading.Event(), []

    def wait_for_a_step(name: str) -> None:
        if name == "decoder":
            assert ready.wait(20), "no step ran while the decoder was being loaded"

    def during(name: str) -> None:
        if name == "denoiser":
            seen.append("decoder" in world.opened_by)
            if len(seen) == 4:
                ready.set()

    world.before_open, world.before_run = wait_for_a_step, during
    world.image(steps=4)
    assert seen == [False, False, True, True]
    assert world.opened_by["decoder"] is not threading.main_thread()
    assert not world.opened_by["decoder"].is_alive()
    assert [w for w in world.watched if not w.startswith("free")] == [
        "load denoiser", "load clip", "load t5", "step 1", "step 2", "step 3", "load decoder", "step 4",
    ]  # fmt: skip
    assert world.watched[-1] == "free decoder"


def test_streaming_without_weight_streaming_keeps_one_graph_at_a_time() -> None:
    world = World("streaming")
    world.residency.load()
    assert world.open == set()
    world.image(encoder=True)
    assert world.most == 1


def test_streaming_with_weight_streaming_is_pipelined_and_tells_the_runners() -> None:
    class Streams(Fake):
        stream_weights, kept_weights, can_stream = False, 0, True

        def open(self) -> Fake:
            assert self.stream_weights
            return super().open()

    class Streaming(World):
        def runner(self, name: str) -> Any:
            return Streams(name, self)

    world = Streaming("streaming")
    world.residency.load()
    assert world.open == {"denoiser"}
    world.image()
    assert world.opened_by["decoder"] is not threading.main_thread()
    world.residency.close()


def test_engines_that_were_not_built_for_streaming_are_one_at_a_time() -> None:
    class Fixed(Fake):
        stream_weights, kept_weights, can_stream = False, 0, False

    class Mixed(World):
        def runner(self, name: str) -> Any:
            made = Fixed(name, self)
            made.can_stream = name != "denoiser"  # those that can make no room for the one that cannot
            return made

    world = Mixed("streaming")
    world.residency.load()
    assert world.open == set()
    world.image(encoder=True)
    assert world.most == 1 and not world.residency.runners["denoiser"].stream_weights
    assert world.residency.runners["t5"].stream_weights


def test_a_failing_background_load_is_raised_in_the_caller() -> None:
    world = World("pipelined")
    world.residency.load()

    def fail(name: str) -> None:
        if name == "decoder" and threading.current_thread() is not threading.main_thread():
            raise UserError("decoder.onnx is missing")

    world.before_open = fail
    with pytest.raises(UserError, match="decoder.onnx is missing"):
        world.image()
    world.before_open = lambda name: None
    world.image()  # and the next image is drawn
    world.residency.close()
    assert world.open == set()


def test_a_decoder_that_is_not_asked_for_is_freed_by_the_next_image() -> None:
    world = World("pipelined")
    world.residency.load()
    world.residency.step(4, 4)
    world.residency.run("denoiser", {})  # an image that stays latents
    world.log.clear()
    world.image()
    assert not any("decoder" in state for state in world.beside("run clip"))
    world.residency.close()


def test_closing_waits_for_the_loader_and_frees_what_it_loaded() -> None:
    world = World("pipelined")
    world.residency.load()
    begun, go = threading.Event(), threading.Event()

    def slowly(name: str) -> None:
        begun.set()
        assert go.wait(20)

    world.before_open = slowly
    world.residency.step(1, 1)
    assert begun.wait(20)
    threading.Timer(0.1, go.set).start()
    world.residency.close()
    assert not world.opened_by["decoder"].is_alive()
    assert world.open == set()
    with pytest.raises(UserError, match="was closed"):
        world.residency.run("denoiser", {})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("broken")])
def test_a_load_that_is_interrupted_leaves_nothing_open(mode: str, error: Any) -> None:
    world = World(mode)
    last = {"resident": "decoder", "pipelined": "denoiser"}.get(mode)
    if last is None:
        return

    def stop(name: str) -> None:
        if name == last:
            raise error

    world.before_open = stop
    with pytest.raises((KeyboardInterrupt, UserError)):
        world.residency.load()
    assert world.open == set()


def limited(world: World, graphs: int) -> None:
    """Let no more than so many graphs fit."""

    def refuse(name: str) -> None:
        if len(world.open) >= graphs:
            raise OutOfMemory(f"{name} does not fit")

    world.before_open = refuse


def test_out_of_memory_while_loading_takes_the_next_mode_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    world = World("resident")
    limited(world, 3)
    world.residency.load()
    assert world.residency.mode == "pipelined" and world.open == {"denoiser"}
    world.image()
    assert world.most == 3
    limited(world, 2)
    world.image()
    assert world.residency.mode == "streaming" and len(world.residency.notes) == 2
    world.log.clear()
    limited(world, 1)
    world.image()
    assert world.most == 1
    assert "Memory ran out while loading" in world.residency.notes[0]
    assert "in resident mode: continuing in pipelined mode" in world.residency.notes[0]
    assert world.residency.notes[0] in capsys.readouterr().err
    assert world.residency.notes[1].endswith("in pipelined mode: continuing in streaming mode, which is slower.")


def test_out_of_memory_in_the_loader_takes_the_next_mode() -> None:
    world = World("pipelined")
    world.residency.load()
    limited(world, 1)
    world.open.discard("denoiser")
    world.residency._open.clear()
    world.residency.step(4, 4)
    world.residency.run("denoiser", {})
    world.residency.run("decoder", {})
    assert world.residency.mode == "streaming"


def test_out_of_memory_while_running_makes_room_and_runs_again() -> None:
    world = World("resident")
    world.residency.load()
    failed = []

    def once(name: str) -> None:
        if name == "denoiser" and not failed:
            failed.append(name)
            raise OutOfMemory("no room for what lies between the layers")

    world.before_run = once
    world.image()
    assert world.residency.mode == "pipelined" and failed
    assert "while running 'denoiser'" in world.residency.notes[0]


def test_out_of_memory_in_the_smallest_mode_is_the_callers() -> None:
    world = World("resident")
    limited(world, 0)
    world.residency.load()
    with pytest.raises(OutOfMemory, match="clip does not fit"):
        world.image()
    assert world.residency.mode == "streaming" and world.open == set()


def test_a_number_that_is_not_finite_names_component_and_step() -> None:
    world = World("resident")
    world.residency.load()

    def spoil(name: str) -> None:
        raise NotFinite(name, "out_sample", "call 7")

    world.before_run = spoil
    world.residency.step(3, 20)
    with pytest.raises(NotFinite, match="'out_sample' of 'denoiser' holds NaN or infinity in step 3 of 20"):
        world.residency.run("denoiser", {})
    with pytest.raises(NotFinite, match="of 'clip' holds NaN or infinity in call 7"):
        world.residency.run("clip", {})


def test_a_staged_component_is_a_runner() -> None:
    world = World("pipelined")
    staged = Staged("clip", world.residency)
    assert staged.inputs == ["x"] and "clip" in world.open
    assert "x" in staged.run({}) and staged.latencies_ms is staged.runner.latencies_ms
    staged.close()
    assert "clip" not in world.open and staged.open() is staged and staged.outputs == ["x"]


@pytest.mark.parametrize("family", ["flux", "stable_diffusion"])
def test_every_mode_draws_the_same_image(family: str, request: pytest.FixtureRequest) -> None:
    tiny: Tiny = request.getfixturevalue(family)
    drawn, seen = {}, {}
    for mode in MODES:
        seen[mode] = []
        with engines.load(tiny.root, memory=mode, verify=False, threads=1, watch=seen[mode].append) as pipe:
            assert pipe.mode == mode
            drawn[mode] = np.asarray(pipe(PROMPTS[0], seed=3))
            again = np.asarray(pipe(PROMPTS[0], seed=3))
        assert np.array_equal(drawn[mode], again)
        assert [w for w in seen[mode] if w.startswith("step")] == ["step 1", "step 2", "step 3"] * 2
        assert threading.active_count() == 1 or all(not t.name.startswith("load ") for t in threading.enumerate())
    assert np.array_equal(drawn["resident"], drawn["pipelined"])
    assert np.array_equal(drawn["resident"], drawn["streaming"])
    denoiser = Artifact.open(tiny.root, verify=False).component("denoiser")[0]
    assert seen["resident"].count(f"load {denoiser}") == seen["pipelined"].count(f"load {denoiser}") == 1
    assert seen["streaming"].count(f"load {denoiser}") == 2
    order = seen["pipelined"]
    assert order.index("free text_encoder") < order.index("step 1") < order.index("load vae_decoder")
    assert order.index("load vae_decoder") < order.index("step 3")


def test_a_closed_pipeline_is_refused(flux: Tiny) -> None:
    with engines.load(flux.root, verify=False) as pipe:
        pass
    with pytest.raises(UserError, match="was closed: load the artifact again"):
        pipe(PROMPTS[0])


@pytest.mark.parametrize(
    ("text", "count"), [("600MB", 600_000_000), ("2GiB", 2**31), (" 1.5 gb", 1_500_000_000), ("7", 7), (1024, 1024)]
)
def test_amounts_of_memory(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "3 apples", "-2GB", "0", "1e9", "2 Gi B", "nanMB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no amount of memory"):
        parse_bytes(text)


def test_a_budget_takes_the_fastest_mode_within_it(flux: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact.open(flux.root, verify=False)
    needs = {"resident": 3_000_000, "pipelined": 2_000_000, "streaming": 1_000_000}
    monkeypatch.setattr("engines.modes.estimated_bytes", lambda a, p, b, mode: needs[mode])
    chosen = [choose_mode(artifact, "fp16", "onnxruntime", None, f"{mb}MB") for mb in (4, 3, 2.5, 1)]
    assert chosen == ["resident", "resident", "pipelined", "streaming"]
    with pytest.raises(UserError, match="needs about 1 MB in streaming mode, more than --max-memory 0 MB"):
        choose_mode(artifact, "fp16", "onnxruntime", None, "0.4MB")
    with pytest.raises(UserError, match="about 3 MB in resident mode.*preset or mode"):
        choose_mode(artifact, "fp16", "onnxruntime", "resident", "2MB")
    with pytest.raises(UserError, match="no memory mode 'pipeline': did you mean 'pipelined'"):
        choose_mode(artifact, "fp16", "onnxruntime", "pipeline", None)


def test_estimates_fall_from_mode_to_mode(flux: Tiny) -> None:
    artifact = Artifact.open(flux.root, verify=False)
    needs = [estimated_bytes(artifact, "fp16", "onnxruntime", mode) for mode in MODES]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 3
