"""Set loss of masks: each class of an image is matched with one query.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022 (arXiv 2112.01527), section 3.3, with sampled points as in Kirillov et al., "PointRend", CVPR
2020. Costs, weights and averages are those of the official InternImage models (mmdet 2.28). The
matching is optimal (Hungarian algorithm, from SciPy).

The targets of an image are the classes in its label map, one mask each. Unlabelled pixels are
outside all masks, as in the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from src.errors import UserError
from src.losses.detection import average, mean_over_ranks
from src.types import IGNORE_LABEL

Purpose = Literal["match", "candidates", "random"]


@dataclass(frozen=True)
class MaskTargets:
    """The classes of one image.

    Attributes:
        classes: Class indices, ascending, int64, shape ``(G,)``.
        masks: 1 inside and 0 outside, float, shape ``(G, H, W)``.
    """

    classes: Tensor
    masks: Tensor


def mask_targets(label: Tensor, dtype: torch.dtype = torch.float32) -> MaskTargets:
    """One mask for each class of a label map ``(H, W)``."""
    classes = label.unique()
    classes = classes[classes != IGNORE_LABEL]
    return MaskTargets(classes, (label == classes[:, None, None]).to(dtype))


def sample_points(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks bilinearly.

    Args:
        masks: ``(M, H, W)``.
        points: Coordinates ``(x, y)`` in [0, 1], ``(M, P, 2)``, or ``(1, P, 2)`` for all masks.

    Returns:
        Values of shape ``(M, P)``.
    """
    if len(points) == 1:
        sampled = F.grid_sample(masks[None], points[:, None] * 2 - 1, align_corners=False)
        return sampled[0, :, 0]
    sampled = F.grid_sample(masks[:, None], points[:, None] * 2 - 1, align_corners=False)
    return sampled[:, 0, 0]


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """``1 - (2 |A and B| + 1) / (|A| + |B| + 1)`` of each mask; ``(M, P), (M, P) -> (M,)``."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum(-1)
    return 1 - (2 * overlap + 1) / (probability.sum(-1) + target.sum(-1) + 1)


class MaskSetLoss(nn.Module):
    """Losses of `Mask2Former`'s outputs.

    The queries of each decoder layer are matched separately. Random points are uniform and come
    from PyTorch's generator.

    Args:
        num_points: Points per mask at which costs and losses are computed.
        oversample_ratio: Candidates for uncertain points over ``num_points``, at least 1.
        importance_ratio: Share of the points that are the most uncertain candidates, in [0, 1]; the
            others are random.
        class_weight: Weight of the class loss and of the class cost in the matching.
        mask_weight: Weight of the binary cross entropy of masks, likewise.
        dice_weight: Weight of the dice loss of masks, likewise.
        no_object_weight: Weight of queries without a class within the class loss.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if num_points < 1:
            raise UserError(f"num_points of MaskSetLoss must be at least 1, got {num_points}.")
        if oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise UserError(
                "MaskSetLoss needs oversample_ratio of at least 1 and importance_ratio in [0, 1], "
                f"got {oversample_ratio} and {importance_ratio}."
            )
        weights = (class_weight, mask_weight, dice_weight, no_object_weight)
        if min(weights) < 0:
            raise UserError(f"The weights of MaskSetLoss must be 0 or more, got {weights}.")
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_ratio)
        self.class_weight, self.mask_weight, self.dice_weight = weights[:3]
        self.no_object_weight = no_object_weight

    def forward(self, outputs: Mapping[str, Sequence[Tensor]], label: Tensor) -> dict[str, Tensor]:
        """Weighted losses of every layer.

        Args:
            outputs: ``class_logits``, for each layer ``(N, Q, K + 1)``, and ``mask_logits``, for
                each layer ``(N, Q, h, w)``.
            label: Classes in ``[0, K)`` or 255, int64, shape ``(N, H, W)``.

        Returns:
            Scalars ``loss_class``, ``loss_mask`` and ``loss_dice`` of the last layer, and with the
            prefix ``layer0_``, ``layer1_``, ... of the others; training minimises their sum.

        Raises:
            UserError: If the outputs are not those of `Mask2Former`.
        """
        if "mask_logits" not in outputs:
            raise UserError(
                f"MaskSetLoss needs a network that predicts masks (Mask2Former), got outputs "
                f"{', '.join(outputs)}; leave model.loss out for other segmentors."
            )
        class_logits, mask_logits = outputs["class_logits"], outputs["mask_logits"]
        targets = [mask_targets(image, mask_logits[0].dtype) for image in label]
        queries = mask_logits[0].shape[1]
        matched = sum(min(queries, len(target.classes)) for target in targets)
        number = mean_over_ranks(matched, label.device)
        losses = {}
        for i, (classes, masks) in enumerate(zip(class_logits, mask_logits, strict=True)):
            prefix = "" if i == len(mask_logits) - 1 else f"layer{i}_"
            for name, value in self.layer_losses(classes, masks, targets, number).items():
                losses[prefix + name] = value
        return losses

    def layer_losses(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        targets: Sequence[MaskTargets],
        number: float,
    ) -> dict[str, Tensor]:
        """Losses of one layer.

        Args:
            class_logits: ``(N, Q, K + 1)``.
            mask_logits: ``(N, Q, h, w)``.
            targets: Classes of each image.
            number: Number of masks that the losses are divided by.

        Returns:
            Scalars ``loss_class``, ``loss_mask``, ``loss_dice``.
        """
        pairs = [
            self.hungarian_match(classes, masks, target)
            for classes, masks, target in zip(class_logits, mask_logits, targets, strict=True)
        ]
        labels = query_classes(class_logits, targets, pairs)
        matched = torch.cat(
            [masks[q] for masks, (q, _) in zip(mask_logits, pairs, strict=True)]
        )  # (M, h, w)
        losses = {"loss_class": self.class_weight * self._class_loss(class_logits, labels)}
        if not len(matched):  # no image has a labelled pixel
            zero = matched.sum()
            return losses | {"loss_mask": zero, "loss_dice": zero}
        truth = [target.masks[g] for target, (_, g) in zip(targets, pairs, strict=True)]
        points = self.training_points(matched.detach())
        logits = sample_points(matched, points)
        counts = [len(masks) for masks in truth]
        values = torch.cat(
            [
                sample_points(masks, xy) if len(masks) else xy.new_zeros(0, self.num_points)
                for masks, xy in zip(truth, points.split(counts), strict=True)
            ]
        )
        entropy = F.binary_cross_entropy_with_logits(logits, values, reduction="sum")
        losses["loss_mask"] = self.mask_weight * average(entropy, number * self.num_points)
        losses["loss_dice"] = self.dice_weight * average(dice(logits, values).sum(), number)
        return losses

    @torch.no_grad()
    def hungarian_match(
        self, class_logits: Tensor, mask_logits: Tensor, target: MaskTargets
    ) -> tuple[Tensor, Tensor]:
        """Match the classes of an image with queries at the lowest total cost.

        Args:
            class_logits: ``(Q, K + 1)``.
            mask_logits: ``(Q, h, w)``.
            target: The ``G`` classes of the image.

        Returns:
            Queries, ascending, and the indices of their classes in ``target``, both of length
            ``min(Q, G)``.
        """
        points = self.draw("match", (1, self.num_points, 2), mask_logits)
        logits = sample_points(mask_logits, points)  # (Q, P)
        truth = sample_points(target.masks, points)  # (G, P)
        class_cost = -class_logits.softmax(-1)[:, target.classes]
        inside, outside = F.softplus(-logits), F.softplus(logits)
        mask_cost = (inside @ truth.T + outside @ (1 - truth).T) / self.num_points
        probability = logits.sigmoid()
        total = probability.sum(-1)[:, None] + truth.sum(-1)[None]
        dice_cost = 1 - (2 * probability @ truth.T + 1) / (total + 1)
        cost = (
            self.class_weight * class_cost
            + self.mask_weight * mask_cost
            + self.dice_weight * dice_cost
        )
        # NaN occurs only if training has diverged; the losses will be NaN too.
        query, index = linear_sum_assignment(cost.nan_to_num().cpu().double().numpy())
        device = mask_logits.device
        return torch.as_tensor(query, device=device), torch.as_tensor(index, device=device)

    @torch.no_grad()
    def training_points(self, mask_logits: Tensor) -> Tensor:
        """Points ``(M, num_points, 2)``: the most uncertain candidates, and random ones."""
        count = len(mask_logits)
        candidates = self.draw("candidates", (count, self.num_candidates, 2), mask_logits)
        certainty = sample_points(mask_logits, candidates).abs()
        chosen = certainty.topk(self.num_uncertain, dim=1, largest=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        others = (count, self.num_points - self.num_uncertain, 2)
        return torch.cat([uncertain, self.draw("random", others, mask_logits)], dim=1)

    def draw(self, purpose: Purpose, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """Random points in [0, 1] with the device and dtype of a tensor."""
        return torch.rand(shape, dtype=like.dtype, device=like.device)

    def _class_loss(self, class_logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy over all queries, weighted by class."""
        weight = class_logits.new_ones(class_logits.shape[-1])
        weight[-1] = self.no_object_weight
        total = F.cross_entropy(
            class_logits.flatten(0, 1), labels.flatten(), weight, reduction="sum"
        )
        return average(total, weight[labels].sum())


def query_classes(
    class_logits: Tensor, targets: Sequence[MaskTargets], pairs: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Target class of each query, ``K`` for no object, from the matched pairs.

    Args:
        class_logits: ``(N, Q, K + 1)``.
        targets: Classes of each image.
        pairs: Matched queries and the indices of their classes, for each image.

    Returns:
        int64, shape ``(N, Q)``.
    """
    no_object = class_logits.shape[-1] - 1
    labels = torch.full(
        class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device
    )
    for row, target, (query, index) in zip(labels, targets, pairs, strict=True):
        row[query] = target.classes[index]
    return labels
