"""What travels between the data modules and the tasks. Knows neither Lightning nor ``torch.nn``."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class ClassificationBatch(TypedDict):
    """Pictures and, unless they are to be predicted, their classes.

    Attributes:
        image: Normalised RGB pictures, float32, shape ``(N, 3, H, W)``.
        label: Class indices in ``[0, num_classes)``, int64, shape ``(N,)``. Absent in prediction.
        path: The file of each picture, ``N`` strings.
    """

    image: Tensor
    label: NotRequired[Tensor]
    path: list[str]
