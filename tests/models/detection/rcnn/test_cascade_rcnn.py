"""Cascade R-CNN predicts boxes without masks, with the same box offsets for all classes."""

from functools import partial

import torch

from src.losses.detection import smooth_l1_loss
from src.models import CascadeRCNN, InternImageBackbone

BACKBONE = partial(InternImageBackbone, channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SIZES = [(60, 64)]


def make_detector(**arguments) -> CascadeRCNN:
    torch.manual_seed(0)
    return CascadeRCNN(3, BACKBONE, channels=16, fc_channels=32, **arguments)


def test_losses_have_no_masks_and_reach_every_parameter() -> None:
    detector = make_detector().train()
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([2])}
    output = detector(IMAGE, SIZES, targets=[target])
    stages = [f"s{stage}.loss_{name}" for stage in range(3) for name in ("cls", "bbox")]
    assert sorted(output.losses) == sorted(["loss_rpn_cls", "loss_rpn_bbox", *stages])
    torch.stack([loss.sum() for loss in output.losses.values()]).sum().backward()
    assert all(p.grad is not None for p in detector.parameters())


def test_all_classes_have_the_same_offsets() -> None:
    head = make_detector().roi_head.box_heads[0]
    logits, offsets = head(torch.randn(5, 16, 7, 7))
    assert logits.shape == (5, 4)
    assert offsets.shape == (5, 3, 4)
    assert (offsets == offsets[:, :1]).all()
    assert head.fc_reg.weight.shape == (4, 32)


def test_box_loss_is_smooth_l1_of_the_offsets() -> None:
    head = make_detector().roi_head
    boxes, truth = torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([[2.0, 0, 22, 20]])
    found = head.box_loss(1, boxes, torch.zeros(1, 4), truth, number=2)
    # 0.1 of the width, over the scale 0.05 of the second stage: an offset of 2.
    expected = smooth_l1_loss(torch.tensor([2.0]), torch.zeros(1), 2, beta=1.0)
    assert torch.isclose(found, expected)


def test_detections_have_no_masks() -> None:
    detector = make_detector(score_threshold=0.0, max_detections=7).eval()
    (found,) = detector(IMAGE, SIZES, [(120, 128)])
    assert found.masks is None
    assert found.boxes.shape == (7, 4)
    assert (found.scores.diff() <= 0).all()
    assert detector.kinds == ("bbox",)
