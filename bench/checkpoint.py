"""A full-size checkpoint without a hub: python bench/checkpoint.py flux --out DIR

Writes a diffusers directory that `python -m export.build --model DIR` takes: the published hyper-parameters, shapes
from diffusers' and transformers' own classes, sharded safetensors in the published dtype. The weights are random, with
a decaying spectrum and outlier channels, so that time, memory and layer errors can be measured on any machine; what
such a model draws is noise. Text encoders have 2 layers of the true width unless --text-encoders full is given.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without an installation
from artifact.command import reported  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=("flux", "sdxl", "pixart", "sana"))
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the weights [default: 0]")
    parser.add_argument(
        "--text-encoders", choices=("shallow", "full"), default="shallow", help="their depth [default: shallow]"
    )
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="tiny: the same make at small width, for tests"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # two are no faster here, and one draws the same numbers wherever it runs
    with reported(debug=False):
        from bench.drawn.architectures import ARCHITECTURES  # late: --help and a bad flag should not wait for diffusers
        from bench.drawn.checkpoint import write_checkpoint

        began = time.perf_counter()
        write_checkpoint(
            ARCHITECTURES[options.architecture], options.out, options.seed, options.text_encoders == "full",
            options.scale == "tiny", say=print,
        )  # fmt: skip
    size = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.out}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
