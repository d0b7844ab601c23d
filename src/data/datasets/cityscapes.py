"""Cityscapes with the weights of its instances, for the IoU of instances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.data.datasets.segmentation_folder import EvalSample, SegmentationEvalDataset
from src.data.formats.label_maps import read_numbers
from src.errors import UserError

_LABELS, _INSTANCES = "_labelTrainIds.png", "_instanceIds.png"
_INSTANCES_PER_LABEL = 1000
AVERAGE_INSTANCE_SIZES: dict[int, float] = {
    24: 3462.4756337644,  # person
    25: 3930.4788056518,  # rider
    26: 12794.0202738185,  # car
    27: 27855.1264367816,  # truck
    28: 35732.1511111111,  # bus
    31: 67583.7075812274,  # train
    32: 6298.7200839748,  # motorcycle
    33: 4672.3249222261,  # bicycle
}
"""Average number of pixels of an instance, by the label id of its class, of the benchmark."""


class CityscapesEvalDataset(SegmentationEvalDataset):
    """Images prepared for evaluation, with labels and the weights of their pixels.

    The instances are in ``*_instanceIds.png`` beside the label maps: an instance has the number
    ``1000 * label id + index``. Arguments are those of `SegmentationEvalDataset`.
    """

    def __getitem__(self, index: int) -> EvalSample:
        """Read and prepare one image.

        Raises:
            UserError: If a file is missing or broken, or the sizes differ.
        """
        sample = super().__getitem__(index)
        if sample.get("is_padding"):
            return {**sample, "weight": torch.zeros(sample["size"])}
        path = self.label_path(index).removesuffix(_LABELS) + _INSTANCES
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; set data.instances to false without it.")
        weight = instance_weights(read_numbers(path, self.max_pixels))
        if tuple(weight.shape) != sample["size"]:
            raise UserError(f"{path} and the image {self.path(index)} differ in size.")
        return {**sample, "weight": weight}


def instance_weights(instances: np.ndarray) -> Tensor:
    """Average size of the class divided by the size of the instance, for every pixel.

    Args:
        instances: Numbers of instances, ``(H, W)``.

    Returns:
        Weights, float32, of the same shape; 0 outside of instances.
    """
    numbers, inverse, counts = np.unique(instances, return_inverse=True, return_counts=True)
    sizes = [AVERAGE_INSTANCE_SIZES.get(int(n) // _INSTANCES_PER_LABEL, 0.0) for n in numbers]
    weights = (np.array(sizes) / counts).astype(np.float32)
    return torch.from_numpy(weights[inverse].reshape(instances.shape))
