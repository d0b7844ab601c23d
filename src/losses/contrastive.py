"""Contrastive losses of image-text pairs, over the pairs of all ranks.

`CLIPLoss` is the symmetric softmax loss of CLIP (Radford et al., ICML 2021, arXiv 2103.00020),
`SigLIPLoss` the pairwise sigmoid loss of SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343).

A rank compares its own pairs with those of all ranks. The mean of the results of all ranks is the
loss of the global batch; as DDP and FSDP average gradients over ranks, its gradient is exact too.

The logits of ``n`` own and ``N`` global pairs are computed in blocks of at most ``max_logits``
values, and again in the backward pass (activation checkpointing). Memory therefore grows with
``N``, for the gathered features, and not with ``n * N``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from src.errors import UserError

MAX_LOGITS = 2**20
"""Default size of a block of logits: 4 MiB in float32, and a few times that in the backward."""

BlockLoss = Callable[[Tensor, Tensor, int], Tensor]
"""Sum of the losses of a block: own features, gathered features, global index of the first own."""


@dataclass(frozen=True)
class Pairs:
    """Features of the pairs of this rank.

    Attributes:
        image: Image features, ``(n, D)``.
        text: Text features, ``(n, D)``.
        gather: Whether there are other ranks to compare with.
    """

    image: Tensor
    text: Tensor
    gather: bool

    def every(self, features: Tensor) -> Tensor:
        """Rows of all ranks in their order, ``(N, D)``, with gradients to all of them."""
        gathered: Tensor = _GatherRows.apply(features) if self.gather else features
        return gathered


class _ContrastiveLoss(nn.Module):
    """Base of both losses.

    Args:
        max_logits: Largest number of logits that exist at once, at least one row.

    Raises:
        UserError: If it is not positive.
    """

    def __init__(self, max_logits: int = MAX_LOGITS) -> None:
        super().__init__()
        if max_logits < 1:
            raise UserError(f"model.loss.max_logits must be at least 1, got {max_logits}.")
        self.max_logits = max_logits

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        gather: bool = True,
    ) -> Tensor:
        """Loss of this rank's pairs among those of all ranks.

        Args:
            image: Normalised image features of this rank, shape ``(n, D)``, with the same ``n`` on
                all ranks.
            text: Normalised text features, ``(n, D)``.
            scale: Factor of the cosine similarities (inverse temperature), one value.
            bias: Added to the logits, one value, or ``None``.
            gather: Whether to compare with the pairs of all ranks, or only with the own ones.

        Returns:
            Scalar; its mean over the ranks is the loss of the global batch.
        """
        pairs = Pairs(image.float(), text.float(), gather and _ranks() > 1)
        with torch.autocast(image.device.type, enabled=False):
            return self.pair_loss(pairs, scale.float(), None if bias is None else bias.float())

    def pair_loss(self, pairs: Pairs, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Loss in float32; see `forward`."""
        raise TypeError(f"{type(self).__name__} must define pair_loss()")

    def mean_in_blocks(self, own: Tensor, every: Tensor, loss: BlockLoss) -> Tensor:
        """Mean over the rows of ``own`` of a loss that is computed in blocks of rows."""
        rows = max(1, self.max_logits // len(every))
        first = distributed.get_rank() * len(own) if len(every) > len(own) else 0
        total = own.new_zeros(())
        for start in range(0, len(own), rows):
            block = own[start : start + rows]
            total = total + checkpoint(
                loss, block, every, first + start, use_reentrant=False, preserve_rng_state=False
            )
        return total / len(own)


class CLIPLoss(_ContrastiveLoss):
    """Symmetric softmax loss: each image selects its text among all texts, and the reverse.

    Args:
        max_logits: Largest number of logits that exist at once, at least one row.
    """

    def pair_loss(self, pairs: Pairs, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Mean of the two cross entropies; a bias would have no effect and is ignored."""

        def cross_entropy(own: Tensor, every: Tensor, first: int) -> Tensor:
            target = torch.arange(first, first + len(own), device=own.device)
            return F.cross_entropy(scale * own @ every.T, target, reduction="sum")

        to_text = self.mean_in_blocks(pairs.image, pairs.every(pairs.text), cross_entropy)
        to_image = self.mean_in_blocks(pairs.text, pairs.every(pairs.image), cross_entropy)
        return (to_text + to_image) / 2


class SigLIPLoss(_ContrastiveLoss):
    """Sigmoid loss: whether an image and a text belong together, for all pairs on their own.

    Args:
        max_logits: Largest number of logits that exist at once, at least one row.
    """

    def pair_loss(self, pairs: Pairs, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Sum over all texts, mean over the images.

        Raises:
            UserError: If there is no bias, without which training starts far from the solution.
        """
        if bias is None:
            raise UserError(
                "SigLIPLoss needs a bias: set model.network.init_args.logit_bias (-10 in the paper,"
                " with logit_scale 10)."
            )

        def sigmoid(own: Tensor, every: Tensor, first: int) -> Tensor:
            logits = scale * own @ every.T + bias
            sign = torch.full_like(logits, -1.0)
            sign.diagonal(first).fill_(1.0)
            return -F.logsigmoid(sign * logits).sum()

        return self.mean_in_blocks(pairs.image, pairs.every(pairs.text), sigmoid)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass adds the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Gather the rows."""
        rows = features.new_empty(distributed.get_world_size() * len(features), features.shape[1])
        distributed.all_gather_into_tensor(rows, features.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sum over the ranks of the gradient of this rank's rows."""
        own = gradient.new_empty(len(gradient) // distributed.get_world_size(), gradient.shape[1])
        distributed.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def _ranks() -> int:
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_distributed else 1
