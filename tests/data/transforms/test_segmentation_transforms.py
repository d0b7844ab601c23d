"""Transforms of the official recipe for ADE20K."""

import numpy as np
import pytest
import torch

from src.data.transforms.segmentation import (
    EvalTransform,
    PhotometricDistortion,
    RandomCategoryCrop,
    TrainTransform,
    fit_size,
)


def train(crop=(32, 32), **changes):
    options = {
        "scale": (128, 32),
        "ratio_range": (0.5, 2.0),
        "cat_max_ratio": 0.75,
        "hflip": 0.5,
        "photometric": True,
    }
    return TrainTransform(crop, **(options | changes))


@pytest.fixture
def pair():
    """An image whose red channel is the label's column number."""
    label = np.repeat(np.arange(48, dtype=np.uint8)[None] // 4, 40, axis=0)
    image = np.stack([label * 20, label * 0, label * 0 + 7], axis=-1)
    return image, label


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((512, 683), (2048, 512), (512, 683)),
        ((480, 640), (2048, 512), (512, 683)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side decides
        ((683, 512), (512, 2048), (683, 512)),
        ((1, 9000), (2048, 512), (1, 2048)),
    ],
)
def test_size_that_fits(size, scale, expected):
    assert fit_size(size, scale) == expected


def test_shapes_types_and_reproducibility(pair):
    transform = train()
    for seed in range(5):
        image, label, _ = transform(*pair, seed)
        assert image.shape == (3, 32, 32)
        assert label.shape == (32, 32)
        assert (image.dtype, label.dtype) == (torch.uint8, torch.int64)
        again = transform(*pair, seed)
        assert torch.equal(image, again[0])
        assert torch.equal(label, again[1])
    assert not torch.equal(transform(*pair, 0)[0], transform(*pair, 1)[0])


def test_image_and_labels_move_together(pair):
    transform = train(photometric=False, ratio_range=(1.0, 1.0))
    flips = set()
    for seed in range(20):
        image, label, _ = transform(*pair, seed)
        inside = label != 255
        assert inside.any()
        red = image[0][inside] / 20  # resizing blends neighbours a little
        assert (red - label[inside]).abs().median() < 0.25
        flips.add(bool(label[0, 0] > label[0, 20]))
    assert flips == {True, False}


def test_padding_is_neutral_and_ignored(pair):
    transform = train(crop=(64, 96), ratio_range=(0.5, 0.5), photometric=False)
    image, label, size = transform(*pair, 0)
    assert size == (16, 19)
    assert (label[:16, :19] != 255).all()
    assert (label[16:] == 255).all()
    assert (label[:, 19:] == 255).all()
    assert (image[:, 16:] == 0).all()


def test_crops_avoid_one_class():
    label = np.zeros((40, 400), np.uint8)
    label[:, 350:] = 1
    crop = RandomCategoryCrop((40, 40), 0.75)
    crop.set_random_seed(0)
    empty = np.zeros((40, 400, 3), np.uint8)
    varied = sum(len(np.unique(crop(image=empty, mask=label)["mask"])) > 1 for _ in range(200))
    plain = RandomCategoryCrop((40, 40), 1.0)
    plain.set_random_seed(0)
    chance = sum(len(np.unique(plain(image=empty, mask=label)["mask"])) > 1 for _ in range(200))
    assert varied > 2 * chance


def test_ignored_pixels_do_not_make_a_crop_varied():
    label = np.zeros((8, 8), np.uint8)
    label[:4] = 255
    crop = RandomCategoryCrop((8, 8), 0.75)
    assert not crop._is_varied(label)
    label[7, :4] = 1
    assert not crop._is_varied(label)  # 28 of 32
    label[7] = 1
    label[6, :2] = 1
    assert crop._is_varied(label)  # 22 of 32


def test_distortion_changes_colours_only_a_little_and_stays_8_bit():
    distort = PhotometricDistortion()
    distort.set_random_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    results = [distort(image=image)["image"] for _ in range(40)]
    assert all(result.dtype == np.uint8 and result.shape == image.shape for result in results)
    unchanged = sum(bool((result == image).all()) for result in results)
    assert 0 <= unchanged < 12  # each of four steps is left out half of the time
    off = {"brightness": None, "contrast": None, "saturation": None, "hue": None}
    brighter = distort.apply(image, **(off | {"brightness": 20.7}), contrast_first=True)
    assert (brighter == np.minimum(image.astype(float) + 20.7, 255).astype(np.uint8)).all()
    turned = distort.apply(np.uint8([[[255, 0, 0]]]), **(off | {"hue": 60}), contrast_first=True)
    assert turned.tolist() == [[[0, 255, 0]]]


def test_evaluation_keeps_the_shape_and_rounds_up(pair):
    transform = EvalTransform(scale=(128, 32), size_divisor=32)
    (view,) = transform(pair[0])
    assert transform.flipped == [False]
    assert view.shape == (3, 32, 64)  # 40x48 fits as 32x38, then up to multiples of 32
    (same,) = EvalTransform(scale=(64, 64), size_divisor=1)(np.zeros((64, 64, 3), "u1"))
    assert same.shape == (3, 64, 64)


def test_views_for_test_time_augmentation(pair):
    transform = EvalTransform(scale=(128, 32), size_divisor=32, ratios=(0.5, 1.0, 2.0), flip=True)
    views = transform(pair[0])
    assert transform.flipped == [False, True] * 3
    assert [tuple(view.shape[1:]) for view in views[::2]] == [(32, 32), (32, 64), (64, 96)]
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)
