"""Low-rank adaptation (LoRA) of linear layers.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv
2106.09685), section 4.1. A weight becomes ``weight + up @ down``, where only the two factors are
trained. It is a parametrization of the weight and not a new layer, because `DCNv3` reads the
weights of its linear layers without calling them.

Checkpoints hold ``parametrizations.weight.original`` and the factors ``0.up`` and ``0.down``;
`src.models.weights.merging` computes the weights from them.

The paper's factor ``alpha / rank`` is left out: with Adam it only scales the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """Adds the product of two trained factors to a weight; the initial product is 0.

    Args:
        weight: The weight, ``(out, in)``.
        rank: Width of the factors ``up`` ``(out, rank)`` and ``down`` ``(rank, in)``.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.up @ self.down


def add_low_rank(parts: Iterable[nn.Module], rank: int) -> None:
    """Adapt all linear layers of some modules, in place; their other parameters are frozen.

    Args:
        parts: The modules.
        rank: Rank of the adaptation, at least 1.
    """
    for part in parts:
        part.requires_grad_(False)
        linears = [module for module in part.modules() if isinstance(module, nn.Linear)]
        for linear in linears:
            low_rank = LowRank(linear.weight, rank)
            parametrize.register_parametrization(linear, "weight", low_rank, unsafe=True)


def merge_low_rank(network: nn.Module) -> None:
    """Replace every adapted weight by its value, in place; the network computes the same."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
