"""A result as `validate` returns it, made up, for tests of what reads one."""

from __future__ import annotations

import copy
from typing import Any

from engines.validation.latency import latency


def made_up() -> dict[str, Any]:
    """A run of 10 images of 100 ms, 4 steps of 20 ms in two calls each, held budgets."""
    images = [100.0 + 0.1 * (i % 3) for i in range(10)]
    calls = {"transformer": [10.0] * 80, "text_encoder": [1.5] * 20, "vae_decoder": [8.0] * 10}
    return copy.deepcopy(
        {
            "format": 1,
            "name": "made-up",
            "source": {"model": "made-up", "sha256": "a" * 64},
            "preset": "svdq-int4",
            "backend": "onnxruntime",
            "mode": "resident",
            "machine": {
                "cpu": "CPU", "cores": 2, "memory_bytes": 8 << 30, "load_1min": 0.1, "system": "Linux",
                "date": "2026-11-21T12:00:00+00:00", "accelerator": None,
            },
            "versions": {"python": "3.11", "onnxruntime": "1.31.1"},
            "settings": {
                "backend": "auto", "threads": None, "memory": None, "max_memory": None, "images": 10,
                "seconds": 120.0, "warm_up": 2, "prompts_sha256": "b" * 64,
            },
            "generation": {"num_inference_steps": 4, "height": 64, "width": 64},
            "latency": {"load_s": 0.5, **latency(images, calls, "transformer", 4), "trtexec": {}},
            "memory": {"probe": "rss", "before_load_bytes": 300_000_000, "peak_bytes": 500_000_000,
                       "end_bytes": 480_000_000},
            "disk": {"components": {"transformer": 7_000_000}, "plans": {}, "total_bytes": 7_000_000},
            "fidelity": {
                "compared": "the 16-bit references stored, 2 prompts", "prompts": 2,
                "psnr_db": {"mean": 40.0, "min": 38.0, "std": 2.0, "of_mean_mse": 39.5, "each": [38.0, 42.0]},
                "ssim": {"mean": 0.99, "min": 0.98, "std": 0.01, "each": [0.98, 1.0]},
                "latent_cosine": [0.9999, 0.999, 0.998, 0.997],
            },
            "prompt_score": {"right": 0.5, "colour": 1.0, "of": 2},
            "budgets": [],
            "regression": None,
            "notes": [],
            "exit_code": 0,
        }
    )  # fmt: skip
