"""Captioned pictures drawn by rule: one or two coloured shapes on a plain background, 64x64 RGB.

A caption names everything that a checker can measure: size, colour and shape of each object, the place of a single
object or the relation of two, and the background. A fifth of all captions, and every caption with one of three
colour-shape pairs, never occur in training.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass

import numpy as np

SIDE = 64  # pixels
COLOURS = {
    "red": (220, 35, 40),
    "green": (35, 160, 65),
    "blue": (45, 75, 220),
    "yellow": (250, 215, 45),
    "purple": (165, 60, 190),
    "cyan": (50, 205, 220),
}
BACKGROUNDS = {"white": (245, 245, 245), "black": (15, 15, 15), "grey": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"large": (12.5, 13.0), "small": (8.0, 8.5)}  # half the extent, in pixels
# The centre of a single object, as steps of PLACE_STEP pixels right and down from the middle.
PLACES = {
    "at the top left": (-1, -1),
    "at the top": (0, -1),
    "at the top right": (1, -1),
    "at the left": (-1, 0),
    "in the centre": (0, 0),
    "at the right": (1, 0),
    "at the bottom left": (-1, 1),
    "at the bottom": (0, 1),
    "at the bottom right": (1, 1),
}
PLACE_STEP = 14.0
# Where the first object of two lies, seen from the middle; the second lies opposite.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
RELATION_STEP = 16.5
JITTER = 1.5  # pixels, uniform, on both axes of every centre
UNSEEN_PAIRS = frozenset({("red", "triangle"), ("blue", "cross"), ("yellow", "circle")})

_DOWN, _RIGHT = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5  # pixel centres


@dataclass(frozen=True)
class Object:
    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One object and its place, or two objects and the relation of the first to the second."""

    objects: tuple[Object, ...]
    where: str  # a key of PLACES or of RELATIONS
    background: str

    @property
    def caption(self) -> str:
        first, *second = (f"a {o.size} {o.colour} {o.shape}" for o in self.objects)
        return " ".join([first, self.where, *second, "on", self.background])

    @property
    def has_unseen_pair(self) -> bool:
        return any((o.colour, o.shape) in UNSEEN_PAIRS for o in self.objects)

    @property
    def is_held_out(self) -> bool:
        """By the caption's hash, so that the split depends on no random state."""
        return self.has_unseen_pair or hashlib.md5(self.caption.encode()).digest()[0] % 5 == 0


def random_scene(rng: random.Random, objects: int) -> Scene:
    """Any scene with one or two objects, of either split."""
    drawn = tuple(
        Object(rng.choice(tuple(SIZES)), rng.choice(tuple(COLOURS)), rng.choice(SHAPES)) for _ in range(objects)
    )
    where = rng.choice(tuple(PLACES if objects == 1 else RELATIONS))
    return Scene(drawn, where, rng.choice(tuple(BACKGROUNDS)))


def training_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Scenes of the training split, half of them with one object: its nine places take as long to learn as pairs."""
    endless = (random_scene(rng, rng.choice((1, 2))) for _ in itertools.count())
    return list(itertools.islice((s for s in endless if not s.is_held_out), count))


def held_out_scenes(count: int = 500, seed: int = 500) -> list[Scene]:
    """Distinct held-out scenes, one and two objects in turn; every fifth of each has an unseen pair."""
    rng = random.Random(seed)
    chosen: dict[Scene, None] = {}  # a dict keeps the order and drops repetitions
    while len(chosen) < count:
        at = len(chosen)
        scene = random_scene(rng, 1 + at % 2)
        if scene.is_held_out and scene.has_unseen_pair == (at // 2 % 5 == 0):
            chosen[scene] = None
    return list(chosen)


def coverage(shape: str, centre: tuple[float, float], half: float) -> np.ndarray:
    """Share of each pixel that the shape covers: float32 [SIDE, SIDE] in 0..1 (one pixel of anti-aliasing)."""
    x, y = _RIGHT - centre[0], _DOWN - centre[1]
    across, along = np.abs(x), np.abs(y)
    if shape == "circle":
        distance = np.hypot(x, y) - half
    elif shape == "square":
        distance = np.maximum(across, along) - half
    elif shape == "cross":
        arm = half / 3
        distance = np.minimum(np.maximum(across - half, along - arm), np.maximum(across - arm, along - half))
    else:  # triangle: apex on top, as high as its base is wide
        distance = np.maximum(y - half, (2 * across - y - half) / 5**0.5)
    return np.clip(0.5 - distance, 0, 1)


def centres(scene: Scene, rng: random.Random) -> list[tuple[float, float]]:
    """Pixel coordinates (right, down) of each object, jittered."""
    right, down = (PLACES | RELATIONS)[scene.where]
    step = PLACE_STEP if len(scene.objects) == 1 else RELATION_STEP

    def near(way: int) -> float:
        return SIDE / 2 + step * way + rng.uniform(-JITTER, JITTER)

    return [(near(sign * right), near(sign * down)) for sign in (1, -1)[: len(scene.objects)]]


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """One picture of the scene: uint8 [SIDE, SIDE, 3]."""
    picture = np.full((SIDE, SIDE, 3), BACKGROUNDS[scene.background], np.float32)
    for item, centre in zip(scene.objects, centres(scene, rng), strict=True):
        share = coverage(item.shape, centre, rng.uniform(*SIZES[item.size]))[..., None]
        picture += share * (np.array(COLOURS[item.colour], np.float32) - picture)
    return picture.round().astype(np.uint8)
