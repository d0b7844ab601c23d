"""Normalisation and random erasing of batches, against what torchvision and timm do to an image."""

import random

import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torchvision.transforms.functional import normalize, to_tensor

from src.data.transforms import Erasing, Normalization
from src.data.transforms.batches import clear_padding

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_values_are_those_of_torchvision():
    batch = images(4)
    expected = [normalize(to_tensor(image.permute(1, 2, 0).numpy()), MEAN, STD) for image in batch]
    got = Normalization(MEAN, STD)(batch)
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=0)


def test_other_images_are_left_alone():
    prepared = torch.rand(2, 3, 8, 8)
    assert Normalization(MEAN, STD)(prepared) is prepared


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_an_image_is_erased_as_by_timm(mode):
    """The same seed gives the same rectangle and the same colours."""
    batch = Normalization(MEAN, STD)(images(1))
    expected = batch[0].clone()
    random.seed(3), torch.manual_seed(3)
    RandomErasing(1.0, mode=mode, max_count=2, device="cpu")(expected)
    random.seed(3), torch.manual_seed(3)
    torch.testing.assert_close(Erasing(1.0, mode, 2)(batch)[0], expected, rtol=0, atol=0)


def test_every_image_is_erased_with_its_probability():
    random.seed(0)
    count, probability = 2000, 0.25
    batch = torch.ones(count, 3, 16, 16)
    erased = (Erasing(probability, "const")(batch) == 0).any(1).flatten(1).any(1)
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert erased.float().mean().item() == pytest.approx(probability, abs=5 * deviation)


def test_padding_is_cleared():
    batch = clear_padding(torch.ones(2, 3, 6, 8), torch.tensor([[4, 8], [6, 5]]))
    expected = torch.zeros(2, 3, 6, 8)
    expected[0, :, :4, :8], expected[1, :, :6, :5] = 1, 1
    torch.testing.assert_close(batch, expected)
