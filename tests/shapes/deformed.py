"""Outlines that are nearly, but not, a circle, a square, a triangle or a cross, drawn large or small on grey."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SIDE, FINE = 64, 8
RED, GREY = np.array((220.0, 35, 40)), np.array((128.0, 128, 128))
Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]  # coordinates in half extents, y down, to a boolean mask


def picture(outline: Outline, half: float, centre: tuple[float, float] = (32.3, 31.6)) -> np.ndarray:
    """uint8 [64, 64, 3]: the outline in red, each pixel's share counted on 8x8 samples."""
    samples = (np.arange(SIDE * FINE) + 0.5) / FINE
    x, y = np.meshgrid((samples - centre[0]) / half, (samples - centre[1]) / half)
    inside = outline(x, y) & (np.abs(x) <= 1.3) & (np.abs(y) <= 1.3)
    share = inside.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))[..., None]
    return (GREY + share * (RED - GREY)).round().astype(np.uint8)


def blob(waves: int, depth: float, phase: float) -> Outline:
    """A circle whose radius swings by +-depth, `waves` times around."""

    def outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = np.arctan2(y, x)
        return np.hypot(x, y) <= 1 + depth * np.cos(waves * angle + phase)

    return outline


def rounded_square(radius: float) -> Outline:
    """A square with corners of this radius, as a share of half its side."""
    return lambda x, y: np.hypot(np.maximum(abs(x) - 1 + radius, 0), np.maximum(abs(y) - 1 + radius, 0)) <= radius


def bitten(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x**2 + y**2 <= 1) & (np.hypot(x - 0.9, y) > 0.5)


def dented_square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.maximum(abs(x), abs(y)) <= 1) & (np.hypot(x, y - 1) > 0.5)


def leaning_triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (abs(y) <= 1) & (x >= -1) & (x <= y)


def rounded_triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A Reuleaux-like triangle: bulging sides."""
    corners = ((0.0, -1.0), (-1.0, 0.75), (1.0, 0.75))
    return np.all([np.hypot(x - u, y - v) <= 2.0 for u, v in corners], axis=0)


def cross(arm: float, missing: bool = False) -> Outline:
    """A cross of this half arm width (an ideal one has a third), or without its left arm."""

    def outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inside = (np.minimum(abs(x), abs(y)) <= arm) & (np.maximum(abs(x), abs(y)) <= 1)
        return inside & ~((x < -arm) & missing)

    return outline


def diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return abs(x) + abs(y) <= 1


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(abs(x)) + np.sqrt(abs(y)) <= 1.15


def outlines() -> Iterator[tuple[str, Outline]]:
    """Every deformed outline and its name."""
    for waves, depth in ((2, 0.12), (3, 0.1), (3, 0.15), (4, 0.1), (5, 0.12)):
        for phase in (0.0, 0.7, 1.9):
            yield f"blob of {waves} waves, depth {depth}, phase {phase}", blob(waves, depth, phase)
    for radius in (0.5, 0.65, 0.8):
        yield f"square with corners of radius {radius}", rounded_square(radius)
    yield "bitten circle", bitten
    yield "dented square", dented_square
    yield "leaning triangle", leaning_triangle
    yield "bulging triangle", rounded_triangle
    yield "upside-down triangle", lambda x, y: (abs(y) <= 1) & (2 * abs(x) <= 1 - y)
    yield "fat cross", cross(0.6)
    yield "thin cross", cross(0.15)
    yield "cross without an arm", cross(1 / 3, missing=True)
    yield "diamond", diamond
    yield "four-pointed star", star
