"""What the parts of a detector promise, on cases small enough to check by hand."""

import logging
from functools import partial

import pytest
import torch

from src.losses.detection import accuracy, giou_loss, l1_loss, mask_loss, smooth_l1_loss
from src.models import InternImageBackbone
from src.models.detection import CascadeMaskRCNN, MaskRCNN
from src.models.detection.boxes import BoxCoder, clip, pairwise_iou
from src.models.detection.nms import grouped_nms
from src.models.detection.rcnn.anchors import AnchorGenerator
from src.models.detection.rcnn.assigner import BACKGROUND, IGNORED, MaxIoUAssigner, RandomSampler
from src.models.detection.rcnn.mask_head import mask_targets
from src.models.detection.rcnn.postprocess import paste_masks
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.models.weights import load_official, to_official

TINY = {
    "backbone": partial(InternImageBackbone, channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 2, 4)),
    "channels": 16,
    "fc_channels": 32,
    "rpn_post_nms_top_n_train": 40,
    "rpn_post_nms_top_n_test": 40,
    "box_batch_size_per_image": 16,
}


@pytest.fixture(params=[MaskRCNN, CascadeMaskRCNN])
def detector(request):
    torch.manual_seed(0)
    return request.param(num_classes=3, **TINY)


def target(boxes, labels, size=(64, 96)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "masks": masks,
    }


def test_anchors_are_centred_on_the_corner_of_their_cell():
    anchors = AnchorGenerator(strides=(4,))([(2, 3)], torch.zeros(1))[0].view(2, 3, 3, 4)
    assert anchors[0, 0, 1].tolist() == [-16, -16, 16, 16]  # ratio 1 of 8 cells of 4 pixels
    assert (anchors[1, 2, 1] - anchors[0, 0, 1]).tolist() == [8, 4, 8, 4]
    width, height = (anchors[0, 0, 0, 2:] - anchors[0, 0, 0, :2]).tolist()
    assert height / width == pytest.approx(0.5)


def test_anchors_beyond_the_padding_of_an_image_are_not_its_own():
    flags = AnchorGenerator(strides=(4,)).valid([(2, 3)], (8, 8), torch.device("cpu"))[0]
    assert flags.view(2, 3, 3)[..., 0].tolist() == [[True, True, False]] * 2


def test_coder_undoes_itself_and_limits_growth():
    boxes = torch.tensor([[10.0, 10, 30, 50], [0, 0, 8, 8]])
    targets = torch.tensor([[12.0, 5, 40, 45], [1, 2, 3, 9]])
    coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(coder.decode(boxes, coder.encode(boxes, targets)), targets)
    grown = coder.decode(boxes[1:], torch.tensor([[0.0, 0, 1000, 0]]))
    assert float(grown[0, 2] - grown[0, 0]) == pytest.approx(8 * 1000 / 16)


def test_decoding_for_every_class_clips_to_the_image():
    boxes = BoxCoder().decode(torch.tensor([[0.0, 0, 10, 10]]), torch.ones(1, 5, 4), (12, 15))
    assert boxes.shape == (1, 5, 4)
    assert boxes.amax(dim=(0, 1)).tolist() == pytest.approx([1.4, 1.4, 15, 12], abs=0.1)


def test_iou_of_boxes_without_area_is_zero():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    assert pairwise_iou(boxes, boxes).tolist() == [[1, 0], [0, 0]]
    assert clip(torch.tensor([-5.0, 3, 20, 99]), (10, 12)).tolist() == [0, 3, 12, 10]


def test_assignment_by_overlap_with_and_without_low_quality_matches():
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 24], [50, 50, 60, 60]])
    strict = MaxIoUAssigner(0.7, 0.3)(boxes, objects)
    assert strict.tolist() == [1, IGNORED, IGNORED, BACKGROUND]
    generous = MaxIoUAssigner(0.7, 0.3, low_quality_iou=0.3)(boxes, objects)
    assert generous.tolist() == [1, IGNORED, 2, BACKGROUND]
    assert MaxIoUAssigner(0.7, 0.3)(boxes, objects[:0]).tolist() == [BACKGROUND] * 4


def test_sampler_limits_positives_and_fills_up_with_negatives():
    assigned = torch.tensor([1] * 20 + [0] * 100 + [-1] * 5)
    sample = RandomSampler(32, 0.25)(assigned)
    assert (len(sample.positive), len(sample.negative)) == (8, 24)
    assert sample.positive.tolist() == sorted(sample.positive.tolist())
    assert set(sample.matched_gt.tolist()) == {0}
    few = RandomSampler(32, 0.25)(assigned[18:])
    assert (len(few.positive), len(few.negative)) == (2, 30)


@pytest.mark.parametrize("split_from", [10_000, 1])
def test_nms_only_within_groups(split_from, monkeypatch):
    monkeypatch.setattr("src.models.detection.nms.SPLIT_FROM", split_from)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [40, 40, 50, 50]])
    kept = grouped_nms(boxes, torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 1, 0]), 0.5)
    assert kept.tolist() == [1, 2, 3]
    assert grouped_nms(boxes[:0], torch.empty(0), torch.empty(0).long(), 0.5).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_16_bits_are_cut_where_the_boxes_are(dtype):
    ramp = torch.arange(400.0).expand(1, 1, 100, 400)  # too far apart for boxes of 16 bits
    pyramid = [(ramp[:, :, ::n, ::n] / 400).to(dtype) for n in (1, 2, 4, 8)]
    rois = boxes_with_image([torch.tensor([[1201.3, 40.0, 1209.7, 48.4]])])
    cut = align_on_pyramid(pyramid, rois, 7)
    assert cut.dtype == dtype
    exact = align_on_pyramid([level.float() for level in pyramid], rois, 7)
    torch.testing.assert_close(cut, exact.to(dtype), atol=0, rtol=0)


def test_pasted_mask_fills_its_box():
    masks = paste_masks(
        torch.ones(3, 28, 28),
        torch.tensor([[10.0, 5, 30, 15], [-10, -10, 5, 5], [50, 50, 60, 60]]),
        (40, 40),
        0.5,
    )
    assert masks.sum(dim=(1, 2)).tolist() == [200, 25, 0]
    assert masks[0, 5:15, 10:30].all()


def test_mask_target_is_the_part_of_the_object_in_the_box():
    mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
    mask[0, :, :20] = 1
    targets = mask_targets([torch.tensor([[10.0, 0, 30, 40]])], [torch.tensor([0])], [mask])
    assert targets.shape == (1, 28, 28)
    assert targets[0, :, :14].all()
    assert not targets[0, :, 14:].any()


def test_losses_by_hand():
    a, b = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1]])
    assert float(l1_loss(a, b, 2)) == pytest.approx(0.5)
    assert float(smooth_l1_loss(a, b, 1, beta=2)) == pytest.approx(0.25)
    assert float(giou_loss(a, b, 1)) == pytest.approx(0.5)
    far = torch.tensor([[3.0, 0, 4, 1]])
    assert float(giou_loss(b, far, 1)) == pytest.approx(1 + 1 / 4)
    assert float(mask_loss(torch.zeros(0, 28, 28), torch.zeros(0, 28, 28))) == 0
    assert float(accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))) == 0.75


def test_images_with_and_without_objects_train_together(detector):
    image = torch.randn(2, 3, 64, 96)
    targets = [target([[8, 8, 40, 40], [50, 20, 51, 21]], [0, 2]), target([], [])]
    output = detector(image, [(64, 96), (60, 70)], targets=targets)
    total = sum(value.sum() for value in output.losses.values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_a_batch_without_objects_trains_every_parameter(detector):
    output = detector(torch.randn(1, 3, 64, 96), [(64, 96)], targets=[target([], [])])
    sum(value.sum() for value in output.losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_metrics_are_apart_from_losses(detector):
    targets = [target([[8, 8, 40, 40]], [0])]
    losses, metrics = detector(torch.randn(1, 3, 64, 96), [(64, 96)], targets=targets)
    assert all(value.requires_grad for value in losses.values())
    assert {name.rpartition(".")[2] for name in metrics} == {"acc"}
    assert not any(value.requires_grad for value in metrics.values())


@torch.no_grad()
def test_intermediate_results_can_be_read(detector):
    sizes = [(64, 96), (60, 70)]
    pyramid = detector.eval().extract_features(torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape[2:]) for level in pyramid] == [
        (16, 24), (8, 12), (4, 6), (2, 3), (1, 2),
    ]  # fmt: skip
    rpn = detector.rpn_head.predict(pyramid)
    assert [len(anchors) for anchors in rpn.anchors] == [3 * h * w for h, w in rpn.cells]
    assert [level.shape[1] for level in rpn.logits] == [len(anchors) for anchors in rpn.anchors]
    for found, (height, width) in zip(detector.propose(pyramid, sizes), sizes, strict=True):
        assert 0 < len(found.boxes) <= 40
        assert found.boxes[:, 0::2].max() <= width
        assert found.boxes[:, 1::2].max() <= height
        assert found.scores.diff().max() <= 0


def test_detections_refer_to_the_original_image(detector):
    detector.roi_head.limits = type(detector.roi_head.limits)(score=0.0, per_image=5)
    detector.eval()
    sizes, original = [(64, 96), (60, 70)], [(128, 192), (90, 105)]
    found = detector(torch.randn(2, 3, 64, 96), sizes, original)
    for detections, (height, width) in zip(found, original, strict=True):
        assert len(detections.scores) == 5
        assert detections.masks.shape == (5, height, width)
        assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= torch.tensor([width, height, width, height])).all()


def test_a_high_threshold_finds_nothing(detector):
    detector.roi_head.limits = type(detector.roi_head.limits)(score=1.0)
    found = detector.eval()(torch.randn(1, 3, 64, 96), [(64, 96)])[0]
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 64, 96)


def test_meta_device_start_equals_the_usual_one_in_kind(detector):
    with torch.device("meta"):
        empty = type(detector)(num_classes=3, **TINY)
    empty.to_empty(device="cpu")
    for module in empty.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for (name, ours), usual in zip(empty.named_parameters(), detector.parameters(), strict=True):
        assert float(ours.std()) == pytest.approx(float(usual.std()), rel=0.6, abs=1e-3), name


def test_weights_of_other_classes_leave_only_the_class_layers_fresh(detector, caplog):
    official = to_official(detector)
    network = type(detector)(num_classes=5, **TINY)
    with caplog.at_level(logging.WARNING):
        report = load_official(network, official)
    assert {name.split(".")[-2] for name in report.fresh} == {"fc_cls", "fc_reg", "conv_logits"}
    assert "4 class outputs, the network 6" in caplog.text
    ours = network.state_dict()
    for name, value in detector.state_dict().items():
        if not any(part in name for part in ("fc_cls", "fc_reg", "conv_logits")):
            assert torch.equal(ours[name], value), name


def test_official_names_are_kept_outside_the_backbone(detector):
    names = [name for name in to_official(detector) if not name.startswith("backbone.")]
    assert names == [name for name in detector.state_dict() if not name.startswith("backbone.")]
