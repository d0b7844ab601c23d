"""Semantic segmentation task: training, mIoU at the original image size, label maps.

The defaults are those of the official InternImage recipe for ADE20K (mmsegmentation 0.27). In
evaluation, probabilities of whole images or of sliding windows are resized to the original size of
the image and averaged over the views of the data module (test-time augmentation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.distributed import forwards_behind
from src.errors import UserError
from src.losses.mask_set import MaskSetLoss  # noqa: F401  short name for YAML
from src.losses.segmentation import SegmentationLoss
from src.metrics.base import ScoreMetric
from src.metrics.cityscapes import CityscapesMetric  # noqa: F401  short name for YAML
from src.metrics.segmentation import SegmentationMetric
from src.models.layers.precision import full_precision
from src.models.segmentation import (
    Outputs,
    Segmentor,
    SlidingWindow,
    number_of_forwards,
    probability_strips,
)
from src.optim.dense_layer_decay import dense_lr_scale
from src.optim.param_groups import LrScale
from src.optim.poly import WarmupPoly
from src.tasks.base import not_finite
from src.tasks.class_names import class_names_of
from src.tasks.dense import DenseTask
from src.tasks.optimization import OptimizerFactory, SchedulerFactory
from src.tasks.panoptic import Panoptic, check_panoptic, kept_outputs
from src.types import IGNORE_LABEL, SegmentationBatch, SegmentationEvalBatch


class SegmentationTask(DenseTask):
    """Train and evaluate a segmentor.

    Args:
        num_classes: Number of classes, taken from the data module on the command line.
        network: Factory of the segmentor, called with ``num_classes``.
        loss: Factory of the loss, a module called with the outputs of the network and the labels.
            Mask2Former needs `src.losses.mask_set.MaskSetLoss`; default is pixel-wise cross
            entropy with the next two arguments.
        metric: Factory of the metric, called with ``num_classes``.
        loss_average: Denominator of the mean loss: ``all`` pixels including ignored ones (as in
            the official code) or only ``labelled`` ones.
        aux_weight: Weight of the auxiliary loss.
        window_size: Height and width of sliding windows, in pixels of the network input. ``None``
            evaluates whole images.
        window_stride: Vertical and horizontal step of the windows; default is two thirds of
            ``window_size``.
        optimizer: See :class:`BaseTask`.
        lr_scheduler: See :class:`BaseTask`.
        reference_batch_size: See :class:`BaseTask`.
        layer_decay: Ratio of the learning rates of adjacent blocks of the backbone, in (0, 1];
            ``None`` is off.
        panoptic: Also predict panoptic segments and instances, with Mask2Former on whole images.
        kwargs: See :class:`DenseTask`.
    """

    monitor: ClassVar[str] = "val/mIoU"
    monitor_mode: ClassVar[str] = "max"

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], Segmentor] = Segmentor,
        loss: Callable[[], nn.Module] | None = None,
        metric: Callable[[int], ScoreMetric] = SegmentationMetric,
        loss_average: Literal["all", "labelled"] = "all",
        aux_weight: float = 0.4,
        window_size: tuple[int, int] | None = None,
        window_stride: tuple[int, int] | None = None,
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(
            params, lr=6e-5, weight_decay=0.05
        ),
        lr_scheduler: SchedulerFactory | None = WarmupPoly,
        reference_batch_size: int | None = 16,
        layer_decay: float | None = None,
        panoptic: Panoptic | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            network=network,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            reference_batch_size=reference_batch_size,
            layer_decay=layer_decay,
            **kwargs,
        )
        self.loss_factory, self.metric_factory = loss, metric
        self.loss_average, self.aux_weight = loss_average, aux_weight
        self.window = _window(window_size, window_stride)
        self.panoptic = panoptic
        self.hparams.pop("panoptic", None)  # an object, and only for prediction
        self.class_scores: dict[str, Tensor] = {}

    def build_loss(self) -> nn.Module:
        """The given loss, or pixel-wise cross entropy of both heads."""
        if self.loss_factory is not None:
            return self.loss_factory()
        return SegmentationLoss(self.loss_average, self.aux_weight)

    def build_metrics(self) -> MetricCollection:
        """The given metric, or mIoU, mAcc and aAcc over the pixels of all images."""
        make: Callable[..., ScoreMetric] = self.metric_factory
        return MetricCollection([make(num_classes=self.num_classes)])

    def score_names(self) -> set[str]:
        """Names of the metrics that a validation logs."""
        metric = cast("ScoreMetric", next(iter(self.metrics_of("val").values())))
        return {f"val/{name}" for name in metric.score_names}

    def lr_scale(self) -> LrScale | None:
        """Learning-rate factor by parameter name; ``None`` for a single rate."""
        if self.layer_decay is None:
            return None
        depths = getattr(getattr(self.network, "backbone", None), "depths", None)
        if depths is None:
            raise UserError(
                f"layer_decay={self.layer_decay} needs a network whose backbone has `depths`; set "
                "layer_decay to null."
            )
        return dense_lr_scale(depths, self.layer_decay, segmentation=True)

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        label = batch["label"]
        self._check_batch_norm(len(label))
        outputs = self.training_network(batch["image"])
        with torch.autocast(self.device.type, enabled=False):
            losses: dict[str, Tensor] = self.criterion(_widened(outputs), label)
        loss = torch.stack(list(losses.values())).sum()
        size = len(label)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=size)
        return loss

    def evaluation_step(
        self, network: nn.Module, batch: SegmentationEvalBatch, stage: str, suffix: str
    ) -> None:
        """Update the metric with the pixels of every image, and log the loss per labelled pixel."""
        losses = [torch.zeros((), device=label.device) for label in batch["label"]]
        for index, rows, probability in self._segment(network, batch):
            label = batch["label"][index][rows]
            weights = {"weight": batch["weight"][index][rows]} if "weight" in batch else {}
            # Metrics without this argument do not get it.
            self.metrics_of(stage + suffix).update(
                _decide(probability, self.num_classes), label, **weights
            )
            losses[index] += self._summed_loss(probability, label)
        for label, loss in zip(batch["label"], losses, strict=True):
            # With this weight the logged value is the mean over the labelled pixels of all images.
            weight = int((label != IGNORE_LABEL).sum())
            self.log(
                f"{stage}/loss{suffix}", loss / max(weight, 1), batch_size=weight, sync_dist=True
            )

    def _summed_loss(self, probability: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of probabilities ``(K, H, W)``, summed over the labelled pixels."""
        right = probability.gather(0, label.clamp(max=self.num_classes - 1)[None])[0]
        return -right[label != IGNORE_LABEL].clamp(min=1e-12).log().sum()

    def predict_step(self, batch: SegmentationEvalBatch, batch_idx: int) -> dict[str, Any]:
        """Most probable class of every pixel.

        Returns:
            ``path`` (``N`` strings) and ``label_map``: for each image a uint8 tensor of classes
            at the original size, ``(H, W)``, on the CPU. With ``panoptic`` also ``segments`` and
            ``instances`` of each image, and ``things``, the labels that are counted. Empty for
            padding batches (see `CountOnceSampler`).
        """
        if self.panoptic is not None:
            return self._predict_panoptic(self.panoptic, batch)
        return self._predict_label_maps(batch)

    def _predict_panoptic(self, panoptic: Panoptic, batch: SegmentationEvalBatch) -> dict[str, Any]:
        network = self.inference_network
        check_panoptic(network, self.window is not None, len(batch["flipped"]))
        things = panoptic.thing_labels(class_names_of(self._trainer), self.num_classes)
        with kept_outputs(network) as outputs:
            found = self._predict_label_maps(batch)
        if not found:
            return found
        each: dict[int, Any] = {}
        for output, ((size, shapes), members) in zip(outputs, _alike(batch).items(), strict=False):
            sizes = ((shapes[0][-2], shapes[0][-1]), size)
            for row, index in enumerate(members):
                queries = output["class_logits"][row], output["mask_logits"][row]
                each[index] = panoptic.segments(*queries, sizes, things)
        segments, instances = zip(*(each[index] for index in sorted(each)), strict=True)
        return found | {"segments": segments, "instances": instances, "things": things}

    def _predict_label_maps(self, batch: SegmentationEvalBatch) -> dict[str, Any]:
        label_maps = [torch.empty(tuple(size), dtype=torch.uint8) for size in batch["size"]]
        for index, rows, probability in self._segment(self.inference_network, batch):
            classes = _decide(probability[: self.num_classes], self.num_classes)
            if bool((classes == self.num_classes).any()):
                raise UserError(not_finite(batch["path"][index]))
            label_maps[index][rows] = classes.to("cpu", torch.uint8)
        return {} if batch.get("is_padding") else {"path": batch["path"], "label_map": label_maps}

    def _segment(
        self, network: nn.Module, batch: SegmentationEvalBatch
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """Iterate over image index, rows of a strip, and its probabilities ``(K, rows, W)``.

        Images with the same size share a forward pass.
        """
        alike = _alike(batch)
        own = sum(number_of_forwards(shapes, self.window) for _, shapes in alike)
        fewer = forwards_behind(network, own)
        for (size, shapes), members in alike.items():
            views = [
                torch.stack([batch["views"][i][number] for i in members])
                for number in range(len(shapes))
            ]
            for rows, probabilities in probability_strips(
                network, views, size, flipped=batch["flipped"], window=self.window
            ):
                for index, probability in zip(members, probabilities, strict=True):
                    yield index, rows, probability
        height, width = self.window.crop_size if self.window else batch["views"][0][0].shape[-2:]
        for _ in range(fewer):
            network(batch["views"][0][0][None, :, :height, :width])

    def _check_batch_norm(self, size: int) -> None:
        """Refuse a single image per step, with which batch norm has one value per channel."""
        if size == 1 and any(isinstance(m, nn.BatchNorm2d) for m in self.network.modules()):  # type: ignore[union-attr]
            raise UserError(
                "The heads have batch norm and cannot be trained with a single image per step. Set "
                "data.batch_size to 2 or more, or use several devices with trainer.sync_batchnorm."
            )

    def log_scores(self, stage: str, suffix: str) -> None:
        """Log the scalar metrics, and store the per-class ones."""
        metrics = self.metrics_of(stage + suffix)
        scores: dict[str, Tensor] = metrics.compute()
        metrics.reset()
        scalars = {name: value for name, value in scores.items() if value.ndim == 0}
        # All ranks have the same values; sync_dist only informs Lightning.
        self.log_dict(scalars, prog_bar=True, sync_dist=True)
        if not suffix:
            per_class = {name: value for name, value in scores.items() if value.ndim}
            self.class_scores = {name.split("/")[1]: value for name, value in per_class.items()}


def _decide(probability: Tensor, num_classes: int) -> Tensor:
    """Most probable class from ``(K, H, W)``.

    It is ``num_classes`` where the best of the outputs is none of the classes, or the probabilities
    are not finite.
    """
    best, classes = probability.max(0)
    return classes.clamp(max=num_classes).masked_fill(~torch.isfinite(best), num_classes)


def _alike(batch: SegmentationEvalBatch) -> dict[Any, list[int]]:
    """Image indices grouped by original size and shapes of the views."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, views in enumerate(batch["views"]):
        height, width = batch["size"][index]
        alike[(int(height), int(width)), tuple(view.shape for view in views)].append(index)
    return alike


def _widened(outputs: Outputs) -> dict[str, Any]:
    return {
        name: [full_precision(x) for x in value]
        if isinstance(value, list)
        else full_precision(value)
        for name, value in outputs.items()
    }


def _window(size: tuple[int, int] | None, stride: tuple[int, int] | None) -> SlidingWindow | None:
    if size is None:
        if stride is not None:
            raise UserError("window_stride needs window_size; set both or neither.")
        return None
    if stride is None:
        stride = (round(2 / 3 * size[0]), round(2 / 3 * size[1]))
    return SlidingWindow((size[0], size[1]), (stride[0], stride[1]))
