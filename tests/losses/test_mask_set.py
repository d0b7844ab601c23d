"""Loss over a set of masks: targets, points, matching, odd images."""

import math

import pytest
import torch
from torch.testing import assert_close

from src.errors import UserError
from src.losses.mask_set import MaskSetLoss, dice, mask_targets, query_classes, sample_points


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def halves(height=16, width=16):
    """Class 2 on the left, class 0 on the right, an unlabelled stripe at the top."""
    label = torch.zeros(height, width, dtype=torch.int64)
    label[:, : width // 2] = 2
    label[:2] = 255
    return label


def perfect(label, num_classes=3, num_queries=5):
    """Outputs whose first queries say exactly what is in the label map, last class first."""
    target = mask_targets(label)
    classes = torch.full((1, num_queries, num_classes + 1), -20.0)
    classes[..., -1] = 20.0
    masks = torch.full((1, num_queries, *label.shape), -20.0)
    for query, (number, mask) in enumerate(zip(target.classes, target.masks, strict=True)):
        classes[0, query, -1] = -20.0
        classes[0, query, number] = 20.0
        masks[0, query] = 40 * mask - 20
    return classes.flip(1), masks.flip(1)


def test_targets_are_the_labelled_classes():
    target = mask_targets(halves())
    assert target.classes.tolist() == [0, 2]
    assert target.masks.sum((1, 2)).tolist() == [14 * 8, 14 * 8]
    assert mask_targets(torch.full((4, 4), 255)).masks.shape == (0, 4, 4)


def test_points_read_pixel_centers_and_between_them():
    maps = torch.arange(8.0).view(1, 2, 4)
    points = torch.tensor([[[0.125, 0.25], [0.875, 0.75], [0.25, 0.5]]])
    assert_close(sample_points(maps, points), torch.tensor([[0.0, 7.0, (0 + 1 + 4 + 5) / 4]]))
    both = sample_points(maps.expand(3, 2, 4), points)
    assert_close(both, sample_points(maps.expand(3, 2, 4), points.expand(3, 3, 2)))


def test_dice_is_one_minus_overlap():
    logits, target = torch.tensor([[50.0, 50.0, -50.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert_close(dice(logits, target), torch.tensor([1 - 3 / 4]))


def test_right_answers_cost_little_and_empty_masks_much():
    label = halves()
    classes, masks = perfect(label)
    loss = MaskSetLoss(num_points=400, importance_ratio=0.0)
    right = loss({"class_logits": [classes], "mask_logits": [masks]}, label[None])
    assert right.keys() == {"loss_class", "loss_mask", "loss_dice"}
    assert right["loss_class"] < 1e-6
    wrong = loss({"class_logits": [classes], "mask_logits": [0 * masks - 20]}, label[None])
    # Not nothing even if right: between a pixel inside and one outside the truth is a fraction.
    assert right["loss_mask"] < 0.05 * wrong["loss_mask"]
    assert right["loss_dice"] < 0.2 * wrong["loss_dice"]


def test_matching_finds_the_query_of_each_class():
    label = halves()
    classes, masks = perfect(label)
    target = mask_targets(label)
    pair = MaskSetLoss(num_points=100).hungarian_match(classes[0], masks[0], target)
    wanted = query_classes(classes, [target], [pair])
    assert wanted.tolist() == [[3, 3, 3, 2, 0]]


def test_layers_have_losses_of_their_own():
    label = halves()
    classes, masks = perfect(label)
    losses = MaskSetLoss(num_points=50)(
        {"class_logits": [0 * classes, classes], "mask_logits": [0 * masks, masks]}, label[None]
    )
    assert len(losses) == 6
    assert losses["layer0_loss_mask"].item() == pytest.approx(5 * math.log(2), rel=1e-4)
    assert losses["layer0_loss_class"].item() == pytest.approx(2 * math.log(4), rel=1e-4)


def test_most_points_are_where_the_mask_is_uncertain():
    mask = torch.linspace(-10, 10, 64).expand(1, 64, 64)  # undecided in the middle columns
    points = MaskSetLoss(num_points=400).training_points(mask)
    assert points.shape == (1, 400, 2)
    distance = (points[0, :, 0] - 0.5).abs()
    assert (distance[:300] < 0.2).all()
    assert (distance[300:] > 0.2).any()


def test_a_batch_without_labels_trains_only_the_no_object_class():
    outputs = {
        "class_logits": [torch.randn(2, 5, 4, requires_grad=True)],
        "mask_logits": [torch.randn(2, 5, 8, 8, requires_grad=True)],
    }
    losses = MaskSetLoss(num_points=20)(outputs, torch.full((2, 32, 32), 255))
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    sum(losses.values()).backward()
    assert outputs["class_logits"][0].grad.abs().sum() > 0
    assert not outputs["mask_logits"][0].grad.any()


def test_one_image_without_labels_beside_one_with():
    outputs = {"class_logits": [torch.randn(2, 5, 4)], "mask_logits": [torch.randn(2, 5, 8, 8)]}
    label = torch.stack([torch.full((16, 16), 255), halves()])
    losses = MaskSetLoss(num_points=20)(outputs, label)
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_mask"] > 0


def test_more_classes_than_queries():
    label = torch.arange(64).view(1, 8, 8)
    outputs = {"class_logits": [torch.randn(1, 5, 65)], "mask_logits": [torch.randn(1, 5, 4, 4)]}
    target = mask_targets(label[0])
    loss = MaskSetLoss(num_points=20)
    query, position = loss.hungarian_match(
        outputs["class_logits"][0][0], outputs["mask_logits"][0][0], target
    )
    assert query.tolist() == [0, 1, 2, 3, 4]
    assert len(set(position.tolist())) == 5
    assert all(value.isfinite() for value in loss(outputs, label).values())


def test_numbers_that_are_not_finite_show_in_the_loss():
    outputs = {
        "class_logits": [torch.randn(1, 5, 4)],
        "mask_logits": [torch.full((1, 5, 8, 8), math.nan)],
    }
    assert MaskSetLoss(num_points=20)(outputs, halves()[None])["loss_mask"].isnan()


def test_masks_are_averaged_over_all_processes(monkeypatch):
    label = halves()  # two masks here, six in the other process
    classes, masks = perfect(label)
    outputs = {"class_logits": [classes], "mask_logits": [0 * masks]}
    alone = MaskSetLoss(num_points=50)(outputs, label[None])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(6))
    shared = MaskSetLoss(num_points=50)(outputs, label[None])
    assert_close(shared["loss_mask"], alone["loss_mask"] * 2 / 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 0}, "num_points"),
        ({"oversample_ratio": 0.5}, "oversample_ratio"),
        ({"importance_ratio": 1.5}, "importance_ratio"),
        ({"dice_weight": -1.0}, "weights"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(UserError, match=message):
        MaskSetLoss(**changes)


def test_outputs_of_another_segmentor():
    with pytest.raises(UserError, match="Mask2Former"):
        MaskSetLoss()({"out": torch.zeros(1, 3, 8, 8)}, torch.zeros(1, 8, 8))
