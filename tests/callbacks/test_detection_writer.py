"""Overlays of detections."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from src.callbacks.detection_writer import count_shown, draw_results


def test_16_bit_images_are_drawn_upright_with_correct_brightness(deep_image):
    mask = np.zeros((60, 20), dtype=np.uint8, order="F")
    mask[40:, 10:] = 1
    found = {
        "image_id": 1,
        "category_id": 0,
        "bbox": [10.0, 40.0, 10.0, 20.0],
        "score": 0.9,
        "segmentation": coco_mask.encode(mask),
    }
    drawn = draw_results(str(deep_image), [found], ["cat"], score=0.5)
    assert drawn.height > 2 * drawn.width
    assert drawn.getpixel((5, 5)) == (80, 80, 80)


def test_annotations_of_the_stored_image_are_drawn_on_the_stored_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    path = str(tmp_path / "photo.jpg")
    Image.new("RGB", (80, 30), (90, 90, 90)).save(path, exif=exif)
    upright = draw_results(path, [], [], score=0.5)
    assert upright.height > upright.width
    assert draw_results(path, [], [], score=0.5, size=(80, 30)).size == upright.size
    stored = draw_results(path, [], [], score=0.5, size=(30, 80))
    assert stored.width > stored.height


def test_images_without_detections_are_counted():
    results = [[{"score": 0.25}, {"score": 0.1}], [], [{"score": 0.2}]]
    assert count_shown(results, 0.3) == (
        "0 of 3 images have detections above 0.3; the highest score is 0.25."
        " Lower --detections.score to draw more."
    )
    assert count_shown(results, 0.2) == (
        "2 of 3 images have detections above 0.2; the highest score is 0.25"
    )
    assert count_shown([], 0.2).startswith("0 of 0 images have")


@pytest.mark.parametrize(
    ("highest", "text"), [(0.304, "1 of 1 image has"), (0.2996, "0 of 1 image has")]
)
def test_the_highest_score_differs_from_the_minimum_in_its_digits(highest, text):
    line = count_shown([[{"score": highest}]], 0.3)
    assert line.startswith(f"{text} detections above 0.3; the highest score is {highest}")
    assert count_shown([[{"score": 0.3}]], 0.3).endswith("the highest score is 0.30")
