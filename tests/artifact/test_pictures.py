"""Pictures beside prompts: which file belongs to which prompt, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifact.errors import UserError
from artifact.pictures import (
    PictureRule,
    any_pictures,
    read_image,
    read_pictures,
    same_pictures,
    write_pictures,
)

FILL, CONTROL = PictureRule("image", "mask_image"), PictureRule("control_image")
SIZE = 16, 24  # height, width


def plain(value: int, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new(mode, size[::-1], (value,) * len(mode) if len(mode) > 1 else value)


def save(folder: Path, **images: Image.Image) -> Path:
    """Every image as NAME.png; "__" in a name is a dot."""
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        image.save(folder / f"{name.replace('__', '.')}.png")
    return folder


def firsts(images: np.ndarray) -> list[int]:
    return [int(i[0, 0, 0]) for i in images]


def test_pictures_come_in_the_order_of_their_names_and_from_the_start_again(tmp_path: Path) -> None:
    folder = save(tmp_path / "given", b=plain(20), a=plain(10), c=plain(30))
    (folder / "notes.txt").write_text("not a picture")
    found = read_pictures(folder, CONTROL, 5, *SIZE)
    assert firsts(found.images) == [10, 20, 30, 10, 20] and len(found) == 5
    assert found.images.shape == (5, *SIZE, 3) and found.images.dtype == np.uint8 and found.masks is None
    assert firsts(read_pictures(folder, CONTROL, 2, *SIZE).images) == [10, 20]


def test_a_mask_lies_beside_its_picture_or_is_its_transparent_pixels(tmp_path: Path) -> None:
    left = np.zeros(SIZE, np.uint8)
    left[:, :12] = 255
    seen = Image.fromarray(np.dstack([np.full((*SIZE, 3), 40, np.uint8), 255 - left]), "RGBA")
    folder = save(tmp_path / "given", a=plain(10), a__mask=Image.fromarray(left), b=seen)
    found = read_pictures(folder, FILL, 2, *SIZE)
    assert firsts(found.images) == [10, 40] and found.masks is not None
    np.testing.assert_array_equal(found.masks, [left, left])
    (folder / "b.mask.png").unlink(missing_ok=True)
    assert firsts(read_pictures(folder, CONTROL, 2, *SIZE).images) == [10, 40]  # masks are no pictures


def test_pictures_of_other_sizes_are_cropped_in_the_middle_and_their_masks_with_them(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 16), "red")
    wide.paste(plain(50), (36, 0))
    mask = Image.new("L", (96, 16), 0)
    mask.paste(plain(255, "L"), (36, 0))
    found = same_pictures(FILL, wide, mask, 2, *SIZE)
    assert found.masks is not None and (found.images == 50).all() and (found.masks == 255).all()
    assert found.images.shape == (2, *SIZE, 3)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    masks = np.random.default_rng(1).integers(0, 256, (3, *SIZE), np.uint8)
    for rule in (FILL, CONTROL):
        given = any_pictures(rule, 3, *SIZE)
        given = type(given)(rule, images, masks if rule.mask else None)
        files = write_pictures(tmp_path / rule.image, given)
        assert len(files) == (6 if rule.mask else 3) and all(f.is_file() for f in files)
        assert read_pictures(tmp_path / rule.image, rule, 3, *SIZE).digest == given.digest


def test_the_digest_is_of_keywords_pictures_and_masks() -> None:
    picture, mask = plain(7), plain(255, "L")
    digests = {
        same_pictures(FILL, picture, mask, 1, *SIZE).digest,
        same_pictures(FILL, plain(8), mask, 1, *SIZE).digest,
        same_pictures(FILL, picture, plain(0, "L"), 1, *SIZE).digest,
        same_pictures(FILL, picture, mask, 2, *SIZE).digest,
        same_pictures(CONTROL, picture, None, 1, *SIZE).digest,
    }
    assert len(digests) == 5
    assert same_pictures(FILL, picture, mask, 2, *SIZE)[:1].digest in digests


def test_arguments_are_named_as_the_pipeline_does() -> None:
    found = same_pictures(FILL, plain(7), plain(255, "L"), 2, *SIZE).arguments()
    assert {k: [i.mode for i in v] for k, v in found.items()} == {"image": ["RGB"] * 2, "mask_image": ["L"] * 2}
    assert set(any_pictures(CONTROL, 1, *SIZE).arguments()) == {"control_image"}


def test_a_photograph_is_turned_as_the_camera_held_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    plain(9).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg", "photo").size == SIZE


def test_pictures_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    def refused(folder: Path, rule: PictureRule = FILL) -> str:
        with pytest.raises(UserError) as error:
            read_pictures(folder, rule, 2, *SIZE)
        return str(error.value)

    assert "none (No such file or directory): give a directory" in refused(tmp_path / "none")
    file = tmp_path / "file"
    file.touch()
    assert "Cannot list the pictures in" in refused(file)
    assert "holds no picture" in refused(save(tmp_path / "empty"))
    assert "only/a.mask.png is the mask of no picture" in refused(save(tmp_path / "only", a__mask=plain(0), b=plain(0)))
    assert "bare/a.png has no mask" in refused(save(tmp_path / "bare", a=plain(0)))
    assert "opaque/a.png has no mask" in refused(save(tmp_path / "opaque", a=plain(255, "RGBA")))
    small = save(tmp_path / "small", a=plain(0), a__mask=plain(0, "L", (8, 8)))
    assert "a.mask.png is 8 x 8 pixels and its picture 24 x 16" in refused(small)
    deep = save(tmp_path / "deep", a=Image.fromarray(np.zeros(SIZE, np.uint16)))
    assert "a.png has more than 8 bits a channel" in refused(deep, CONTROL)
    broken = save(tmp_path / "broken", a=plain(0), b=Image.fromarray(np.random.default_rng(0).integers(
        0, 256, (*SIZE, 3), np.uint8)))  # fmt: skip
    (broken / "b.png").write_bytes((broken / "b.png").read_bytes()[:300])
    assert "broken/b.png cannot be read as an image" in refused(broken, CONTROL)
    (broken / "b.png").write_text("no picture at all")
    assert "broken/b.png cannot be read as an image" in refused(broken, CONTROL)
