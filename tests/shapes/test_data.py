"""The data set keeps its promises: captions, split, drawing."""

import random

import numpy as np
import pytest

from export.shapes import data, prompts, reading, vocabulary


def new_clip_tokenizer():
    return vocabulary.clip_tokenizer(vocabulary.learnt_pairs())


def scenes(count=300):
    rng = random.Random(0)
    return [data.random_scene(rng, 1 + i % 2) for i in range(count)]


def test_training_never_shows_an_unseen_pair_or_a_held_out_caption():
    held_out = {s.caption for s in data.held_out_scenes(500)}
    for scene in data.training_scenes(random.Random(1), 2000):
        assert not scene.has_unseen_pair
        assert scene.caption not in held_out


def test_about_a_fifth_of_the_other_captions_is_held_out():
    seen_pairs = [s for s in scenes(4000) if not s.has_unseen_pair]
    assert 0.15 < np.mean([s.is_held_out for s in seen_pairs]) < 0.25


def test_held_out_scenes_are_distinct_half_of_them_single_and_a_fifth_with_unseen_pairs():
    chosen = data.held_out_scenes(500)
    assert len({s.caption for s in chosen}) == 500
    assert sum(len(s.objects) == 1 for s in chosen) == 250
    assert sum(s.has_unseen_pair for s in chosen) == 100


def test_bundled_prompt_lists_are_what_the_script_writes(tmp_path):
    prompts.write(tmp_path)
    for written in tmp_path.iterdir():
        bundled = prompts.BUNDLED / written.name
        assert bundled.read_text() == written.read_text()


def test_objects_stay_inside_the_picture_and_apart_from_each_other():
    rng = random.Random(2)
    for scene in scenes():
        centres = data.centres(scene, rng)
        halves = [data.SIZES[o.size][1] for o in scene.objects]
        for centre, half in zip(centres, halves, strict=True):
            assert half < min(centre) and max(centre) + half < data.SIDE
        if len(centres) == 2:
            axis = 0 if scene.where in ("left of", "right of") else 1
            assert abs(centres[0][axis] - centres[1][axis]) > sum(halves) + 3


@pytest.mark.parametrize(
    ("shape", "area"), [("circle", np.pi), ("square", 4.0), ("triangle", 2.0), ("cross", 4 - 4 * (2 / 3) ** 2)]
)
def test_a_shape_covers_its_area(shape, area):
    covered = data.coverage(shape, (31.7, 32.2), half=12.0).sum()
    assert covered == pytest.approx(area * 12.0**2, rel=0.02)


def test_drawing_repeats_with_its_seed_and_moves_with_another():
    scene = scenes(2)[1]
    first, again, other = (data.draw(scene, random.Random(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("build", [new_clip_tokenizer, vocabulary.t5_tokenizer])
def test_every_caption_word_is_one_token(build):
    tokenizer = build()
    for word in vocabulary.WORDS:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    longest = max((s.caption for s in scenes()), key=lambda c: len(c.split()))
    assert len(tokenizer(longest).input_ids) <= vocabulary.MAX_TOKENS


def test_a_run_that_goes_on_keeps_its_vocabulary(tmp_path, monkeypatch):
    first = vocabulary.kept_pairs(tmp_path / "run" / "vocabulary.json")
    monkeypatch.setattr(vocabulary, "learnt_pairs", lambda: pytest.fail("learnt again"))
    assert vocabulary.kept_pairs(tmp_path / "run" / "vocabulary.json") == first


def test_an_unknown_word_is_spelt_with_letters():
    tokenizer = new_clip_tokenizer()
    assert len(tokenizer("fox", add_special_tokens=False).input_ids) == 3


def test_owners_name_the_object_that_each_token_speaks_of():
    red, blue = data.Object("large", "red", "circle"), data.Object("small", "blue", "square")
    scene = data.Scene((red, blue), "left of", "white")  # a large red circle left of a small blue square on white
    assert reading.owners(scene, starts=1) == [0] * 7 + [1] * 4 + [2] * 5


def test_labels_give_the_second_object_the_opposite_side():
    red, blue = data.Object("large", "red", "circle"), data.Object("small", "blue", "square")
    ahead = reading.labels(data.Scene((red, blue), "above", "white"))
    behind = reading.labels(data.Scene((blue, red), "below", "white"))
    assert ahead[:4] == behind[4:8]
    assert ahead[4:8] == behind[:4]
