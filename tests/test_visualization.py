"""Annotated images have a reasonable size for any shape of the input."""

import numpy as np
import pytest
from PIL import Image

from src.visualization import draw_instances, draw_label_map

SIZES = [(20, 800), (2, 1500), (1, 1), (3000, 4), (640, 480)]


@pytest.mark.parametrize("size", SIZES)
def test_label_maps_of_any_shape_have_a_legend(size):
    label_map = np.zeros((size[1], size[0]), dtype=np.uint8)
    drawn = draw_label_map(Image.new("RGB", size), label_map, ["sky"], [(0, 0, 200)])
    assert max(drawn.size) < 2048
    legend = np.asarray(drawn)[:, -200:]
    assert (legend < 110).all(-1).any()  # dark letters ...
    assert (legend > 240).all(-1).any()  # ... on white


@pytest.mark.parametrize("size", SIZES)
def test_instances_in_images_of_any_shape_have_labels(size):
    width, height = size
    mask = np.ones((height, width), dtype=bool)
    drawn = draw_instances(
        Image.new("RGB", size), [(0, 0, width, height)], [mask], ["cat"], [0.9], [0]
    )
    assert 360 <= drawn.width <= 1024
    assert drawn.height <= 1024


def test_boxes_in_narrow_images_are_at_the_correct_position():
    drawn = draw_instances(Image.new("RGB", (3, 1500)), [(0, 750, 3, 750)], [], ["cat"], [0.9], [0])
    coloured = (np.asarray(drawn) != 255).any(-1) & (np.asarray(drawn) != 0).any(-1)
    assert coloured[-1].any()
    assert not coloured[:450].any()
