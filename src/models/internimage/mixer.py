"""The spatial mixer of a block: the layer that exchanges information between pixels.

DCNv3 is the mixer of every published InternImage. Another operator derives from `SpatialMixer` and
is named in the backbone's argument ``mixer``; the block around it stays the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class SpatialMixer(nn.Module, ABC):
    """Base of layers that a `Block` can use in its first residual branch.

    The backbone calls ``mixer(channels, groups)`` once per block, so these are the first two
    arguments of a subclass. Further arguments have defaults and can be set in a recipe:
    ``mixer: {class_path: my_package.MyMixer, init_args: {kernel_size: 7}}``.

    A submodule that owns parameters needs ``reset_parameters`` (as PyTorch's layers have), which
    initialises networks made on the meta device.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""


MixerFactory = Callable[[int, int], SpatialMixer]
"""Makes the mixer of a block from the channels and the groups of its stage."""
