"""Mask R-CNN and Cascade Mask R-CNN compute what the official code computes.

Bounds: see ``tests/official.py``. From images to detections and gradients, float32 runs are
compared given the values of the float64 run: the order of two scores, the overlap of two boxes and
the sign of a ReLU input decide about more than rounding does.
"""

from functools import cache

import numpy as np
import pytest
import torch

from src.models.detection.boxes import BoxCoder, resize_factor
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.models.weights.names import official_names
from tests.models.detection.conftest import ORIGINAL_SIZES, SIZES, read_run
from tests.models.steps import run_in_steps
from tests.official import FACTOR, close

slow = pytest.mark.slow
RUNS = [
    pytest.param("mask_rcnn_t", torch.float32, id="mask_rcnn-fp32"),
    pytest.param("mask_rcnn_t", torch.float64, id="mask_rcnn-fp64", marks=slow),
    pytest.param("cascade_l", torch.float32, id="cascade-fp32"),
    pytest.param("cascade_l", torch.float64, id="cascade-fp64", marks=slow),
]
STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]

runs = pytest.mark.parametrize(("name", "dtype"), RUNS)


@pytest.fixture(scope="module")
def read():
    return cache(read_run)


@torch.no_grad()
def check_forward(official):
    """Compare feature maps, predictions of the RPN and of the heads on given boxes."""
    network, numbers = official.network, official.numbers
    for i, level in enumerate(network.backbone(official.image)):
        numbers.check(level[:, ::8, ::2, ::2], f"backbone{i}", f"backbone{i}_sub")
        numbers.check_summary(level, f"backbone{i}")
    for i, level in enumerate(pyramid := network.extract_features(official.image)):
        numbers.check(level[:, ::32, ::2, ::2], f"fpn{i}", f"fpn{i}_sub")
        numbers.check_summary(level, f"fpn{i}")
    rpn = network.rpn_head.predict(pyramid)
    for i, anchor in enumerate(rpn.anchors):
        ends = torch.cat([anchor[:6], anchor[-6:]])
        numbers.check(ends, f"anchors{i}", f"anchors{i}_first_last")
        height, width = rpn.cells[i]
        for name, found in (("rpn_cls", rpn.logits[i]), ("rpn_reg", rpn.offsets[i])):
            cells = found.view(2, height, width, -1).permute(0, 3, 1, 2)
            numbers.check(cells, f"{name}{i}")
            numbers.check_summary(cells, f"{name}{i}")
    check_heads(official, pyramid)


def check_heads(official, pyramid):
    numbers, head = official.numbers, official.network.roi_head
    rois = boxes_with_image(official.fixed_proposals)
    features = align_on_pyramid(pyramid, rois, 7)
    numbers.check(features[:4, ::16], "fixed_roi_feat_first4", "fixed_roi_feat_first4_sub")
    mask_features = align_on_pyramid(pyramid, rois, 14)[::5]
    for stage, (box_head, mask_head) in enumerate(
        zip(head.box_heads, head.mask_heads, strict=True)
    ):
        logits, offsets = box_head(features)
        masks = mask_head(mask_features)[:, ::20]
        numbers.check(logits, f"fixed_cls_score_s{stage}")
        numbers.check(offsets.flatten(1), f"fixed_bbox_pred_s{stage}")
        numbers.check(logits[:20].softmax(1), f"fixed_scores_img0_s{stage}")
        name = f"fixed_mask_logits_s{stage}"
        numbers.check(masks, name, f"{name}_sub")
        boxes = BoxCoder(STDS[stage]).decode(rois[:20, 1:], offsets[:20], SIZES[0])
        boxes = boxes / resize_factor(SIZES[0], ORIGINAL_SIZES[0], boxes)
        name = f"fixed_decoded_img0_s{stage}"
        numbers.check(boxes.flatten(1)[:, ::8], name, f"{name}_sub")


@runs
def test_feature_maps_and_heads(read, name, dtype):
    check_forward(read(name, dtype))


@torch.no_grad()
def detect(official):
    """Proposals and detections, as `TwoStageDetector.detect` makes them."""
    network = official.network
    pyramid = network.extract_features(official.image)
    proposals = network.propose(pyramid, SIZES)
    boxes = [p.boxes for p in proposals]
    return proposals, network.roi_head.detect(pyramid, boxes, SIZES, ORIGINAL_SIZES)


@slow
@runs
def test_proposals_and_detections_in_order_with_masks(read, name, dtype):
    official, exact = read(name, dtype), read(name, torch.float64)
    proposals, detections = in_steps(detect, official, exact)
    arrays, numbers = official.arrays, official.numbers
    for kind, results in (("proposals", proposals), ("det_boxes", detections)):
        for i, found in enumerate(results):
            stored = arrays[f"{kind}{i}"]
            close(found.boxes, stored[:, :4], numbers.bound(f"{kind}{i}"), kind)
            distance = (arrays[f"{kind}{i}_f32"] - stored)[:, 4].abs().max()
            close(found.scores, stored[:, 4], FACTOR * float(distance), kind)
    for i, found in enumerate(detections):
        assert found.labels.tolist() == arrays[f"det_labels{i}"].tolist()
        # A pixel whose probability is within rounding of the threshold.
        pixels = 1 if dtype == torch.float32 else 0
        area = found.masks.sum(dim=(1, 2)) - arrays[f"det_mask_area{i}"]
        assert area.abs().max() <= pixels
        bits = np.unpackbits(arrays[f"det_masks{i}_packed"].numpy(), axis=1)
        masks = bits[:, : found.masks[0].numel()].reshape(-1, *ORIGINAL_SIZES[i])
        different = (masks != found.masks[: len(masks)].numpy()).sum(axis=(1, 2))
        assert different.max() <= pixels


def in_steps(run, official, exact, share=None):
    """Result of a function of an official run, given the values of another one."""
    return run_in_steps(
        lambda network: run(official if network is official.network else exact),
        official.network,
        exact.network,
        share or official.numbers.forward_share,
    )


def check_training(official, exact, sampling, share=None):
    """Compare losses and gradients, those of float32 given the values of a float64 run, ``exact``.

    ``share`` is how far a layer may be off, see `from_steps`.
    """

    def losses(official):
        return official.network(official.image, SIZES, targets=official.targets)

    for network in (official.network, exact.network):
        choose_first(network, sampling)
    official.network.zero_grad()
    found = in_steps(losses, official, exact, share)
    percent = {name: 100 * fraction for name, fraction in found.metrics.items()}
    official.numbers.check_losses(found.losses | percent, f"loss_{sampling}/")
    sum(value.sum() for value in found.losses.values()).backward()
    names = official_names(official.network)
    gradients = {names[key]: p.grad for key, p in official.network.named_parameters()}
    order, stored = official.param_order, f"loss_{sampling}/grad_norms"
    official.numbers.check_gradient_norms(gradients, order, stored)
    if sampling == "nosample":
        official.numbers.check_gradients(gradients, "grad_nosample/")


@pytest.mark.parametrize("sampling", [pytest.param("nosample", marks=slow), "first_k"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [RUNS[0], *(pytest.param(*run.values, id=run.id, marks=slow) for run in RUNS[1:])],
)
def test_losses_and_gradients(name, dtype, sampling):
    official = read_run(name, dtype)
    exact = official if dtype == torch.float64 else read_run(name, torch.float64)
    check_training(official, exact, sampling)


def choose_first(network, sampling):
    for sampler in samplers_of(network):
        if sampling == "nosample":
            sampler.number = 10**6
        sampler.choose = lambda candidates, number: candidates[:number]


def samplers_of(network):
    return [network.rpn_head.sampler, *(region.sampler for region in network.roi_head.regions)]
