import numpy as np
import pytest

from src.data.toy.scenes import SHAPES, draw_scene


def scene(names, seed=0, size=(64, 64), **options):
    return draw_scene(names, size, np.random.default_rng(seed), **options)


def test_a_seed_gives_one_image_and_another_seed_another():
    np.testing.assert_array_equal(scene(["star"], 3).image, scene(["star"], 3).image)
    assert (scene(["star"], 3).image != scene(["star"], 4).image).mean() > 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_where_the_shape_stands_out(shape):
    drawn = scene([shape], seed=5, size=(48, 64))
    (thing,) = drawn.objects
    assert drawn.image.shape == (48, 64, 3)
    assert drawn.image.dtype == np.uint8
    assert thing.mask.shape == (48, 64)
    inside, outside = drawn.image[thing.mask], drawn.image[~thing.mask]
    assert np.abs(inside.mean(axis=0) - outside.mean(axis=0)).max() > 25


def test_shapes_cover_areas_of_their_own_kind():
    def area(shape):
        masks = [scene([shape], seed, radius=(0.4, 0.4)).objects[0].mask for seed in range(8)]
        return np.mean([mask.sum() for mask in masks]) / (0.4 * 64) ** 2

    assert area("circle") == pytest.approx(np.pi * 0.9**2, rel=0.03)
    assert area("ring") == pytest.approx(np.pi * (1 - 0.55**2), rel=0.05)
    assert area("square") == pytest.approx(1.5**2, rel=0.03)
    assert area("cross") == pytest.approx(2 * 2 * 0.6 - 0.6**2, rel=0.05)


def test_boxes_fit_their_masks():
    for thing in scene(list(SHAPES), seed=1, size=(160, 200), radius=(0.1, 0.2)).objects:
        left, top, right, bottom = thing.box
        assert thing.mask[top:bottom, left:right].sum() == thing.mask.sum()
        for edge in (
            thing.mask[top],
            thing.mask[bottom - 1],
            thing.mask[:, left],
            thing.mask[:, right - 1],
        ):
            assert edge.any()


def test_front_objects_hide_those_behind():
    drawn = scene(["circle", "square", "star", "heart"] * 9, seed=2, radius=(0.3, 0.4))
    assert np.sum([thing.mask for thing in drawn.objects], axis=0).max() == 1
    assert drawn.objects[-1].name == "heart"
    assert len(drawn.objects) < 36  # some are hidden completely


def test_a_scene_may_be_empty():
    assert scene([]).objects == ()
