import random

import numpy as np
import pytest
import torch
from lightning import seed_everything
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from src.data.datasets.image_folder import LabelledImages
from src.data.transforms import EvalTransform, TrainTransform
from src.data.transforms.classification import Crop, shorten
from src.errors import UserError

MEAN = {"mean": (0.0, 0.0, 0.0)}
PLAIN = {"auto_augment": None, "color_jitter": 0.0, "hflip": 0.0}


def noise(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def pixels_of(tensor):
    return tensor.permute(1, 2, 0).numpy()  # (H, W, C)


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (33, 33), (97, 40), (20, 64)])
@pytest.mark.parametrize("image_size", [24, 33])
def test_evaluation_is_short_side_bicubic_and_centre_crop(size, image_size):
    image = noise(*size)
    scale = image_size / min(size)
    width, height = (image_size if side == min(size) else int(side * scale) for side in size)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    expected = image.resize((width, height), Image.Resampling.BICUBIC).crop(
        (left, top, left + image_size, top + image_size)
    )
    got = pixels_of(EvalTransform(image_size)(image))
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_a_crop_ratio_below_one_looks_at_the_centre_only():
    image = noise(64, 64)
    expected = image.resize((40, 40), Image.Resampling.BICUBIC).crop((4, 4, 36, 36))
    got = pixels_of(EvalTransform(32, crop_pct=0.8)(image))
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_training_without_augmentation_is_a_plain_resize():
    image = noise(64, 64)
    transform = TrainTransform(32, crop_scale=(1, 1), crop_ratio=(1, 1), **PLAIN, **MEAN)
    expected = image.resize((32, 32), Image.Resampling.BICUBIC)
    difference = np.abs(pixels_of(transform(image)).astype(int) - np.asarray(expected))
    assert difference.max() <= 2  # both passes of the filter round to 8 bits
    assert difference.mean() < 0.1


def test_the_official_recipe_is_random_but_repeatable():
    transform, image = TrainTransform(32, **MEAN), noise(64, 48)

    def drawn(seed):
        seed_everything(seed, verbose=False)
        return transform(image)

    assert drawn(0).shape == (3, 32, 32)
    torch.testing.assert_close(drawn(0), drawn(0), rtol=0, atol=0)
    assert not torch.equal(drawn(0), drawn(1))


@pytest.mark.parametrize("policy", ["rand-m10-n4-inc1", "original", "v0", "augmix-m3-w3"])
def test_every_policy_runs_at_its_strongest(policy):
    seed_everything(0, verbose=False)
    transform, image = TrainTransform(16, auto_augment=policy, **MEAN), noise(24, 24)
    for _ in range(60):
        assert transform(image).dtype == torch.uint8


def test_posterize_to_no_bits_gives_black_as_in_the_official_recipe():
    black = 0
    seed_everything(0, verbose=False)
    transform = TrainTransform(16, auto_augment="rand-m10-n6-inc1", color_jitter=0, **MEAN)
    for _ in range(100):
        black += int(transform(noise(24, 24)).max() == 0)
    assert black > 0


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r"auto_augment='magic'.*rand-m9"):
        TrainTransform(32, auto_augment="magic", **MEAN)


def test_very_long_images_do_not_take_memory_when_they_are_enlarged():
    transform = EvalTransform(32)
    for size in ((1, 3_000_000), (3_000_000, 1), (2, 1000)):
        assert transform(Image.new("RGB", size, (9, 9, 9))).shape == (3, 32, 32)


def test_the_middle_of_long_images_counts():
    pixels = np.zeros((4, 201, 3), np.uint8)
    pixels[:, 90:111] = 255
    image = Image.fromarray(pixels)
    assert np.asarray(shorten(image)).shape == (4, 65, 3)
    assert np.asarray(shorten(image))[:, 32].min() == 255
    usual = Image.new("RGB", (64, 4))
    assert shorten(usual) is usual


SIZES = [(500, 375), (1600, 1200), (1201, 3001), (90, 2000), (64, 64), (63, 65)]


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_drawn_from_the_original_size_by_timm(size):
    transform, image = TrainTransform(32, **MEAN), Image.new("L", size)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    for seed in range(20):
        random.seed(seed)
        top, left, rows, columns = RandomResizedCropAndInterpolation.get_params(image, scale, ratio)
        random.seed(seed)
        crop = transform.draw(*size)
        assert crop.box == (left, top, left + columns, top + rows)


@pytest.mark.parametrize("size", SIZES)
def test_a_reduced_crop_is_never_smaller_than_the_input(size):
    transform = TrainTransform(32, **MEAN)
    for seed in range(200):
        random.seed(seed)
        crop = transform.draw(*size)
        left, top, right, bottom = crop.box
        side = min(right - left, bottom - top)
        assert crop.reduction in (1, 2, 4, 8)
        assert crop.reduction == 1 or side / crop.reduction >= 32
        assert crop.reduction == 8 or side / (2 * crop.reduction) < 32


def smooth_jpeg(path, size):
    """A JPEG file without detail that a reduction by 8 would lose."""
    width, height = size
    Image.fromarray(np.asarray(noise(width // 32, height // 32))).resize(
        size, Image.Resampling.BICUBIC
    ).save(path, quality=95)
    return str(path)


@pytest.mark.parametrize("size", [(640, 480), (1201, 901)])
def test_reduced_decoding_gives_nearly_the_same_images(tmp_path, monkeypatch, size):
    """Both networks see the same crops; the difference is that of JPEG's filter from bicubic's."""
    decoded = []
    resized = Crop.resized
    monkeypatch.setattr(
        Crop, "resized", lambda crop, *args: decoded.append(args[0].size) or resized(crop, *args)
    )
    path = smooth_jpeg(tmp_path / "smooth.jpg", size)
    results = []
    for reduced in (False, True):
        transform = TrainTransform(32, **MEAN, **PLAIN, reduced_decoding=reduced)
        dataset = LabelledImages([path], [0], transform, train=True)
        seed_everything(1, verbose=False)
        results.append(torch.stack([dataset[0]["image"] for _ in range(20)]).float())
    assert set(decoded[:20]) == {size}
    assert all(width <= size[0] // 4 + 1 for width, _ in decoded[20:])
    difference = (results[0] - results[1]).abs()
    assert difference.mean() < 1
    assert difference.max() < 16


def test_evaluation_reduces_only_on_request(tmp_path):
    path = smooth_jpeg(tmp_path / "smooth.jpg", (640, 480))
    transform = EvalTransform(32)
    dataset = LabelledImages([path], [0], transform)
    exact = dataset[0]["image"].float()
    torch.testing.assert_close(exact, transform(Image.open(path)).float(), rtol=0, atol=0)
    assert transform.reduction(640, 480) == 8
    dataset.reduce = transform.reduction
    assert 0 < (dataset[0]["image"] - exact).abs().mean() < 1
