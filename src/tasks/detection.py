"""Object detection and instance segmentation task: training, COCO metrics, COCO results.

The defaults are those of the official InternImage recipe for COCO (mmdetection 2.28). The network
computes its losses, because they depend on its proposals; the task sums and logs them. In
evaluation, boxes and masks refer to the images at their original size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.errors import UserError
from src.metrics.base import DetectionMetric
from src.metrics.coco import COCOMetric
from src.metrics.coco_results import Result, only_finite, to_results
from src.metrics.lvis import LVISMetric  # noqa: F401  short names for YAML
from src.metrics.open_images import OpenImagesMetric  # noqa: F401
from src.metrics.voc import VOCMetric  # noqa: F401
from src.models.detection import Detector, MaskRCNN, TrainingOutput
from src.models.detection.tta import fuse, mirror
from src.optim.dense_layer_decay import dense_lr_scale
from src.optim.param_groups import LrScale, parameter_groups
from src.optim.steps import WarmupMultiStep
from src.tasks.dense import DenseTask
from src.tasks.optimization import OptimizerFactory, SchedulerFactory
from src.types import ENOUGH_IMAGES, ClassFacts, DetectionBatch, Detections


class DetectionTask(DenseTask):
    """Train and evaluate a detector.

    Args:
        num_classes: Number of classes, taken from the data module on the command line.
        network: Factory of the detector, called with ``num_classes``.
        metric: Factory of the metric, called with ``num_classes`` and ``kinds`` of the detector;
            default is `COCOMetric`. The other metrics are in ``src/metrics``.
        coco_backend: Package that computes AP: ``pycocotools`` or ``faster_coco_eval``.
        optimizer: See :class:`BaseTask`.
        lr_scheduler: See :class:`BaseTask`.
        reference_batch_size: See :class:`BaseTask`.
        layer_decay: Ratio of the learning rates of adjacent blocks of the backbone, in (0, 1];
            ``None`` is off.
        offset_lr_scale: Learning-rate factor of parameters named ``sampling_offsets`` or
            ``reference_points`` (in DINO). It has an effect only together with ``layer_decay``.
            The official 3x recipes of Cascade Mask R-CNN also set it, without effect.
        backbone_lr_scale: Learning-rate factor of the whole backbone. If it is given, weight decay
            applies to every parameter, including norms and biases, as in the official recipe
            ``dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr``. Cannot be combined with
            ``layer_decay``.
        warn_few_images: Warn about training from random weights with too few images for it; off in
            recipes for trying commands.
        kwargs: See :class:`DenseTask`.
    """

    monitor: ClassVar[str] = "val/bbox_AP"
    zero_score: ClassVar[str] = "nothing is detected correctly yet; train for more epochs"
    monitor_mode: ClassVar[str] = "max"

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], Detector] = MaskRCNN,
        metric: Callable[[int, Sequence[str]], DetectionMetric] | None = None,
        coco_backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(
            params, lr=1e-4, weight_decay=0.05
        ),
        lr_scheduler: SchedulerFactory | None = WarmupMultiStep,
        reference_batch_size: int | None = 16,
        layer_decay: float | None = None,
        offset_lr_scale: float = 1.0,
        backbone_lr_scale: float | None = None,
        warn_few_images: bool = True,
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
        if backbone_lr_scale is not None and (layer_decay is not None or backbone_lr_scale < 0):
            raise UserError(
                "backbone_lr_scale must be 0 or more, and null if layer_decay is set, got "
                f"{backbone_lr_scale} with layer_decay {layer_decay}."
            )
        self.metric_factory, self.coco_backend = metric, coco_backend
        self.offset_lr_scale = offset_lr_scale
        self.backbone_lr_scale = backbone_lr_scale
        self.warn_few_images = warn_few_images
        self.class_scores: dict[str, Tensor] = {}
        self.scored_results: list[Result] | None = None  # of `validate` or `test`, on rank 0

    def build_loss(self) -> nn.Module:
        """Placeholder, because the network computes its losses."""
        return nn.Identity()

    def build_metrics(self) -> MetricCollection:
        """The given metric, or the COCO metric of boxes and, if the detector has them, masks."""
        kinds = cast("Detector", self.training_network).kinds
        if self.metric_factory is None:
            return MetricCollection([COCOMetric(self.num_classes, kinds, self.coco_backend)])
        make: Callable[..., DetectionMetric] = self.metric_factory
        return MetricCollection([make(num_classes=self.num_classes, kinds=kinds)])

    def loss_names(self) -> set[str]:
        """Empty, because detectors do not compute losses in evaluation."""
        return set()

    def score_names(self) -> set[str]:
        """Names of the metrics that a validation logs."""
        return {f"val/{name}" for name in self._metric("val").score_names}

    def _metric(self, key: str) -> DetectionMetric:
        return cast("DetectionMetric", next(iter(self.metrics_of(key).values())))

    def lr_scale(self) -> LrScale | None:
        """Learning-rate factor by parameter name; ``None`` for a single rate."""
        if self.backbone_lr_scale is not None:
            scale = self.backbone_lr_scale
            return lambda name: scale if name.startswith("backbone.") else 1.0
        if self.layer_decay is None:
            return None
        depths = cast("Detector", self.training_network).depths
        return dense_lr_scale(depths, self.layer_decay, offset_lr_scale=self.offset_lr_scale)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer as in the official detection recipes."""
        if self.backbone_lr_scale is None:
            return super().parameter_groups()
        named = self.training_network.named_parameters()
        return parameter_groups(named, lr_scale=self.lr_scale(), decay_all=True)

    def on_train_start(self) -> None:
        """Also warn about a random detector with few images."""
        is_new = self._resumed is None
        super().on_train_start()
        if is_new and self.weights is None and self.warn_few_images:
            warn_if_few(self.trainer)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        """Sum of the losses of a batch."""
        network = cast("Detector", self.training_network)
        if "segm" in network.kinds and any("masks" not in t for t in batch["target"]):
            raise UserError(
                f"{type(network).__name__} needs masks, but data.masks is false; set it to true."
            )
        output: TrainingOutput = network(batch["image"], batch["size"], targets=batch["target"])
        losses = {name: value.sum() for name, value in output.losses.items()}
        loss = torch.stack(list(losses.values())).sum()
        size = len(batch["image"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        logged = {f"train/{name}": v.detach() for name, v in (losses | output.metrics).items()}
        self.log_dict(logged, batch_size=size)
        return loss

    def evaluation_step(
        self, network: nn.Module, batch: DetectionBatch, stage: str, suffix: str
    ) -> None:
        """Add the detections of a batch to the metric."""
        metric = self.metrics_of(stage + suffix)
        found = self._detect(network, batch)
        if not batch.get("is_padding"):
            checked = {key: batch[key] for key in ("image_labels",) if key in batch}
            metric.update(
                found, batch["image_id"], batch["original_size"], batch["annotations"], **checked
            )

    def predict_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, Any]:
        """Detections of every image.

        Returns:
            ``path`` (``N`` strings), ``image_id`` (``N`` integers), ``size`` (height and width of
            each image) and ``results``: COCO results of each image with class indices. Empty
            for padding batches (see `CountOnceSampler`).
        """
        found = self._detect(self.inference_network, batch)
        if batch.get("is_padding"):
            return {}
        return {
            "path": batch["path"],
            "image_id": batch["image_id"],
            "size": batch["original_size"],
            "results": [
                to_results(detections, number)
                for detections, number in zip(found, batch["image_id"], strict=True)
            ],
        }

    def _detect(self, network: nn.Module, batch: DetectionBatch) -> list[Detections]:
        originals = batch["original_size"]
        found: list[Detections] = network(batch["image"], batch["size"], originals)
        views = batch.get("views", [])
        if not views:
            return found
        if cast("Detector", network).kinds != ("bbox",):
            raise UserError(
                f"Test-time augmentation does not support masks, which {type(network).__name__} "
                "predicts; set data.tta to false."
            )
        views_found = [found]
        for view in views:
            more: list[Detections] = network(view["image"], view["size"], originals)
            if view["flipped"]:
                more = [mirror(d, width) for d, (_, width) in zip(more, originals, strict=True)]
            views_found.append(more)
        return [fuse([only_finite(d) for d in found]) for found in zip(*views_found, strict=True)]

    def log_scores(self, stage: str, suffix: str) -> None:
        """Log the scalar metrics, NaN without annotated objects, and store the per-class ones."""
        metrics = self.metrics_of(stage + suffix)
        data = getattr(self.trainer, "datamodule", None)
        self._metric(stage + suffix).class_facts = getattr(data, "class_facts", ClassFacts())
        scores: dict[str, Tensor] = metrics.compute()
        if not self._is_fitting and self.trainer.is_global_zero:
            self.scored_results = self._metric(stage + suffix).results
        metrics.reset()
        # The COCO tools give -1 if no such objects are annotated, which is no score.
        scalars = {
            name: value.float().where(value >= 0, torch.nan)
            for name, value in scores.items()
            if value.ndim == 0
        }
        main = f"{stage}/bbox_AP{suffix}", f"{stage}/segm_AP{suffix}"
        for name, value in scalars.items():
            # All ranks have the same values; sync_dist only informs Lightning.
            self.log(name, value, prog_bar=name in main, sync_dist=True)
        if not suffix:
            self.class_scores = {
                name.split("/")[1].replace("class_", ""): value
                for name, value in scores.items()
                if value.ndim
            }


def warn_if_few(trainer: Trainer) -> None:
    """Warn about training a detector from random weights with few images."""
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if not isinstance(dataset, Sized):  # several loaders, or images without a known number
        return
    if (count := len(dataset)) < ENOUGH_IMAGES:
        rank_zero_warn(
            f"The detector starts from random weights and has only {count} training images; from"
            f" scratch it needs more than {ENOUGH_IMAGES}. Add --network t to the command `prepare`"
            " to fine-tune published weights."
        )
