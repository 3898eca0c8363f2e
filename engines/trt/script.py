"""The same build as a shell script, for a device without our Python: engines/build-<preset>.sh in the artifact.

It holds the exact trtexec commands, picks the flags of the TensorRT that it finds, and leaves the records that
plan.find reads. What it cannot do is judge every layer: it counts those in the plugin.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from artifact.errors import UserError
from artifact.files import written_whole
from artifact.manifest import Artifact
from engines.targets import Target
from engines.trt import graph, plan, profiles, trtexec
from engines.trt.job import Job
from engines.trt.plugin import DIRECTORY as PLUGINS
from engines.trt.plugin import name as plugin_name
from engines.trt.versions import NO_REFIT, Version

#: One version of every set of flags that trtexec has.
MAJORS = {8: Version(8, 6), 10: Version(10, 3), 11: Version(11, 0)}


def path(artifact: Artifact, preset: str) -> Path:
    """Where the script lies."""
    return artifact.root / plan.DIRECTORY / f"build-{preset}.sh"


def write(artifact: Artifact, preset: str, target: Target, jobs: Sequence[Job]) -> Path:
    """Write the script that builds `jobs` on a `target`; its path. The jobs' own versions play no role."""
    made = path(artifact, preset)
    with written_whole(made) as partial:
        partial.write_text(text(artifact, preset, target, jobs), encoding="utf-8")
        partial.chmod(0o755)
    return made


def text(artifact: Artifact, preset: str, target: Target, jobs: Sequence[Job]) -> str:
    """The script, for bash."""
    lines = _HEAD.format(
        name=artifact.root.name, preset=shlex.quote(preset), title=target.title, sm=target.sm,
        capability=target.compute_capability, source=artifact.manifest["source"]["sha256"],
        plugin8=f"{PLUGINS}/sm{target.sm}/{plugin_name(8)}", plugin10=f"{PLUGINS}/sm{target.sm}/{plugin_name(10)}",
    ).splitlines()  # fmt: skip
    if any(job.refit for job in jobs):
        lines += ["", _NO_REFIT]
    for job in jobs:
        lines += ["", *_component(artifact, job)]
    return "\n".join([*lines, "", 'echo "The engines are in $PWD/engines."', ""])


def _component(artifact: Artifact, job: Job) -> list[str]:
    """The lines that build one engine."""
    fourbit = len(graph.read(job.model).plugins)
    lines = [f"start {shlex.quote(job.component)} {fourbit}", 'if [ -n "$wanted" ]; then', "  case $major in"]
    for major, version in MAJORS.items():
        try:
            words = _arguments(artifact, replace(job, version=version))
        except UserError as e:  # what this version cannot do
            lines.append(f"    {major}) fail {shlex.quote(str(e))} ;;")
            continue
        lines += [f"    {major}) arguments=(", *(f"      {_quoted(word)}" for word in words), "    ) ;;"]
    fields = {
        "format": plan.FORMAT, "component": job.component, "preset": job.preset, "sm": str(job.sm),
        "onnx_sha256": plan.graph_sha256(artifact, job.model), "source_sha256": artifact.manifest["source"]["sha256"],
        "profiles": [profiles.to_json(job.profile)], "refittable": job.refit, "builder": "trtexec",
        "weight_streaming": job.weight_streaming, "plugin_in_plan": bool(fourbit and job.plugin_in_plan),
    }  # fmt: skip
    record = json.dumps(fields)[1:-1]
    return [*lines, "  esac", f"  finish {fourbit} {shlex.quote(record)}", "fi"]


def _arguments(artifact: Artifact, job: Job) -> list[str]:
    """trtexec's words with the script's variables in them."""
    fourbit = bool(graph.read(job.model).plugins)
    model = job.model.resolve().relative_to(artifact.root.resolve()).as_posix()
    files = trtexec.Files(model, "$partial", "$layers", "$cache", "$plugin" if fourbit else None)
    return trtexec.build_arguments(job, files)


def _quoted(word: str) -> str:
    """A word for bash in which only our own variables are expanded."""
    if re.search(r"\$(partial|layers|cache|plugin)$", word):
        return f'"{word}"'
    return f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)


_NO_REFIT = f"""\
if [ "$major.$minor" = {NO_REFIT[0]}.{NO_REFIT[1]} ]; then
  fail "TensorRT $version can lose a bias of an engine that is built to be refitted: use another version."
fi"""
_HEAD = """\
#!/usr/bin/env bash
# Builds the engines of {name} for {preset} on a {title}: run it on that device, from anywhere.
# TRTEXEC names another trtexec than that of PATH or JetPack's. What is built already is kept.
# `python -m engines.build` on the device does the same and checks the type of every layer.
set -euo pipefail
cd "$(dirname "$0")/.."
preset={preset} sm={sm} wanted=

fail() {{ echo "error: $1" >&2; exit 2; }}

trtexec=${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}
[ -x "$trtexec" ] || fail "There is no trtexec ($trtexec): sudo apt-get install tensorrt, or set TRTEXEC."
number=$("$trtexec" --help 2>&1 | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | sed -n 1p)
[ -n "$number" ] || fail "$trtexec does not say which TensorRT it is of."
if [ "$number" -ge 100000 ]; then scale=10000; else scale=1000; fi
major=$((number / scale)) minor=$((number % scale / 100)) patch=$((number % 100))
version=$major.$minor.$patch
plugin={plugin10}
if [ "$major" -eq 8 ]; then plugin={plugin8}; fi
if [ "$major" -lt 8 ] || {{ [ "$major" -eq 8 ] && [ "$minor" -lt 6 ]; }} || [ "$major" -eq 9 ] ||
  {{ [ "$major" -eq 10 ] && [ "$minor" -lt 3 ]; }} || [ "$major" -gt 11 ]; then
  fail "TensorRT $version is not supported: use 8.6, or 10.3 to 11."
fi
cache=engines/timing.sm$sm.trt$version.cache
rm -f engines/*.partial

sum() {{ sha256sum "$1" | cut -d ' ' -f 1; }}

# start COMPONENT FOUR_BIT_LAYERS: names the files; leaves $wanted empty where the engine is there.
start() {{
  engine=engines/$1.$preset.sm$sm.trt$major.$minor
  plan=$engine.plan layers=$engine.layers.json partial=$engine.plan.$$.partial log=$engine.log wanted=1
  if [ -s "$plan" ] && [ -s "$plan.json" ]; then echo "$plan is there already."; wanted=; return; fi
  if [ "$2" -gt 0 ] && [ ! -f "$plugin" ]; then
    fail "There is no $plugin, which the 4-bit layers run in: build it with python -m plugins.build."
  fi
  echo "Building $plan (minutes; log: $log)"
}}

# finish FOUR_BIT_LAYERS RECORD: runs trtexec with $arguments, checks, and puts the files in their place.
finish() {{
  trap 'rm -f "$partial"' EXIT
  if ! "$trtexec" "${{arguments[@]}}" >"$log" 2>&1; then
    if [ -f "$cache" ] && grep -qi '\\[E\\].*timing *cache' "$log"; then
      echo "warning: the timing cache $cache is ignored: it does not fit." >&2
      rm -f "$cache" "$cache.json"
      "$trtexec" "${{arguments[@]}}" >"$log" 2>&1 || fail "trtexec failed: see $log."
    else
      fail "trtexec failed: $(grep -m 1 '\\[E\\]' "$log" || echo "see $log")"
    fi
  fi
  grep -q 'Compute Capability: {capability}' "$log" ||
    fail "This GPU is not sm_$sm ({title}): build for this machine with python -m engines.build --target auto."
  local found
  found=$({{ grep -o '"LayerType" *: *"Plugin' "$layers" || true; }} | wc -l)
  [ "$found" -ge "$1" ] || fail "$1 layers must run in the plugin and $found do: see $layers."
  local hash=null
  if [ "$1" -gt 0 ]; then hash=\\"$(sum "$plugin")\\"; fi
  mv "$partial" "$plan"
  printf '{{%s, "tensorrt": "%s", "plugin_sha256": %s, "plan_sha256": "%s", "bytes": %s}}\\n' \\
    "$2" "$version" "$hash" "$(sum "$plan")" "$(wc -c <"$plan")" >"$plan.json.$$.partial"
  mv "$plan.json.$$.partial" "$plan.json"
  if [ -f "$cache" ]; then
    printf '{{"sm": "%s", "tensorrt": "%s", "sha256": "%s"}}\\n' "$sm" "$version" "$(sum "$cache")" >"$cache.json"
  fi
  rm -f "$log"
}}
"""
