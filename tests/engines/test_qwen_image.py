"""What Qwen-Image's pipeline says with numbers reaches its graph as tensors."""

from __future__ import annotations

import numpy as np
import pytest

from artifact.errors import UserError
from engines.qwen_image import completed


def feeds(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {"encoder_hidden_states": np.zeros((2, 3, 8), np.float32), **more}


def test_positions_count_from_the_middle_and_words_behind_the_largest_half() -> None:
    found = completed(feeds(), {"img_shapes": [[(1, 2, 3)]] * 2})
    rows, columns = found["img_ids"][:, 1].reshape(2, 3), found["img_ids"][:, 2].reshape(2, 3)
    assert rows.tolist() == [[-1] * 3, [0] * 3] and columns.tolist() == [[-2, -1, 0]] * 2
    assert not found["img_ids"][:, 0].any()
    assert found["txt_ids"].tolist() == [[1] * 3, [2] * 3, [3] * 3]


def test_no_mask_is_a_mask_of_no_padding_and_another_stays() -> None:
    shapes = {"img_shapes": [[(1, 2, 2)]] * 2}
    assert completed(feeds(), shapes)["encoder_hidden_states_mask"].tolist() == [[1] * 3] * 2
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    given = completed(feeds(encoder_hidden_states_mask=mask), shapes)
    np.testing.assert_array_equal(given["encoder_hidden_states_mask"], mask)


@pytest.mark.parametrize("shapes", [[(1, 2, 2), (1, 2, 2)], [(4, 2, 2)]])
def test_pictures_beside_the_prompt_and_videos_are_refused(shapes: list[tuple[int, int, int]]) -> None:
    with pytest.raises(UserError, match="draws one frame and reads no picture"):
        completed(feeds(), {"img_shapes": [shapes]})
