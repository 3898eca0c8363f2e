"""Where tokens lie, for denoisers whose graph takes rotary positions as inputs that their pipeline does not give."""

from __future__ import annotations

import numpy as np


def qwen_image_positions(rows: int, columns: int, text: int) -> tuple[np.ndarray, np.ndarray]:
    """`img_ids` [rows·columns, 3] and `txt_ids` [text, 3], float32: frame, row and column of every token.

    Rows and columns count from the middle of the image, and words from the number behind its largest half, in all
    three (Qwen-Image, arXiv 2508.02324, section 3.3).
    """
    image = np.zeros((rows, columns, 3), np.float32)
    image[..., 1] += np.arange(rows)[:, None] - (rows - rows // 2)
    image[..., 2] += np.arange(columns)[None] - (columns - columns // 2)
    words = max(rows // 2, columns // 2) + np.arange(text, dtype=np.float32)
    return image.reshape(-1, 3), np.repeat(words[:, None], 3, axis=1)
