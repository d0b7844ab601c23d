"""Mask R-CNN and Cascade Mask R-CNN compute what the official code computes.

Tolerances for float32 are set by the official float32 run itself; float64 runs agree to rounding of
the stored arrays (most are stored as float32). oneDNN is off here: on some processors its float32
convolutions round three times as much as PyTorch's own, enough to swap detections whose scores
differ by 1e-6.
"""

import numpy as np
import pytest
import torch

from src.models.detectors.boxes import BoxCoder
from src.models.detectors.roi_align import align_on_pyramid, boxes_with_image
from src.models.detectors.roi_head import resize_factor
from src.models.official_names import official_names
from tests.models.detectors.conftest import ORIGINAL_SIZES, SIZES, read_run
from tests.models.wide_sums import WideSums

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


@slow
def test_float32_scores_of_mask_rcnn_differ_only_by_how_sums_are_rounded():
    official = read_run("mask_rcnn_t", torch.float32)
    with WideSums():
        detections = official.network(official.image, SIZES, ORIGINAL_SIZES)
    for i, found in enumerate(detections):
        assert found.scores.dtype == torch.float32
        assert found.labels.tolist() == official.arrays[f"det_labels{i}"].tolist()
        assert_equal(found.scores, official.arrays[f"det_boxes{i}"][:, 4], 1e-6)


@pytest.mark.parametrize("sampling", [pytest.param("nosample", marks=slow), "first_k"])
@pytest.mark.parametrize(("name", "dtype"), [RUNS[0], *(slow_run(run) for run in RUNS[1:])])
def test_losses_and_gradients(name, dtype, sampling, monkeypatch):
    official = read_run(name, dtype)
    network, arrays = official.network, official.arrays
    for sampler in samplers_of(network):
        if sampling == "nosample":
            sampler.number = 10**6
        sampler.choose = lambda candidates, number: candidates[:number]
    losses = network(official.image, SIZES, targets=official.targets)
    stored = {k.split("/")[1]: a for k, a in arrays.items() if k.startswith(f"loss_{sampling}/")}
    stored_norms = stored.pop("grad_norms")
    assert losses.keys() == stored.keys()
    for key, value in losses.items():
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(
            value.detach().double().flatten(), torch.from_numpy(stored[key]), rtol=rtol, atol=1e-12
        )
    sum(value.sum() for key, value in losses.items() if "loss" in key).backward()
    names = official_names(network)
    gradients = {names[key]: p.grad.double() for key, p in network.named_parameters()}
    norms = np.array([float(gradients[key].norm()) for key in official.param_order])
    rtol, rounding = (1e-4, ROUNDING[name]) if dtype == torch.float32 else (1e-11, 1e-11)
    np.testing.assert_allclose(norms, stored_norms, rtol=rtol, atol=rounding * stored_norms.max())
    for key, value in arrays.items():
        if sampling == "nosample" and key.startswith("grad_nosample/"):
            ours = gradients[key.removeprefix("grad_nosample/")]
            torch.testing.assert_close(
                ours, torch.from_numpy(value), rtol=rtol, atol=rounding * float(stored_norms.max())
            )


def samplers_of(network):
    regions = network.roi_head.regions
    regions = regions if isinstance(regions, tuple) else (regions,)
    return [network.rpn_head.sampler, *(region.sampler for region in regions)]
