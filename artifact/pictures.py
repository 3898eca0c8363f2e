"""Pictures beside prompts: what some pipelines draw from, read from files, cut to the image's size, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from artifact.errors import UserError
from artifact.files import written_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MASK = ".mask"  # ends the stem of a mask's name: fox.mask.png beside fox.png
_GREY = 128  # of a picture that stands for any


@dataclass(frozen=True)
class PictureRule:
    """Which pictures a pipeline takes beside every prompt: `image` and `mask` are its keywords for them.

    `mask` is None where it takes none; else it is white where the picture is to be drawn anew.
    """

    image: str
    mask: str | None = None

    def __str__(self) -> str:
        return "a picture and its mask" if self.mask else "a picture"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pictures:
    """Pictures for P prompts: `images` uint8 [P, H, W, 3]; `masks` uint8 [P, H, W], None where the rule has none."""

    rule: PictureRule
    images: np.ndarray
    masks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Pictures:
        return Pictures(self.rule, self.images[part], None if self.masks is None else self.masks[part])

    @property
    def digest(self) -> str:
        """SHA-256 over keywords, sizes and pixels."""
        found = hashlib.sha256(repr((self.rule, self.images.shape)).encode())
        for pixels in (self.images, self.masks):
            found.update(b"" if pixels is None else np.ascontiguousarray(pixels).tobytes())
        return found.hexdigest()

    def arguments(self) -> dict[str, list[Image.Image]]:
        """Keyword arguments of the pipeline's call: a PIL image for every prompt, the mask in grey."""
        given = {self.rule.image: [Image.fromarray(i) for i in self.images]}
        if self.rule.mask is not None and self.masks is not None:
            given[self.rule.mask] = [Image.fromarray(m) for m in self.masks]
        return given


def any_pictures(rule: PictureRule, count: int, height: int, width: int) -> Pictures:
    """Grey pictures, all of them to be drawn anew: for a run whose images nobody looks at."""
    size = (count, height, width)
    masks = np.full(size, 255, np.uint8) if rule.mask else None
    return Pictures(rule, np.full((*size, 3), _GREY, np.uint8), masks)


def same_pictures(
    rule: PictureRule, image: Image.Image, mask: Image.Image | None, count: int, height: int, width: int,
    names: tuple[str, str] = ("The image", "The mask"),
) -> Pictures:  # fmt: skip
    """One picture for `count` prompts, cropped and resized to height x width pixels, its mask with it.

    Where the rule wants a mask and `mask` is None, the picture's transparent pixels are it. `names` begin the
    sentences. Raises UserError where there is no mask, or one of another size than the picture's, and for
    more than 8 bits a channel, which have no agreed white.
    """
    name, name_of_mask = names
    for what, given in ((name, image), (name_of_mask, mask)):
        if given is not None and given.mode.startswith(("I", "F")):
            raise UserError(
                f"{what} has more than 8 bits a channel ({given.mode}): save it as 8-bit grey or RGB, black to white "
                "as the model is to see it."
            )
    masks = None
    if rule.mask is not None:
        mask = mask or _transparent(image)
        if mask is None:
            raise UserError(
                f"{name} has no mask: give one that is white where it is to be drawn anew, or make those pixels "
                "transparent."
            )
        if mask.size != image.size:
            raise UserError(
                f"{name_of_mask} is {_size(mask)} pixels and its picture {_size(image)}: give a mask of the "
                "picture's size."
            )
        masks = np.stack([np.asarray(ImageOps.fit(mask.convert("L"), (width, height)))] * count)
    return Pictures(rule, np.stack([np.asarray(ImageOps.fit(image.convert("RGB"), (width, height)))] * count), masks)


def read_image(path: Path, what: str) -> Image.Image:
    """An image file, turned as its camera held it. `what` begins the sentence of the UserError where it is none."""
    try:
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image)
            turned.load()
            return turned
    except FileNotFoundError:
        raise UserError(f"{what} does not exist: give an image file.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise UserError(f"{what} cannot be read as an image ({e}): give a PNG, JPEG or WebP file.") from None


def read_pictures(directory: Path, rule: PictureRule, count: int, height: int, width: int) -> Pictures:
    """A picture for each of `count` prompts: the directory's in the order of their names, from the start again where
    they are fewer. The mask of NAME.png is NAME.mask.png, else its transparent pixels.

    Raises UserError for a directory without pictures, one that cannot be read, and as `same_pictures` does.
    """
    found, masks = _listed(directory)
    read = []
    for path in found[:count]:
        beside = masks.get(path.stem) if rule.mask else None
        mask = None if beside is None else read_image(beside, str(beside))
        picture = read_image(path, str(path))
        read.append(same_pictures(rule, picture, mask, 1, height, width, (str(path), str(beside))))
    chosen = [read[i % len(read)] for i in range(count)]
    stacked = [p.masks for p in chosen if p.masks is not None]
    return Pictures(rule, np.concatenate([p.images for p in chosen]), np.concatenate(stacked) if stacked else None)


def _listed(directory: Path) -> tuple[list[Path], Mapping[str, Path]]:
    """The directory's pictures in the order of their names; its masks by the stems of their pictures."""
    try:
        files = sorted(p for p in Path(directory).iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as e:
        raise UserError(f"Cannot list the pictures in {directory} ({e.strerror}): give a directory of them.") from None
    masks = {p.stem.removesuffix(MASK): p for p in files if p.stem.endswith(MASK)}
    found = [p for p in files if not p.stem.endswith(MASK)]
    if not found:
        raise UserError(f"{directory} holds no picture: put PNG, JPEG or WebP files into it.")
    for stem, path in masks.items():
        if stem not in {p.stem for p in found}:
            raise UserError(
                f"{path} is the mask of no picture in {directory}: name it after one, as fox{MASK}.png after fox.png."
            )
    return found, masks


def write_pictures(directory: Path, pictures: Pictures) -> list[Path]:
    """Write every picture, and its mask, so that `read_pictures` finds the same ones; returns the files."""
    written = []
    for number, image in enumerate(pictures.images):
        files = [(f"{number:04}.png", image)]
        if pictures.masks is not None:
            files.append((f"{number:04}{MASK}.png", pictures.masks[number]))
        for name, pixels in files:
            with written_whole(directory / name) as partial:
                Image.fromarray(pixels).save(partial, format="PNG")
            written.append(directory / name)
    return written


def _transparent(image: Image.Image) -> Image.Image | None:
    """White where the picture is transparent; None where it is so nowhere."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else ImageOps.invert(alpha)


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
