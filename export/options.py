"""What a build is asked for: the flags of the command and the keys of its YAML file, one to one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from artifact.errors import UserError, nearest
from engines import targets
from engines.modes import parse_bytes
from passes.presets import PRESETS
from passes.solver.cluster import Cluster
from plugins.svdq_linear.spec import GROUP_SIZES

BASELINE = "fp16"
#: Less than this much memory is a unit that was forgotten.
LEAST_MEMORY = 1_000_000


@dataclass(frozen=True)
class Options:
    """One build. `None` means: as the model or the preset has it.

    model        bundled name, directory in the diffusers layout, or hub id
    preset       what to build; the artifact's default
    compare      further presets, built into the same artifact and reported side by side
    target       machine to build for, or "auto"
    out          artifact directory; default out/<model name>
    rank         of the low-rank branch; 0 = no branch
    reserve_rank rank that the plugin form keeps free for a LoRA, beyond that of the branch
    group_size   channels that share a scale
    dtype        T of the graphs: "float16" or "float32"
    prompts      file of calibration prompts, one per line
    calibration  how many of them are used
    rows         calibration samples kept per layer input
    data_free    no calibration: the solver sees weights alone
    pictures     directory of what the pipeline reads beside the calibration prompts, where it does
    reference_prompts, references  file and number of the prompts that the report is measured on; 0: no measurement
    reference_pictures  directory of their pictures; default `pictures`
    keep_fp16    whether the 16-bit graphs of quantised components are written; None: where they are small
    text_encoder_bits  "4" (weights alone), "16", or "auto": 4 bits for large ones
    steps        denoising steps of calibration and references
    seed         of calibration, references and the solver's randomised SVD
    jobs         worker processes; default one per core
    cache        content-addressed store; default <out>/.cache
    cache_limit  GB that the store may have; what was used least recently goes, what this build uses stays
    executor     what solves layers: "local", processes here, or "ray", a Ray cluster
    ray_address  of that cluster; default RAY_ADDRESS, else a Ray that starts here
    max_memory   that the workers take together, and the weights of the 16-bit pipeline, such as "8GB"; default what is
                 available
    """

    model: str = "shapes-dit"
    preset: str = "svdq-int4"
    compare: tuple[str, ...] = ()
    target: str = "auto"
    out: Path | None = None
    rank: int | None = None
    reserve_rank: int = 0
    group_size: int | None = None
    dtype: str = "float16"
    prompts: Path | None = None
    pictures: Path | None = None
    calibration: int = 32
    rows: int = 512
    data_free: bool = False
    reference_prompts: Path | None = None
    references: int = 16
    reference_pictures: Path | None = None
    keep_fp16: bool | None = None
    text_encoder_bits: str = "auto"
    steps: int | None = None
    seed: int = 0
    jobs: int | None = None
    cache: Path | None = None
    cache_limit: float | None = None
    executor: str = "local"
    ray_address: str | None = None
    max_memory: str | None = None

    @property
    def cluster(self) -> Cluster | None:
        """The Ray cluster to solve on, None for processes here."""
        return Cluster(self.ray_address) if self.executor == "ray" else None

    @property
    def memory_limit(self) -> int | None:
        """max_memory in bytes. Raises UserError where it is none, or less than anything takes."""
        limit = None if self.max_memory is None else parse_bytes(self.max_memory)
        if limit is not None and limit < LEAST_MEMORY:
            raise UserError(f"--max-memory is {limit} bytes: give an amount with its unit, such as 8GB.")
        return limit

    @property
    def presets(self) -> list[str]:
        """The presets that were asked for, the default first."""
        return list(dict.fromkeys([self.preset, *self.compare]))

    @property
    def calibrates(self) -> bool:
        """Whether the 16-bit pipeline runs so that layers are solved on what they see."""
        return not self.data_free and any(PRESETS[p].quantises for p in self.presets)

    def check(self) -> None:
        """Raises UserError for a value that no build can have, before anything is read or written."""
        target = targets.find(self.target)
        for name in self.presets:
            targets.check_preset(target, name)
            if name not in PRESETS:
                raise UserError(f"There is no preset {name!r}: {nearest(name, list(PRESETS))}")
        if self.dtype not in ("float16", "float32"):
            raise UserError(f"--dtype is {self.dtype!r}: give float16 or float32.")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise UserError(f"--group-size is {self.group_size}: the kernels and the format have 64 and 128.")
        if self.rank is not None and self.rank < 0:
            raise UserError(f"--rank is {self.rank}: give 0 for no low-rank branch, or a positive number.")
        if self.reserve_rank < 0:
            raise UserError(
                f"--reserve-rank is {self.reserve_rank}: give 0, or the rank of the LoRAs to make room for."
            )
        if self.text_encoder_bits not in ("auto", "4", "16"):
            raise UserError(f"--text-encoder-bits is {self.text_encoder_bits!r}: give 4, 16 or auto.")
        if self.data_free and self.prompts is not None:
            raise UserError("--data-free calibrates on nothing: leave out --prompts, or --data-free.")
        if self.data_free and self.pictures is not None:
            raise UserError(
                "--data-free calibrates on nothing: leave out --pictures (--reference-pictures names those of the "
                "references), or --data-free."
            )
        if self.references < 0:
            raise UserError(f"--references is {self.references}: give a number of prompts, or 0 for no measurement.")
        for flag in ("calibration", "rows", "steps", "jobs"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UserError(f"--{flag} is {value}: give 1 or more.")
        if self.cache_limit is not None and not 0 < self.cache_limit < math.inf:
            raise UserError(f"--cache-limit is {self.cache_limit}: give the GB that the store may have, such as 50.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: give 0 or more.")
        self._check_executor()

    def _check_executor(self) -> None:
        if self.executor not in ("local", "ray"):
            raise UserError(f"--executor is {self.executor!r}: give local or ray.")
        if self.cluster is None and self.ray_address is not None:
            raise UserError(f"--ray-address is {self.ray_address!r}, but --executor is local: add --executor ray.")
        if self.memory_limit is not None and self.cluster is not None and self.cluster.known is not None:
            raise UserError(
                f"--max-memory is for workers here, but layers are solved on {self.cluster.known}: leave it out, and "
                "give machines their limit with `ray start --memory`."
            )
        if self.cluster is not None:
            self.cluster.check()


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a YAML file by the names of the flags, dashes and underscores alike.

    Raises UserError where the file cannot be read, is no mapping, or has a key that is no flag's name.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as e:
        raise UserError(f"--config {path} cannot be read ({e.strerror}): give a YAML file.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f"--config {path} is not YAML ({str(e).splitlines()[0]}): correct it.") from None
    if not isinstance(found, dict):
        raise UserError(f"--config {path} holds a {type(found).__name__}: give a mapping of flag names to values.")
    known = [f.name for f in fields(Options)]
    config = {str(k).replace("-", "_"): v for k, v in found.items()}
    for key in config:
        if key not in known:
            raise UserError(f"--config {path} has a key {key!r}: {nearest(key, known)}")
    compare = config.get("compare")
    if isinstance(compare, list):
        config["compare"] = ",".join(str(c) for c in compare)
    return config
