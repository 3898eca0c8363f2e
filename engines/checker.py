"""Does a picture show what its caption says? Geometry only: numpy and skimage, nothing shared with the drawing code.

For captions of the bundled models: "a large red circle left of a small blue square on white". Every outline is
compared with the ideal one fitted to its box, so that a blob is no circle and a rounded square is no square.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import numpy as np
from skimage.measure import label, regionprops
from skimage.transform import resize

OBJECT_RGB = {
    "red": (220, 35, 40),
    "green": (35, 160, 65),
    "blue": (45, 75, 220),
    "yellow": (250, 215, 45),
    "purple": (165, 60, 190),
    "cyan": (50, 205, 220),
}
BACKGROUND_RGB = {"white": (245, 245, 245), "black": (15, 15, 15), "grey": (128, 128, 128)}
COLOUR_TOLERANCE = 60.0  # Euclidean, in 8-bit RGB; the two nearest colours of the table are 127 apart

FOREGROUND = 50.0  # a pixel this far from the background's colour belongs to some object
SPECK = 6  # pixels; anything larger counts as an object
FINE = 4  # outlines are compared at this many samples a pixel
LARGE = 21.0  # pixels of extent; drawn ones have 16..17 and 25..26
EXTENTS = (13.0, 30.0)
ASPECT = 1.2  # longest box side / shortest
# Smallest overlap (intersection over union) with the ideal outline. Drawn pictures stay above, deformed ones below:
# tests/shapes/test_checker.py holds both.
OVERLAP = {"circle": 0.93, "square": 0.955, "triangle": 0.87, "cross": 0.84}
PLACE_EDGE = 7.0  # pixels from the middle: nearer is "centre"
MIDDLE = 32.0

_COLUMN = {"left": -1, "right": 1}
_ROW = {"top": -1, "bottom": 1}
_OBJECT = r"a (\w+) (\w+) (\w+)"
_CAPTION = re.compile(
    rf"{_OBJECT} (?:(?:at|in) the (?P<place>[\w ]+?)|(?P<relation>left of|right of|above|below) {_OBJECT})"
    r" on (?P<background>\w+)"
)


@dataclass(frozen=True)
class Item:
    """One object, wanted or found; `centre` (right, down) and `half` extents in pixels are of found ones only."""

    size: str
    colour: str
    shape: str
    centre: tuple[float, float] = (0.0, 0.0)
    half: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """What a caption asks for: one item with a place (column, row in -1..1), or two with a relation."""

    items: tuple[Item, ...]
    place: tuple[int, int] | None
    relation: str | None
    background: str


@dataclass(frozen=True)
class Verdict:
    """Which parts of the caption the picture gets right; `where` is the place of one object, the relation of two."""

    background: bool
    count: bool
    size: bool = False
    colour: bool = False
    shape: bool = False
    where: bool = False

    @property
    def right(self) -> bool:
        return all(astuple(self))


def parse_caption(text: str) -> Scene:
    """Raises ValueError for a caption of another form."""
    found = _CAPTION.fullmatch(text.strip())
    if not found:
        known = "'a <size> <colour> <shape> <where> on <background>'"
        raise ValueError(f"The checker cannot read {text!r}: it knows only captions like {known}.")
    items = [Item(found[1], found[2], found[3])]
    place = None
    if found["relation"]:
        items.append(Item(found[6], found[7], found[8]))
    else:
        words = found["place"].split()
        place = (sum(_COLUMN.get(w, 0) for w in words), sum(_ROW.get(w, 0) for w in words))
    return Scene(tuple(items), place, found["relation"], found["background"])


def _nearest(rgb: np.ndarray, table: dict[str, tuple[int, int, int]]) -> str:
    """Name of the nearest colour, or "odd" where none is near."""
    distances = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in table.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= COLOUR_TOLERANCE else "odd"


def _ideal(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Boolean mask of the ideal shape that fills the box -1..1 x -1..1 (y grows downwards)."""
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "triangle":
        return 2 * np.abs(x) <= y + 1
    return np.minimum(np.abs(x), np.abs(y)) <= 1 / 3  # a cross


def _overlap(inside: np.ndarray, shape: str, tip: int = 0, corner: int = 0) -> float:
    """Intersection over union of a mask with the ideal shape whose box is larger: by `tip` samples above, and by
    `corner` samples on the left and on the right."""
    padded = np.pad(inside, ((tip, 0), (corner, corner)))
    y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in padded.shape)
    ideal = _ideal(shape, *np.meshgrid(x, y))
    return float((padded & ideal).sum() / (padded | ideal).sum())


def _square_overlap(inside: np.ndarray) -> float:
    """As `_overlap`, for a square whose sides lie where half a row or column is filled: a speck on a side, a quarter of
    a pixel high, must not stretch the box of a whole side."""
    rows, columns = (np.flatnonzero(inside.mean(axis) >= 0.5) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0.0
    ideal = np.zeros_like(inside)
    ideal[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return float((inside & ideal).sum() / (inside | ideal).sum())


def outline_overlaps(inside: np.ndarray) -> dict[str, float]:
    """Overlap of a boolean mask, cut to its box at FINE samples a pixel, with each ideal shape fitted to the box.

    Pixels swallow sharp points: a triangle's tip may lie up to 3 pixels above the box, its corners 1 pixel outside.
    """
    lost = itertools.product(range(0, 3 * FINE + 1, 2), range(0, FINE + 1, 2))
    return {
        "circle": _overlap(inside, "circle"),
        "square": _square_overlap(inside),
        "triangle": max(_overlap(inside, "triangle", tip, corner) for tip, corner in lost),
        "cross": _overlap(inside, "cross"),
    }


def _describe(picture: np.ndarray, region: np.ndarray, background: np.ndarray) -> Item:
    """The object in a boolean region of a float picture."""
    rgb = np.median(picture[region], axis=0)
    contrast = rgb - background
    cover = (picture - background) @ contrast / (contrast @ contrast)  # 0 on the background, 1 on the object
    nearby = np.zeros_like(region)
    top, left, bottom, right = regionprops(region.astype(np.uint8))[0].bbox
    nearby[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = True
    fine_shape = tuple(n * FINE for n in cover.shape)
    fine = resize(np.where(nearby, cover, 0.0), fine_shape, order=1, mode="edge", anti_aliasing=False) > 0.5
    pieces = regionprops(label(fine, connectivity=1))
    if not pieces:
        return Item("odd", "odd", "odd")
    piece = max(pieces, key=lambda p: p.area)
    top, left, bottom, right = (edge / FINE for edge in piece.bbox)
    width, height = right - left, bottom - top
    extent = max(width, height)
    overlaps = outline_overlaps(piece.image)
    shape = max(overlaps, key=lambda s: overlaps[s] - OVERLAP[s])
    if overlaps[shape] < OVERLAP[shape] or extent > ASPECT * min(width, height):
        shape = "odd"
    size = "odd" if not EXTENTS[0] <= extent <= EXTENTS[1] else "large" if extent >= LARGE else "small"
    centre = ((left + right) / 2, (top + bottom) / 2)
    return Item(size, _nearest(rgb, OBJECT_RGB), shape, centre, (width / 2, height / 2))


def analyse(image: np.ndarray) -> tuple[str, list[Item]]:
    """Background and objects of a uint8 picture [64, 64, 3]."""
    picture = image.astype(np.float64)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = np.median(border, axis=0)
    regions = label(np.linalg.norm(picture - background, axis=2) > FOREGROUND, connectivity=1)
    items = [_describe(picture, regions == r.label, background) for r in regionprops(regions) if r.area >= SPECK]
    return _nearest(background, BACKGROUND_RGB), items


def _placed(item: Item, place: tuple[int, int]) -> bool:
    """Whether the centre lies in the asked ninth of the picture."""
    offsets = (c - MIDDLE for c in item.centre)
    return tuple(0 if abs(o) < PLACE_EDGE else int(np.sign(o)) for o in offsets) == place


def _related(first: Item, second: Item, relation: str) -> bool:
    """Whether the objects lie apart along the relation's axis, and nearer to it than to the other axis."""
    axis = 0 if relation in ("left of", "right of") else 1
    ahead = 1 if relation in ("left of", "above") else -1
    along = ahead * (second.centre[axis] - first.centre[axis])
    across = abs(second.centre[1 - axis] - first.centre[1 - axis])
    return along > across and along >= first.half[axis] + second.half[axis]


def _where_is_right(items: tuple[Item, ...], scene: Scene) -> bool:
    if scene.place is not None:
        return _placed(items[0], scene.place)
    return scene.relation is not None and _related(items[0], items[1], scene.relation)


def verdict(image: np.ndarray, caption: str) -> Verdict:
    """Judges a uint8 picture [64, 64, 3]; found objects are taken in the order that suits the caption best."""
    scene = parse_caption(caption)
    background, found = analyse(image)
    same_background = background == scene.background
    if len(found) != len(scene.items):
        return Verdict(same_background, count=False)
    verdicts = []
    for order in itertools.permutations(found):
        pairs = list(zip(order, scene.items, strict=True))
        verdicts.append(
            Verdict(
                background=same_background,
                count=True,
                size=all(f.size == w.size for f, w in pairs),
                colour=all(f.colour == w.colour for f, w in pairs),
                shape=all(f.shape == w.shape for f, w in pairs),
                where=_where_is_right(order, scene),
            )
        )
    return max(verdicts, key=lambda v: sum(astuple(v)))


def score(images: Iterable[np.ndarray], captions: Iterable[str]) -> dict[str, float]:
    """Share of pictures that are right in every way (`right`) and in each way; pictures are uint8 [64, 64, 3]."""
    verdicts = [verdict(i, c) for i, c in zip(images, captions, strict=True)]
    names = ("right", *(f.name for f in fields(Verdict)))
    return {name: float(np.mean([getattr(v, name) for v in verdicts])) for name in names}
