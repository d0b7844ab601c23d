"""The spatial mixer of a block: the layer that exchanges information between pixels.

DCNv3 is the mixer of every published InternImage, and DCNv4 that of FlashInternImage. Another
operator derives from `SpatialMixer` and is named in the backbone's argument ``mixer``; the block
around it stays the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NoReturn

from torch import Tensor, nn

from src.errors import UserError


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

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, whose compiler cannot read the networks."""
        raise UserError(
            "InternImage cannot be compiled by torch.jit.script; use torch.jit.trace(model, image),"
            " torch.export, or `python -m src export`."
        )


MixerFactory = Callable[[int, int], SpatialMixer]
"""Makes the mixer of a block from the channels and the groups of its stage."""
