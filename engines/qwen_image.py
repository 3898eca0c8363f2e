"""Qwen-Image's pipeline names the image's size and leaves out a mask of no padding; its graph reads both as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.positions import qwen_image_positions


def completed(feeds: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`feeds` of the denoiser with `img_ids`, `txt_ids` and, where the pipeline gave none, a mask of ones.

    `given` are the keywords of the call, of which `img_shapes` is read: for every image a list of one
    (frames, rows, columns) in tokens. Raises UserError where a list holds several, as for edited pictures.
    """
    shapes = given["img_shapes"][0]
    if len(shapes) != 1 or shapes[0][0] != 1:
        raise UserError(f"The denoiser was given images of {shapes}: its graph draws one frame and reads no picture.")
    _, rows, columns = shapes[0]
    batch, words = feeds["encoder_hidden_states"].shape[:2]
    img_ids, txt_ids = qwen_image_positions(rows, columns, words)
    everywhere = {"encoder_hidden_states_mask": np.ones((batch, words), np.int64)}
    return {**everywhere, **feeds, "img_ids": img_ids, "txt_ids": txt_ids}
