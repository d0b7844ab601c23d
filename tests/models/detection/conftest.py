"""Official runs of the two detectors with weights given by a formula."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from src.models import InternImageBackbone
from src.models.detection import CascadeMaskRCNN, MaskRCNN
from src.models.weights import load_official
from tests.models.conftest import name_noise, name_weight
from tests.official import OfficialNumbers

FIXTURES = Path(__file__).parents[2] / "fixtures"
SIZES = [(92, 120), (80, 128)]
ORIGINAL_SIZES = [(115, 150), (100, 160)]
PADDED = (96, 128)
TINY = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8), "layer_scale": 1.0}
NETWORKS = {
    "mask_rcnn_t": partial(
        MaskRCNN, backbone=partial(InternImageBackbone, **TINY), score_threshold=0.02
    ),
    "cascade_l": partial(
        CascadeMaskRCNN,
        backbone=partial(InternImageBackbone, **TINY, post_norm=True, offset_scale=2.0),
        score_threshold=0.015,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        box_batch_size_per_image=24,
        max_detections=25,
    ),
}


@dataclass
class OfficialDetector:
    """One official run: our network with its weights, the inputs, and what came out."""

    network: torch.nn.Module
    image: torch.Tensor
    targets: list[dict]
    fixed_proposals: list[torch.Tensor]
    numbers: OfficialNumbers
    param_order: list[str]

    @property
    def arrays(self):
        """Everything stored, by name."""
        return self.numbers.arrays


def read_run(name: str, dtype: torch.dtype) -> OfficialDetector:
    spec = json.loads((FIXTURES / f"{name}.json").read_text())
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    network = NETWORKS[name]()
    load_official(network, {key: name_weight(key, shape) for key, shape, _ in spec["state_dict"]})
    noise = name_noise(f"input:{name}:image_b", 2 * 3 * 96 * 128).reshape(2, 3, *PADDED)
    image = torch.from_numpy((2 * noise).astype(np.float32))
    for raw, (height, width) in zip(image, SIZES, strict=True):
        raw[:, height:] = 0
        raw[:, :, width:] = 0
    return OfficialDetector(
        network.to(dtype).eval(),
        image.to(dtype),
        [read_target(arrays, i) for i in range(2)],
        [torch.from_numpy(arrays[f"fixed_proposals{i}"]).to(dtype) for i in range(2)],
        OfficialNumbers.read(spec, arrays),
        spec["param_order"],
    )


def read_target(arrays, i):
    boxes = torch.from_numpy(arrays[f"gt_boxes{i}"])
    bits = np.unpackbits(arrays[f"gt_masks{i}_packed"], axis=1)
    return {
        "boxes": boxes,
        "labels": torch.from_numpy(arrays[f"gt_labels{i}"]),
        "masks": torch.from_numpy(bits.reshape(len(boxes), *PADDED)),
    }
