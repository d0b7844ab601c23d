"""Mask R-CNN and Cascade Mask R-CNN compute what the official code computes.

Float64 runs agree to rounding of the stored arrays (most are stored as float32). Float32 runs agree
step by step: each from the boxes that the official code had, as a box that rounding moves by 1e-4
pixels changes scores by 4e-6 in the official code too. What is left from picture to detections and
gradients is bounded by the official float32 run. oneDNN is off in the latter: on some processors
its float32 convolutions round three times as much as PyTorch's own, enough to swap detections whose
scores differ by 1e-6.
"""

import numpy as np
import pytest
import torch

from src.models.detectors.boxes import BoxCoder
from src.models.detectors.roi_align import align_on_pyramid, boxes_with_image
from src.models.detectors.roi_head import resize_factor
from src.models.official_names import official_names
from tests.models.detectors.conftest import ORIGINAL_SIZES, SIZES, read_run
from tests.models.detectors.decisions import decided, decisions_of

slow = pytest.mark.slow
RUNS = [
    pytest.param("mask_rcnn_t", torch.float32, id="mask_rcnn-fp32"),
    pytest.param("mask_rcnn_t", torch.float64, id="mask_rcnn-fp64", marks=slow),
    pytest.param("cascade_l", torch.float32, id="cascade-fp32"),
    pytest.param("cascade_l", torch.float64, id="cascade-fp64", marks=slow),
]
STAGES = {"mask_rcnn_t": 1, "cascade_l": 3}
ROUNDING = {"mask_rcnn_t": 1e-5, "cascade_l": 1e-4}
"""Of float32 gradients: share of the largest norm. ReLU inputs close to 0 change sign."""
STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]


def slow_run(run):
    return pytest.param(*run.values, id=run.id, marks=slow)


runs = pytest.mark.parametrize(("name", "dtype"), RUNS)


@pytest.fixture(scope="module", autouse=True)
def _plain_convolutions():
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture(scope="module")
def read():
    kept = {}

    def run(name, dtype):
        if (name, dtype) not in kept:
            official = read_run(name, dtype)
            with torch.no_grad():
                official.maps = official.network.backbone(official.image)
                official.pyramid = official.network.neck(official.maps)
            kept[name, dtype] = official
        return kept[name, dtype]

    return run


def assert_equal(ours, stored, fp32_atol, *, fp64_atol=3e-7):
    """Compare with a stored array; float64 is limited by arrays stored as float32."""
    atol = fp64_atol if ours.dtype == torch.float64 else fp32_atol
    stored = torch.as_tensor(np.asarray(stored))
    torch.testing.assert_close(ours.double(), stored.double(), atol=atol, rtol=0)


def proposals_of(official):
    network, pyramid = official.network, official.pyramid
    with torch.no_grad():
        logits, offsets = network.rpn_head(pyramid)
    anchors = network.rpn_head.anchors([p.shape[-2:] for p in pyramid], offsets[0])
    limits = network.rpn_head.test_limits
    return (
        logits,
        offsets,
        anchors,
        network.rpn_head.propose(logits, offsets, anchors, SIZES, limits),
    )


@runs
def test_features(read, name, dtype):
    official = read(name, dtype)
    for i, level in enumerate(official.maps):
        assert_equal(level[:, ::8, ::2, ::2], official.arrays[f"backbone{i}_sub"], 2e-5)
    for i, level in enumerate(official.pyramid):
        assert_equal(level[:, ::32, ::2, ::2], official.arrays[f"fpn{i}_sub"], 2e-5)
        length = level.double().norm()
        assert float(length) == pytest.approx(official.arrays[f"fpn{i}_sum_norm"][1], rel=1e-6)


@runs
def test_proposals(read, name, dtype):
    official = read(name, dtype)
    logits, offsets, anchors, proposals = proposals_of(official)
    for i, anchor in enumerate(anchors):
        height, width = official.pyramid[i].shape[-2:]
        ends = torch.cat([anchor[:6], anchor[-6:]])
        assert_equal(ends, official.arrays[f"anchors{i}_first_last"], 2e-5, fp64_atol=1e-12)
        cells = logits[i].view(2, height, width, 3).permute(0, 3, 1, 2)
        assert_equal(cells, official.arrays[f"rpn_cls{i}"], 2e-5)
        cells = offsets[i].view(2, height, width, 12).permute(0, 3, 1, 2)
        assert_equal(cells, official.arrays[f"rpn_reg{i}"], 2e-5)
    for i, found in enumerate(proposals):
        stored = official.arrays[f"proposals{i}"]
        assert_equal(found.boxes, stored[:, :4], 2e-3, fp64_atol=1e-10)
        assert_equal(found.scores, stored[:, 4], 1e-6, fp64_atol=1e-12)


@runs
def test_heads_on_given_boxes(read, name, dtype):
    official = read(name, dtype)
    head = official.network.roi_head
    rois = boxes_with_image(official.fixed_proposals)
    features = align_on_pyramid(official.pyramid, rois, 7)
    assert_equal(features[:4, ::16], official.arrays["fixed_roi_feat_first4_sub"], 2e-5)
    mask_features = align_on_pyramid(official.pyramid, rois, 14)[::5]
    for stage in range(STAGES[name]):
        bbox_head = head.bbox_head if name == "mask_rcnn_t" else head.bbox_head[stage]
        mask_head = head.mask_head if name == "mask_rcnn_t" else head.mask_head[stage]
        with torch.no_grad():
            logits, offsets = bbox_head(features)
            masks = mask_head(mask_features)
        stored = {key.removesuffix(f"_s{stage}"): a for key, a in official.arrays.items()}
        assert_equal(logits, stored["fixed_cls_score"], 2e-5)
        assert_equal(offsets.flatten(1), stored["fixed_bbox_pred"], 2e-5)
        assert_equal(logits[:20].softmax(1), stored["fixed_scores_img0"], 1e-6, fp64_atol=1e-12)
        assert_equal(masks[:, ::20], official.arrays[f"fixed_mask_logits_s{stage}_sub"], 3e-5)
        boxes = BoxCoder(STDS[stage]).decode(rois[:20, 1:], offsets[:20], SIZES[0])
        boxes = boxes / resize_factor(SIZES[0], ORIGINAL_SIZES[0], boxes)
        decoded = official.arrays[f"fixed_decoded_img0_s{stage}_sub"]
        assert_equal(boxes.flatten(1)[:, ::8], decoded, 2e-3, fp64_atol=1e-5)


@pytest.mark.parametrize(("name", "dtype"), [*(slow_run(run) for run in RUNS[:2]), *RUNS[2:]])
def test_detections_in_order_with_masks(read, name, dtype):
    official = read(name, dtype)
    boxes = [p.boxes for p in proposals_of(official)[-1]]
    with torch.no_grad():
        detections = official.network.roi_head.detect(
            official.pyramid, boxes, SIZES, ORIGINAL_SIZES
        )
    for i, found in enumerate(detections):
        stored = official.arrays[f"det_boxes{i}"]
        assert found.labels.tolist() == official.arrays[f"det_labels{i}"].tolist()
        assert_equal(found.boxes, stored[:, :4], 2e-3, fp64_atol=1e-10)
        assert_equal(
            found.scores, stored[:, 4], max(1e-6, official_score_error(official)), fp64_atol=1e-12
        )
        area = found.masks.sum(dim=(1, 2)) - torch.from_numpy(official.arrays[f"det_mask_area{i}"])
        assert area.abs().max() <= (2 if dtype == torch.float32 else 0)
        bits = np.unpackbits(official.arrays[f"det_masks{i}_packed"], axis=1)
        masks = bits[:, : found.masks[0].numel()].reshape(-1, *ORIGINAL_SIZES[i])
        different = (masks != found.masks[: len(masks)].numpy()).sum(axis=(1, 2))
        assert different.max() <= (2 if dtype == torch.float32 else 0)


def official_score_error(official):
    """How far the scores of the official float32 run are off its float64 run."""
    names = ("det_boxes0", "det_boxes1")
    pairs = [(official.arrays[f"{name}_f32"], official.arrays[name]) for name in names]
    return max(float(np.abs(narrow - wide)[:, 4].max()) for narrow, wide in pairs)


@pytest.mark.parametrize("convolutions", ["oneDNN", "plain"])
@pytest.mark.parametrize("name", STAGES)
def test_float32_detections_from_official_proposals(name, convolutions):
    official = read_run(name, torch.float32)
    network, arrays = official.network, official.arrays
    proposals = [torch.from_numpy(arrays[f"proposals{i}"][:, :4]).float() for i in range(2)]
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=convolutions == "oneDNN"):
        pyramid = network.neck(network.backbone(official.image))
        detections = network.roi_head.detect(pyramid, proposals, SIZES, ORIGINAL_SIZES)
    for i, found in enumerate(detections):
        assert found.scores.dtype == torch.float32
        assert found.labels.tolist() == arrays[f"det_labels{i}"].tolist()
        assert_equal(found.scores, arrays[f"det_boxes{i}"][:, 4], 1e-6)
        assert_equal(found.boxes, arrays[f"det_boxes{i}"][:, :4], 1e-4)


@pytest.mark.parametrize("sampling", [pytest.param("nosample", marks=slow), "first_k"])
@pytest.mark.parametrize(("name", "dtype"), [RUNS[0], *(slow_run(run) for run in RUNS[1:])])
def test_losses_and_gradients(name, dtype, sampling):
    official = read_run(name, dtype)
    choose_first(official.network, sampling)
    losses = official.network(official.image, SIZES, targets=official.targets)
    assert_official_losses(losses, official, sampling, 1e-5 if dtype == torch.float32 else 1e-12)
    total_loss(losses).backward()
    rtol, rounding = (1e-4, ROUNDING[name]) if dtype == torch.float32 else (1e-11, 1e-11)
    assert_official_gradients(official, sampling, rtol, rounding)


@pytest.mark.parametrize("convolutions", ["oneDNN", pytest.param("plain", marks=slow)])
@pytest.mark.parametrize("sampling", [pytest.param("nosample", marks=slow), "first_k"])
@pytest.mark.parametrize("name", ["mask_rcnn_t", pytest.param("cascade_l", marks=slow)])
def test_float32_gradients_from_the_same_boxes_and_signs(name, sampling, convolutions):
    exact, official = (read_run(name, dtype) for dtype in (torch.float64, torch.float32))
    choose_first(exact.network, sampling)
    choose_first(official.network, sampling)
    with torch.no_grad(), decisions_of(exact.network) as decisions:
        exact.network(exact.image, SIZES, targets=exact.targets)
    with torch.backends.mkldnn.flags(enabled=convolutions == "oneDNN"):
        with decided(official.network, decisions) as changed:
            losses = official.network(official.image, SIZES, targets=official.targets)
        total_loss(losses).backward()
    assert max(changed) < 1e-5
    assert_official_losses(losses, official, sampling, 1e-5)
    assert_official_gradients(official, sampling, 1e-5, 0)


def choose_first(network, sampling):
    for sampler in samplers_of(network):
        if sampling == "nosample":
            sampler.number = 10**6
        sampler.choose = lambda candidates, number: candidates[:number]


def samplers_of(network):
    regions = network.roi_head.regions
    regions = regions if isinstance(regions, tuple) else (regions,)
    return [network.rpn_head.sampler, *(region.sampler for region in regions)]


def total_loss(losses):
    return sum(value.sum() for key, value in losses.items() if "loss" in key)


def assert_official_losses(losses, official, sampling, rtol):
    prefix = f"loss_{sampling}/"
    stored = {k.removeprefix(prefix): a for k, a in official.arrays.items() if k.startswith(prefix)}
    assert losses.keys() == stored.keys() - {"grad_norms"}
    for key, value in losses.items():
        torch.testing.assert_close(
            value.detach().double().flatten(), torch.from_numpy(stored[key]), rtol=rtol, atol=1e-12
        )


def assert_official_gradients(official, sampling, rtol, rounding):
    """Compare norms and, where stored, elements; ``rounding`` is a share of the largest norm."""
    names = official_names(official.network)
    gradients = {names[k]: p.grad.double() for k, p in official.network.named_parameters()}
    norms = np.array([float(gradients[key].norm()) for key in official.param_order])
    stored = official.arrays[f"loss_{sampling}/grad_norms"]
    atol = rounding * float(stored.max())
    np.testing.assert_allclose(norms, stored, rtol=rtol, atol=atol)
    for key, value in official.arrays.items():
        if sampling == "nosample" and key.startswith("grad_nosample/"):
            ours = gradients[key.removeprefix("grad_nosample/")]
            atol = max(atol, rtol * float(np.abs(value).max()))
            torch.testing.assert_close(ours, torch.from_numpy(value), rtol=rtol, atol=atol)
