"""Whether every machine of a Ray cluster can solve our layers: sees our files, and computes with the same versions."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from passes.solver.worker import ONE_THREAD

#: Seconds that a machine has to answer: it starts Python and imports torch, over a network's file system perhaps.
PATIENCE = 120.0

#: What `numerics` says of a machine itself. It may differ: it is in the keys of what the machine solves.
OWN = ("machine", "vectors", "cpu")


def check_nodes(store: Path, files: Sequence[Path]) -> int:
    """Ask every machine that has CPUs whether it can work for us; the least memory, in bytes, that Ray has on one.

    `store` is where results meet, `files` what layers are loaded from; relative paths count from our working directory.
    Raises UserError, naming the machine, where it does not see them under the same paths, has other versions of what
    computes, or does not answer.
    """
    import ray
    from ray import exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from passes.solver.key import numerics

    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    token = store / f"probe-{uuid.uuid4().hex}"
    sizes = {str(file): file.stat().st_size for file in files}
    store.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        remote = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": ONE_THREAD})(look)
        refs = {}
        for name in (node["NodeID"] for node in nodes):
            there = remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False))
            refs[name] = there.remote(os.getcwd(), str(token), name, sizes, numerics())
        for node in nodes:
            try:
                found = ray.get(refs[node["NodeID"]], timeout=PATIENCE)
            except exceptions.RayTaskError as error:
                said = str(error.cause).strip().splitlines()[0]
                found = f"cannot run svdq-edge's solver ({said}): install the same version of it there."
            except exceptions.RayError as error:
                if not any(n["Alive"] for n in ray.nodes() if n["NodeID"] == node["NodeID"]):
                    continue  # it went just now, and nothing will be given to it
                found = f"does not answer ({type(error).__name__}): repair it, or take it out with `ray stop`."
            if not found and not _reply(token, node["NodeID"]).exists():
                found = f"writes to another {store.absolute()} than this one: {MOUNT}"
            if found:
                raise UserError(f"{_name(node)} of the Ray cluster {found}")
    finally:
        for file in store.glob(f"{token.name}*"):
            file.unlink(missing_ok=True)
    return int(min((n["Resources"].get("memory", 0) for n in nodes), default=0))


MOUNT = "mount it under the same path on every machine."


def look(folder: str, token: str, node: str, sizes: Mapping[str, int], wanted: Mapping[str, str]) -> str:
    """On a machine of the cluster: what keeps it from working for us, as the rest of a sentence; "" if nothing does."""
    enter(folder)
    store = os.path.join(folder, os.path.dirname(token))
    if not os.path.exists(token):
        return f"does not see the store {store}: {MOUNT}"
    try:
        _reply(Path(token), node).touch()
    except OSError as error:
        return f"cannot write to the store {store} ({error.strerror}): give it the right to."
    for file, size in sizes.items():
        seen = os.path.getsize(file) if os.path.exists(file) else None
        if seen is None:
            return f"does not see {os.path.join(folder, file)}: {MOUNT}"
        if seen != size:
            return f"sees {seen} bytes in {os.path.join(folder, file)}, this machine {size}: {MOUNT}"
    from passes.solver.key import numerics

    found = numerics()
    other = [f"{k} {found[k]} instead of {wanted[k]}" for k in wanted if k not in OWN and found[k] != wanted[k]]
    return f"computes with {', '.join(other)}: install the same versions on every machine." if other else ""


def enter(folder: str) -> None:
    """Make `folder` the working directory where there is one: relative paths are meant from there."""
    with suppress(OSError):
        os.chdir(folder)


def _reply(token: Path, node: str) -> Path:
    return token.with_name(f"{token.name}-{node}")


def _name(node: Mapping[str, Any]) -> str:
    name, address = node["NodeName"], node["NodeManagerAddress"]
    return f"Machine {name}" if name == address else f"Machine {name} ({address})"
