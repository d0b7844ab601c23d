"""A faster copy of a network during an evaluation on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from src.models.internimage.inference import can_run_fused, prepare_for_inference
from src.models.layers.precision import autocast_dtype


class InferenceCopy:
    """The copy that `prepare_for_inference` makes, kept for as long as weights do not change."""

    def __init__(self) -> None:
        self._made: tuple[nn.Module, nn.Module] | None = None

    def of(self, network: nn.Module) -> nn.Module:
        """The copy of a network, or the network itself if a copy is not faster.

        Only float32 is used, so that values stay the same up to rounding: the network's own forward
        pass under autocast rounds elsewhere.
        """
        if self._made is not None and self._made[0] is network:
            return self._made[1]
        if torch.is_grad_enabled() or autocast_dtype("cpu") or not can_run_fused(network):
            return network
        with torch.inference_mode(False):
            copy = prepare_for_inference(network)
        self._made = network, copy
        return copy

    def forget(self) -> None:
        """Free the copy."""
        self._made = None
