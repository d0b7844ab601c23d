"""Compute, time and data of a whole training, from a recipe and assumed speeds.

Counted are forward and backward pass of what is trained and the forward pass of what is frozen,
without what activation checkpointing computes again. A multiply-accumulate is two operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.models.image_text import ImageTextModel
from src.profiling.profile import count_macs


@dataclass(frozen=True)
class PairCompute:
    """Floating-point operations of a training step for one pair.

    Attributes:
        image: Those of the image tower and its projection.
        text: Those of the text tower.
    """

    image: int
    text: int

    @property
    def total(self) -> int:
        """Those of both towers."""
        return self.image + self.text


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        pairs: Number of different pairs.
        epochs: Passes over them.
        gpus: Number of GPUs.
        gpus_per_node: GPUs of a machine.
        peak: Peak of a GPU in operations per second.
        utilisation: Share of the peak that training reaches.
        bytes_per_pair: Size of a pair in the tars.
    """

    pairs: int
    epochs: float
    gpus: int
    gpus_per_node: int
    peak: float
    utilisation: float
    bytes_per_pair: float

    def operations(self, compute: PairCompute) -> float:
        """Floating-point operations of the training."""
        return compute.total * self.pairs * self.epochs

    def gpu_hours(self, compute: PairCompute) -> float:
        """Hours on one GPU."""
        return self.operations(compute) / (self.peak * self.utilisation) / 3600

    def pairs_per_second(self, compute: PairCompute) -> float:
        """Pairs per second on one GPU."""
        return self.peak * self.utilisation / compute.total

    @property
    def volume(self) -> float:
        """Bytes of all pairs."""
        return self.pairs * self.bytes_per_pair

    def read_rate(self, compute: PairCompute) -> float:
        """Bytes per second that a node reads."""
        gpus = min(self.gpus, self.gpus_per_node)
        return self.pairs_per_second(compute) * gpus * self.bytes_per_pair


def pair_compute(network: ImageTextModel, size: tuple[int, int]) -> PairCompute:
    """Count the operations of a training step for one pair, with texts of full length.

    Args:
        network: On the meta device.
        size: Height and width of the images.
    """
    image = torch.empty(1, 3, *size, device="meta")
    tokens = torch.zeros(1, network.text.context_length, dtype=torch.long, device="meta")
    head = 2 * network.image_projection.weight.numel()
    return PairCompute(
        image=_operations(network.backbone, image) + 3 * head,
        text=_operations(network.text, tokens),
    )


def _operations(tower: nn.Module, inputs: Tensor) -> int:
    """Operations of a tower, whose backward pass costs two forward passes if it is trained."""
    is_trained = any(parameter.requires_grad for parameter in tower.parameters())
    return 2 * count_macs(tower, inputs).total * (3 if is_trained else 1)
