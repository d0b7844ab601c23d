"""Joint image-text pre-training task: contrastive loss, retrieval, zero-shot classification.

Two kinds of batches are evaluated: pairs (the keys ``image`` and ``text``) by the recall of
retrieval, and labelled images (``image`` and ``label``) by zero-shot accuracy. The data module
gives the names of the classes, and its ``tokenizer`` for the texts that describe them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from src.errors import UserError
from src.losses.contrastive import CLIPLoss, SigLIPLoss  # noqa: F401  short names for YAML
from src.metrics.retrieval import RetrievalRecall
from src.models.image_text import ImageTextFeatures, ImageTextModel, load_text_weights
from src.tasks.base import BaseTask
from src.tasks.class_names import class_names_of
from src.tasks.zero_shot import check_templates, class_embeddings

_ZERO_SHOT = ("zero_shot_top1", "zero_shot_top5")
_SPLITS = {"val": ("val", "val_raw"), "test": ("test",)}


class ImageTextTask(BaseTask):
    """Train an image tower and a text tower on pairs of images and texts.

    Args:
        num_classes: Number of classes of zero-shot classification, taken from the data module on
            the command line; 0 if there are no labelled images.
        network: Factory of the towers.
        loss: Factory of the loss: `CLIPLoss` or `SigLIPLoss`.
        text_weights: Weights of the text tower, a file of open_clip; see `load_text_weights`.
        templates: Texts that describe a class, with the placeholder ``{}`` for its name; or
            ``openai``, the 80 templates that CLIP was evaluated with on ImageNet.
        kwargs: See :class:`BaseTask`. ``weights`` are those of the image tower (any file with an
            InternImage) or of an earlier run of this task.
    """

    monitor: ClassVar[str] = "val/image_to_text_recall1"
    monitor_mode: ClassVar[str] = "max"
    predicts: ClassVar[bool] = False
    compiles_all_sizes: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        network: Callable[[], ImageTextModel] = ImageTextModel,
        loss: Callable[[], nn.Module] = CLIPLoss,
        text_weights: str | None = None,
        templates: list[str] | str = ["a photo of a {}."],  # noqa: B006  not changed
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=max(1, num_classes), network=network, **kwargs)
        check_templates(templates)
        self.loss_factory, self.text_weights, self.templates = loss, text_weights, templates
        self._classes: dict[str, Tensor] = {}  # embeddings by "" and "_raw"
        self._seen: set[str] = set()

    def setup(self, stage: str) -> None:
        """Refuse ``predict``: there are no classes or boxes yet.

        Raises:
            UserError: If the stage is ``predict``.
        """
        if stage == "predict":
            raise UserError(
                "predict is for fine-tuned networks: run fit with a classification, detection or"
                " segmentation recipe and --model.weights set to a checkpoint of this run"
                " (docs/pretraining.md)."
            )

    def network_arguments(self) -> dict[str, Any]:
        """None, because the towers do not depend on the classes."""
        return {}

    def load_weights(self, network: nn.Module) -> None:
        """Load ``weights``, then ``text_weights``."""
        super().load_weights(network)
        text = cast("ImageTextModel", network).text
        if self.text_weights is not None:
            load_text_weights(text, self.text_weights)
        elif text.is_frozen and self.weights is None and self._is_fitting:
            rank_zero_warn(
                "The frozen text tower is randomly initialised. Set model.text_weights to a file of"
                " open_clip, or network.text.frozen to false."
            )

    def build_loss(self) -> nn.Module:
        """The given loss."""
        return self.loss_factory()

    def build_metrics(self) -> MetricCollection:
        """Recall of retrieval, and zero-shot accuracy in [0, 1] over all labelled images."""
        metrics: dict[str, Any] = {"retrieval": RetrievalRecall()}
        for name, k in zip(_ZERO_SHOT, (1, 5), strict=True):
            metrics[name] = MulticlassAccuracy(
                max(2, self.num_classes), top_k=min(k, self.num_classes), average="micro"
            )
        return MetricCollection(metrics, compute_groups=False)

    def score_names(self) -> set[str]:
        """Names of the metrics that a validation logs."""
        has_classes = bool(class_names_of(self._trainer))
        names = (*RetrievalRecall.score_names, *(_ZERO_SHOT if has_classes else ()))
        return {f"val/{name}" for name in names}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Contrastive loss of a batch among the pairs of all ranks."""
        found: ImageTextFeatures = self.training_network(batch["image"], batch["text"])
        loss: Tensor = self.criterion(*found)
        size = len(batch["text"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log(
            "train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True
        )
        self.log("train/logit_scale", found.scale.detach().squeeze(), batch_size=size)
        return loss

    # ---------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch of pairs or of labelled images."""
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch of pairs or of labelled images."""
        super().test_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Forget the embeddings of the classes, which the weights determine."""
        self._classes.clear()

    def on_test_epoch_start(self) -> None:
        """Forget the embeddings of the classes, which the weights determine."""
        self._classes.clear()

    def evaluation_step(
        self, network: nn.Module, batch: dict[str, Any], stage: str, suffix: str
    ) -> None:
        """Log the loss of pairs, update the metrics."""
        metrics, is_padding = self.metrics_of(stage + suffix), bool(batch.get("is_padding"))
        if "label" in batch:
            classes = self._embeddings(network, suffix)
            logits = network(batch["image"]).image @ classes.T
            self._seen |= set(_ZERO_SHOT)
            for name in () if is_padding else _ZERO_SHOT:
                metrics[name].update(logits, batch["label"])
            return
        found: ImageTextFeatures = network(batch["image"], batch["text"])
        self._seen.add("retrieval")
        assert found.image is not None
        assert found.text is not None
        # Zero pairs, and not no update, because ranks can only gather features of the same kind.
        count = 0 if is_padding else len(batch["text"])
        metrics["retrieval"].update(found.image[:count], found.text[:count], batch["text"][:count])
        # Among the pairs of this batch, because batches of different ranks may differ in size.
        loss = self.criterion(*found, gather=False)
        self.log(
            f"{stage}/loss{suffix}",
            loss,
            batch_size=count,
            sync_dist=True,
            prog_bar=True,
            add_dataloader_idx=False,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation data."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test data."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for key in _SPLITS[stage]:
            if key.endswith("_raw") and not self.is_averaging:
                continue
            suffix = "_raw" if key.endswith("_raw") else ""
            for name, metric in self.metrics_of(key).items(keep_base=True):
                if name not in self._seen:
                    continue
                found = metric.compute()
                scores = found if isinstance(found, dict) else {name: found}
                self.log_dict({f"{stage}/{n}{suffix}": v for n, v in scores.items()}, prog_bar=True)
                metric.reset()
        self._seen.clear()

    def _embeddings(self, network: nn.Module, suffix: str) -> Tensor:
        """Embeddings of the classes, ``(K, D)``, computed once per evaluation."""
        if suffix not in self._classes:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            names = class_names_of(self.trainer)
            self._classes[suffix] = class_embeddings(
                network, names, self.templates, data.tokenizer, self.device
            )
        return self._classes[suffix]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add a description of the optimizer; the weights are not those of any classes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.pop("class_names", None)
