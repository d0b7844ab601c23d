"""Contrastive denoising: noised ground-truth boxes as additional queries with known targets.

Source: Zhang et al., "DINO", ICLR 2023 (arXiv 2203.03605), section 3.3, after Li et al., "DN-DETR",
CVPR 2022; noise, groups and order are those of the official InternImage configurations
``dino_4scale_*``.

Every group holds each ground-truth box twice: once with little noise, as a positive query, and once
with more noise, as a negative one. The boxes of an image come first, the rest of a group is padded
with zeros. A group attends to itself and to the matching queries, which attend to no group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.models.detection.dino.decoder import inverse_sigmoid
from src.models.detection.dino.transformer import DenoisingQueries
from src.types import DetectionTarget


class Noise:
    """Random numbers of the denoising task, from PyTorch's generator; replaced in tests."""

    def chance(self, like: Tensor) -> Tensor:
        """One number in [0, 1) for each label."""
        return torch.rand_like(like)

    def labels(self, count: int, num_classes: int, device: torch.device) -> Tensor:
        """``count`` random labels."""
        return torch.randint(num_classes, (count,), device=device)

    def signs(self, like: Tensor) -> Tensor:
        """-1 or 1 for each corner coordinate."""
        return torch.randint_like(like, 0, 2) * 2 - 1

    def parts(self, like: Tensor) -> Tensor:
        """One number in [0, 1) for each corner coordinate."""
        return torch.rand_like(like)


@dataclass
class DenoisingPlan:
    """Layout of the denoising queries.

    Attributes:
        groups: Number of groups.
        width: Largest number of ground-truth boxes in an image; a group has twice as many queries.
        counts: Ground-truth boxes of each image.
    """

    groups: int
    width: int
    counts: list[int]

    @property
    def size(self) -> int:
        """Number of denoising queries of an image."""
        return 2 * self.groups * self.width

    def positive(self, image: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices of the positive queries of an image, and of their ground-truth boxes."""
        gt = torch.arange(self.counts[image], device=device).repeat(self.groups)
        starts = torch.arange(self.groups, device=device) * 2 * self.width
        return starts.repeat_interleave(self.counts[image]) + gt, gt


class Denoising:
    """Makes the denoising queries of a batch.

    Args:
        num_classes: Number of classes.
        num_queries: Approximate number of ground-truth boxes in all groups together; there is at
            least one group.
        label_noise: Twice the share of queries with a random label.
        box_noise: Largest displacement of a corner of a positive query over half the side of the
            box; corners of negative queries move by one to two times as much.
        noise: Source of random numbers.
    """

    def __init__(
        self,
        num_classes: int,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        noise: Noise | None = None,
    ) -> None:
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.box_noise = label_noise, box_noise
        self.noise = noise or Noise()

    def plan(self, targets: Sequence[DetectionTarget]) -> DenoisingPlan:
        """Layout for a batch; without ground-truth boxes there are no queries."""
        counts = [len(target["labels"]) for target in targets]
        width = max(counts, default=0)
        return DenoisingPlan(max(self.num_queries // max(width, 1), 1), width, counts)

    def __call__(
        self,
        targets: Sequence[DetectionTarget],
        boxes: Sequence[Tensor],
        embedding: nn.Embedding,
        num_matching: int,
    ) -> tuple[DenoisingQueries, DenoisingPlan]:
        """Make the queries.

        Args:
            targets: Ground truth of each image.
            boxes: Its boxes as centre and size in [0, 1], ``(G, 4)`` each.
            embedding: Content of a query for each label.
            num_matching: Number of matching queries, which follow the denoising queries.
        """
        plan = self.plan(targets)
        device = boxes[0].device
        labels = torch.cat([target["labels"] for target in targets]).repeat(2 * plan.groups)
        labels = self._change_labels(labels)
        noisy_boxes = self._move_corners(torch.cat(list(boxes)), plan.groups)
        image, slot = self._slots(plan, device)
        content = embedding.weight.new_zeros(len(targets), plan.size, embedding.embedding_dim)
        box_logits = noisy_boxes.new_zeros(len(targets), plan.size, 4)
        content = content.index_put((image, slot), embedding(labels))
        box_logits = box_logits.index_put((image, slot), inverse_sigmoid(noisy_boxes))
        return DenoisingQueries(
            content, box_logits, attention_mask(plan, num_matching, device)
        ), plan

    def _change_labels(self, labels: Tensor) -> Tensor:
        chance = self.noise.chance(labels.float())
        chosen = (chance < self.label_noise * 0.5).nonzero().flatten()
        drawn = self.noise.labels(len(chosen), self.num_classes, labels.device)
        return labels.scatter(0, chosen, drawn)

    def _move_corners(self, boxes: Tensor, groups: int) -> Tensor:
        """Noisy boxes ``(2 * groups * G, 4)`` of the batch, positive and negative in turn."""
        count = len(boxes)
        center, size = boxes.repeat(2 * groups, 1).split(2, dim=1)
        corners = torch.cat([center - size / 2, center + size / 2], dim=1)
        signs, parts = self.noise.signs(corners), self.noise.parts(corners)
        is_negative = torch.arange(len(corners), device=boxes.device) // max(count, 1) % 2 == 1
        shift = (parts + is_negative[:, None]) * signs * torch.cat([size, size], dim=1) / 2
        corners = (corners + shift * self.box_noise).clamp(0, 1)
        return torch.cat(
            [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1
        )

    def _slots(self, plan: DenoisingPlan, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index of the image and of the query of each noisy box."""
        images = torch.arange(len(plan.counts), device=device)
        image = images.repeat_interleave(torch.tensor(plan.counts, device=device))
        within = [torch.arange(count, device=device) for count in plan.counts]
        halves = torch.arange(2 * plan.groups, device=device) * plan.width
        slot = torch.cat(within) + halves[:, None]
        return image.repeat(2 * plan.groups), slot.flatten()


def attention_mask(plan: DenoisingPlan, num_matching: int, device: torch.device) -> Tensor:
    """True where the query of a row attends to the query of a column, ``(1, Q, Q)``."""
    group = torch.arange(plan.size, device=device) // max(2 * plan.width, 1)
    group = torch.cat([group, torch.full((num_matching,), -1, device=device)])
    is_matching = group == -1
    mask = (group[:, None] == group) | is_matching
    return mask[None]
