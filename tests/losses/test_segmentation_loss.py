"""Cross entropy per pixel, with ignored pixels."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from src.errors import UserError
from src.losses.segmentation import SegmentationLoss, pixel_cross_entropy


@pytest.fixture
def logits():
    return torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def label():
    label = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    label[:, :2] = 255
    return label


def test_official_mean_counts_ignored_pixels(logits, label):
    labelled = pixel_cross_entropy(logits, label, "labelled")
    assert_close(labelled, F.cross_entropy(logits, label, ignore_index=255))
    assert_close(pixel_cross_entropy(logits, label), labelled * 3 / 5)


@pytest.mark.parametrize("average", ["all", "labelled"])
def test_nothing_labelled_is_zero_with_zero_gradients(logits, label, average):
    loss = pixel_cross_entropy(logits, torch.full_like(label, 255), average)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_heads_and_their_weights(logits, label):
    losses = SegmentationLoss(aux_weight=0.25)({"out": logits, "aux": logits}, label)
    assert_close(losses["loss_aux"], losses["loss_decode"] / 4)
    assert set(SegmentationLoss()({"out": logits}, label)) == {"loss_decode"}


@pytest.mark.parametrize("arguments", [{"average": "mean"}, {"aux_weight": -1.0}])
def test_bad_arguments(arguments):
    with pytest.raises(UserError):
        SegmentationLoss(**arguments)
