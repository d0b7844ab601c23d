"""Images, boxes and masks of a detector go through the same steps together."""

import numpy as np
import pytest
import torch

from src.data.transforms.detection import DetectionEvalTransform, DetectionTrainTransform

LONG_SCHEDULE = [(1333, side) for side in range(480, 801, 32)]
BOXES = np.array([[0, 0, 1, 1], [20, 30, 60, 90], [100, 10, 160, 120]], np.float32)


@pytest.fixture
def raw():
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def masks_of(boxes, size=(120, 160)):
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    return list(masks)


def make(**settings):
    return DetectionTrainTransform(**({"scales": [(1333, 800)], "hflip": 0.5} | settings))


RECIPES = {
    "A": {},
    "B": {"scales": LONG_SCHEDULE, "crop_scales": [(1333, 400), (1333, 500), (1333, 600)]},
    "C": {
        "scales": LONG_SCHEDULE,
        "crop_scales": [(4200, 400), (4200, 500), (4200, 600)],
        "allow_empty_crop": False,
    },
    "D": {"scales": [(2000, 600), (2000, 1800)], "scale_mode": "range"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_masks_stay_on_their_boxes(recipe, raw):
    transform = make(**RECIPES[recipe])
    for seed in range(4):
        image, boxes, masks, kept = transform(raw, BOXES, masks_of(BOXES), seed)
        assert image.shape[1:] == masks.shape[1:]
        assert len(boxes) == len(masks) == len(kept)
        scale = min(image.shape[1:]) / 120
        for box, mask, number in zip(boxes, masks, kept, strict=True):
            rows, columns = mask.nonzero().unbind(1)
            if number and len(rows):
                seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (seen - box).abs().max() < scale + 2


def test_same_seed_same_result(raw):
    transform = make(**RECIPES["B"])
    first = transform(raw, BOXES, masks_of(BOXES), 5)
    again = transform(raw, BOXES, masks_of(BOXES), 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    others = [transform(raw, BOXES, masks_of(BOXES), seed)[0].shape for seed in range(12)]
    assert len(set(others)) > 3


def test_short_schedule_scales_to_fit_and_flips(raw):
    image, boxes, _, _ = make(hflip=0.0)(raw, BOXES, masks_of(BOXES), 0)
    assert image.shape == (3, 800, 1067)
    factor = torch.tensor([1067 / 160, 800 / 120] * 2)
    torch.testing.assert_close(boxes, torch.from_numpy(BOXES) * factor, atol=1e-3, rtol=0)
    _, mirrored, _, _ = make(hflip=1.0)(raw, BOXES, masks_of(BOXES), 0)
    torch.testing.assert_close(mirrored[:, 0], 1067 - boxes[:, 2], atol=1e-3, rtol=0)


def test_range_draws_sides_between_the_two_scales(raw):
    transform = make(**RECIPES["D"])
    sides = [min(transform(raw, BOXES, masks_of(BOXES), s)[0].shape[1:]) for s in range(12)]
    assert 600 <= min(sides) < max(sides) <= 1500  # 2000 on the long side allows 1500
    assert len(set(sides)) > 5


def test_crops_have_sides_in_the_range(raw):
    big = np.repeat(np.repeat(raw, 10, axis=0), 10, axis=1)  # 1200 x 1600
    transform = make(scales=[(100_000, 10)], crop_scales=[(4200, 600)], hflip=0.0)
    shapes = {transform(big, BOXES[:0], [], seed)[0].shape[1:] for seed in range(40)}
    ratios = [width / height for height, width in shapes]
    assert min(ratios) > 384 / 600 - 0.1
    assert max(ratios) < 600 / 384 + 0.1


def test_a_crop_must_show_an_object_if_asked(raw):
    transform = make(**RECIPES["C"])
    results = [transform(raw, BOXES[:1], masks_of(BOXES[:1]), seed) for seed in range(30)]
    assert any(result is None for result in results)
    assert all(len(result[1]) == 1 for result in results if result is not None)
    none = [transform(raw, BOXES[:0], [], seed) for seed in range(10)]
    assert any(result is None for result in none)  # a crop
    assert any(result is not None for result in none)  # no crop was drawn


def test_an_image_without_objects(raw):
    image, boxes, masks, kept = make(**RECIPES["A"])(raw, BOXES[:0], [], 0)
    assert boxes.shape == (0, 4)
    assert masks.shape == (0, *image.shape[1:])
    assert kept == []


def test_evaluation_scales_to_fit():
    white = np.full((100, 400, 3), 255, np.uint8)
    image = DetectionEvalTransform((1333, 800))(white)
    assert image.shape == (3, 333, 1333)
    assert image.dtype == torch.uint8
    assert (image == 255).all()
