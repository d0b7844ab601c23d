import numpy as np
import pytest
import torch
from lightning import seed_everything
from PIL import Image

from src.data.transforms import eval_transform, train_transform
from src.data.transforms.classification import shorten
from src.errors import UserError

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PLAIN = {"auto_augment": None, "color_jitter": 0.0, "random_erasing": 0.0, "hflip": 0.0}


def noise(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def pixels_of(tensor):
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (H, W, C)


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
    got = pixels_of(eval_transform(image_size, **UNIT)(image))
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_a_crop_ratio_below_one_looks_at_the_centre_only():
    image = noise(64, 64)
    expected = image.resize((40, 40), Image.Resampling.BICUBIC).crop((4, 4, 36, 36))
    got = pixels_of(eval_transform(32, crop_pct=0.8, **UNIT)(image))
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_values_are_normalised_per_channel():
    white = Image.new("RGB", (8, 8), (255, 0, 51))
    got = eval_transform(8, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1))(white)
    torch.testing.assert_close(got[:, 0, 0], torch.tensor([1.0, -2.0, 1.0]))


def test_training_without_augmentation_is_a_plain_resize():
    image = noise(64, 64)
    transform = train_transform(32, crop_scale=(1, 1), crop_ratio=(1, 1), **PLAIN, **UNIT)
    expected = image.resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels_of(transform(image)), np.asarray(expected))


def test_the_official_recipe_is_random_but_repeatable():
    transform, image = train_transform(32, **UNIT), noise(64, 48)

    def drawn(seed):
        seed_everything(seed, verbose=False)
        return transform(image)

    assert drawn(0).shape == (3, 32, 32)
    torch.testing.assert_close(drawn(0), drawn(0), rtol=0, atol=0)
    assert not torch.equal(drawn(0), drawn(1))


def test_random_erasing_fills_with_noise_after_normalisation():
    always = PLAIN | {"random_erasing": 1.0}
    torch.manual_seed(0)
    black = train_transform(32, **always, **UNIT)(Image.new("RGB", (64, 64)))
    assert 0.02 < (black != 0).float().mean() < 0.4


@pytest.mark.parametrize("policy", ["rand-m10-n4-inc1", "original", "v0", "augmix-m3-w3"])
def test_every_policy_runs_at_its_strongest(policy):
    seed_everything(0, verbose=False)
    transform, image = train_transform(16, auto_augment=policy, **UNIT), noise(24, 24)
    for _ in range(60):
        assert transform(image).isfinite().all()


def test_posterize_to_no_bits_gives_black_as_in_the_official_recipe():
    black = 0
    seed_everything(0, verbose=False)
    transform = train_transform(
        16, auto_augment="rand-m10-n6-inc1", color_jitter=0, random_erasing=0, **UNIT
    )
    for _ in range(100):
        black += int(transform(noise(24, 24)).max() == 0)
    assert black > 0


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r"auto_augment='magic'.*rand-m9"):
        train_transform(32, auto_augment="magic", **UNIT)


def test_very_long_images_do_not_take_memory_when_they_are_enlarged():
    transform = eval_transform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
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
