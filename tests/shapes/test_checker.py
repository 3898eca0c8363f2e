"""The checker accepts what was drawn, and nothing that only resembles it."""

import dataclasses
import random

import numpy as np
import pytest

from engines import checker
from export.shapes import data

from . import deformed

HALVES = {"small": 8.2, "large": 12.8}


def test_drawn_pictures_are_right():
    rng = random.Random(0)
    scenes = data.held_out_scenes(500)
    wrong = [s.caption for s in scenes if not checker.verdict(data.draw(s, rng), s.caption).right]
    assert not wrong


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize(("name", "outline"), list(deformed.outlines()), ids=lambda v: v if isinstance(v, str) else "")
def test_a_deformed_outline_is_odd(name, outline, half):
    _, items = checker.analyse(deformed.picture(outline, half))
    assert [item.shape for item in items] == ["odd"]


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize(
    ("shape", "outline"),
    [
        ("circle", deformed.blob(3, 0.0, 0.0)),
        ("circle", deformed.blob(3, 0.02, 0.0)),
        ("square", deformed.rounded_square(0.2)),
        ("cross", deformed.cross(0.34)),
    ],
)
def test_a_slightly_soft_outline_still_passes(shape, outline, half):
    _, items = checker.analyse(deformed.picture(outline, half))
    assert [item.shape for item in items] == [shape]


def changed(scene):
    """Scenes that differ from this one in one part, and the verdict's name of that part."""
    first, *rest = scene.objects

    def with_first(**changes):
        return dataclasses.replace(scene, objects=(dataclasses.replace(first, **changes), *rest))

    yield "size", with_first(size="small" if first.size == "large" else "large")
    yield "colour", with_first(colour="red" if first.colour != "red" else "cyan")
    yield "shape", with_first(shape="cross" if first.shape != "cross" else "circle")
    places = data.PLACES if len(scene.objects) == 1 else data.RELATIONS
    yield "where", dataclasses.replace(scene, where=next(p for p in places if p != scene.where))
    yield "background", dataclasses.replace(scene, background="black" if scene.background != "black" else "grey")


@pytest.mark.parametrize("objects", [1, 2])
def test_each_wrong_part_is_found(objects):
    rng = random.Random(objects)
    for _ in range(40):
        scene = data.random_scene(rng, objects)
        for part, other in changed(scene):
            verdict = checker.verdict(data.draw(other, rng), scene.caption)
            assert not verdict.right, (scene.caption, other.caption)
            if objects == 1:  # with two, another order of the objects may suit the caption better
                assert not getattr(verdict, part), (scene.caption, other.caption)


def test_a_missing_or_an_additional_object_fails_the_count():
    rng = random.Random(3)
    scene = data.random_scene(rng, 1)
    empty = np.full((64, 64, 3), data.BACKGROUNDS[scene.background], np.uint8)
    assert not checker.verdict(empty, scene.caption).count
    crumb = data.draw(scene, rng)
    crumb[1:4, 1:4] = data.COLOURS["red" if scene.objects[0].colour != "red" else "blue"]
    crumb[60:63, 60:63] = crumb[2, 2]
    assert not checker.verdict(crumb, scene.caption).count


def test_captions_are_read_without_the_drawing_code():
    rng = random.Random(4)
    for i in range(200):
        scene = data.random_scene(rng, 1 + i % 2)
        read = checker.parse_caption(scene.caption)
        assert [(i.size, i.colour, i.shape) for i in read.items] == [dataclasses.astuple(o) for o in scene.objects]
        assert read.background == scene.background
        if len(scene.objects) == 1:
            assert read.place == data.PLACES[scene.where] and read.relation is None
        else:
            assert read.relation == scene.where and read.place is None


def test_another_form_of_caption_is_refused():
    with pytest.raises(ValueError, match="cannot read 'a fox in snow'"):
        checker.parse_caption("a fox in snow")


def test_score_gives_the_share_of_right_pictures():
    rng = random.Random(5)
    scene = data.random_scene(rng, 1)
    empty = np.full((64, 64, 3), data.BACKGROUNDS[scene.background], np.uint8)
    shares = checker.score([data.draw(scene, rng), empty], [scene.caption] * 2)
    assert shares["right"] == 0.5 and shares["background"] == 1.0
