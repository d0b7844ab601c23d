"""Mask R-CNN and Cascade Mask R-CNN on FlashInternImage give the official numbers.

Bounds: see ``tests/official.py``; for float32 detections see ``test_rcnn_numbers.py``.
"""

from functools import cache, partial

import pytest
import torch

from src.models import InternImageBackbone
from src.models.detection import CascadeMaskRCNN, MaskRCNN
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.models.weights import load_official
from tests.models.conftest import FLASH, load_run
from tests.models.steps import run_in_steps
from tests.official import SPACING, close

SIZES, ORIGINAL_SIZES = [(120, 150)], [(240, 300)]
COMMON = {"fpn_norm": True, "rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 100}
LARGE = {
    "post_norm": True,
    "dw_kernel_size": 3,
    "offset_scale": 2.0,
    "dcn_output_bias": True,
    "mlp_fc2_bias": True,
}
NETWORKS = {
    "mask_rcnn_t": partial(MaskRCNN, score_threshold=0.02, **COMMON),
    "cascade_l": partial(CascadeMaskRCNN, score_threshold=0.015, **COMMON),
}
OPTIONS = {"mask_rcnn_t": FLASH, "cascade_l": FLASH | LARGE}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
NAMES = pytest.mark.parametrize("name", NETWORKS)


@cache
def read(name, dtype):
    run = load_run(f"flash_{name}")
    overrides = dict(run.spec["backbone_overrides"])
    overrides.pop("with_cp")
    backbone = partial(InternImageBackbone, layer_scale=1.0, **OPTIONS[name] | overrides)
    network = NETWORKS[name](80, backbone)
    report = load_official(network, run.weights())
    assert not report.fresh
    assert not report.unused
    return run, network.to(dtype).eval()


@DTYPES
@NAMES
@torch.no_grad()
def test_feature_maps_and_heads(name, dtype):
    run, network = read(name, dtype)
    pyramid = network.extract_features(run.input("image", dtype))
    for i, level in enumerate(pyramid):
        run.numbers.check(level[:, ::8], f"fpn{i}_sub")
        run.numbers.check_summary(level, f"fpn{i}", like=f"fpn{i}_sub")
    rpn = network.rpn_head.predict(pyramid)
    for i, (height, width) in enumerate(rpn.cells):
        for name, found in (("rpn_cls", rpn.logits[i]), ("rpn_reg", rpn.offsets[i])):
            cells = found.view(1, height, width, -1).permute(0, 3, 1, 2)
            run.numbers.check(cells, f"{name}{i}")
    rois = boxes_with_image([torch.tensor(run.spec["rois"], dtype=dtype)])
    features, mask_features = (align_on_pyramid(pyramid, rois, side) for side in (7, 14))
    head = network.roi_head
    stages = len(head.box_heads)
    for stage in range(stages):
        prefix = f"stage{stage}/" if stages > 1 else ""
        scores, boxes = head.box_heads[stage](features)
        masks = head.mask_heads[stage](mask_features)
        run.numbers.check(scores, f"{prefix}bbox_cls")
        run.numbers.check(boxes.flatten(1), f"{prefix}bbox_reg")
        run.numbers.check(masks[:, ::10], f"{prefix}mask_logits_sub")
        name = f"{prefix}mask_logits"
        run.numbers.check_summary(masks, name, like=f"{name}_sub")


@DTYPES
@NAMES
@torch.no_grad()
def test_detections(name, dtype):
    run, network = read(name, dtype)

    def detect(network):
        image = run.input("image", next(network.parameters()).dtype)
        return network.detect(image, SIZES, ORIGINAL_SIZES)

    share = run.numbers.forward_share
    (found,) = run_in_steps(detect, network, read(name, torch.float64)[1], share)
    stored = run.arrays["det"].float()  # also in float64, the official anchors are float32
    order = in_classes(found.labels, found.scores)
    expected = in_classes(stored[:, 5], stored[:, 4])
    assert found.labels[order].tolist() == stored[expected, 5].tolist()
    close(found.boxes[order], stored[expected, :4], run.numbers.bound("det"), "boxes")
    allowed = share if dtype == torch.float32 else SPACING
    close(found.scores[order].float(), stored[expected, 4], allowed, "scores")
    area = found.masks.sum(dim=(1, 2))[order] - run.arrays["det_mask_area"][expected]
    assert area.abs().max() <= 1


def in_classes(labels, scores):
    """Order by class, then by score."""
    return sorted(range(len(labels)), key=lambda i: (int(labels[i]), -float(scores[i])))
