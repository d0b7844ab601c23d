"""Recall of image-text retrieval in both directions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

_BLOCK = 2**24  # similarities that exist at once
_RANKS = (1, 5)


class RetrievalRecall(Metric):
    """Share of images whose text is among the ``k`` most similar texts, and the reverse.

    An image is compared with all texts of all ranks. Pairs with equal texts belong together: any of
    their texts and images counts as found.
    """

    full_state_update: ClassVar[bool] = False  # type: ignore[misc]
    higher_is_better: ClassVar[bool] = True  # type: ignore[misc]
    score_names: ClassVar[tuple[str, ...]] = tuple(
        f"{direction}_recall{k}" for direction in ("image_to_text", "text_to_image") for k in _RANKS
    )
    """Keys of the result."""
    image: list[Tensor] | Tensor
    text: list[Tensor] | Tensor
    tokens: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("image", "text", "tokens"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image: Tensor, text: Tensor, tokens: Tensor) -> None:
        """Add pairs.

        Args:
            image: Normalised image features, ``(N, D)``.
            text: Normalised text features, ``(N, D)``.
            tokens: Token ids of the texts, ``(N, L)``.
        """
        for name, value in (("image", image), ("text", text), ("tokens", tokens)):
            getattr(self, name).append(value.detach())

    def compute(self) -> dict[str, Tensor]:
        """Recall at 1 and 5 of both directions, in [0, 1], by `score_names`."""
        image, text = _together(self.image).float(), _together(self.text).float()
        _, group = torch.unique(_together(self.tokens), dim=0, return_inverse=True)
        found = [
            _recall(own, other, group, k)
            for own, other in ((image, text), (text, image))
            for k in _RANKS
        ]
        return dict(zip(self.score_names, found, strict=True))


def _recall(own: Tensor, other: Tensor, group: Tensor, k: int) -> Tensor:
    """Share of rows with a row of their group among the ``k`` most similar ones of ``other``."""
    k, rows, hits = min(k, len(other)), max(1, _BLOCK // len(other)), own.new_zeros(())
    for start in range(0, len(own), rows):
        part = slice(start, start + rows)
        nearest = (own[part] @ other.T).topk(k, dim=1).indices
        hits = hits + (group[nearest] == group[part, None]).any(1).sum()
    return hits / len(own)


def _together(values: list[Tensor] | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.cat(values)
