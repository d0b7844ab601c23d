"""What every task shares: the network, its optimizer and schedule, evaluation with an average.

A task fills small hooks: ``build_network``, ``build_loss``, ``build_metrics``, ``parameter_groups``
and ``evaluation_step``. It meets the data only as batches (``src.types``); the number of classes
comes from the data module through the command line. What is not here: anything about one task, and
the moving average itself (``src.callbacks.ema``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from src.distributed import shapes_of
from src.errors import UserError
from src.optim.param_groups import LrScale, lr_scale_by_depth, parameter_groups
from src.optim.schedules import WarmupCosine
from src.serialization import check_finite, read_checkpoint
from src.tasks import building, resume
from src.tasks.optimization import (
    Optimization,
    OptimizerFactory,
    Position,
    SchedulerFactory,
    configured_lr,
)
from src.tasks.saved import check_progress, make_task


class BaseTask(LightningModule):
    """Network, loss, metrics and optimizer of one task.

    Args:
        num_classes: Number of classes, taken from the data module on the command line.
        network: Makes the network; called with ``num_classes``.
        weights: Published or own weights to start from: a file or a hub name. ``None`` keeps the
            network's own initialisation. Ignored when a checkpoint is given, which has its weights.
        optimizer: Makes the optimizer from parameter groups. Its learning rate is for
            ``reference_batch_size`` images.
        lr_scheduler: Makes the schedule of an optimizer. Schedules of ``src.optim`` advance with
            every optimizer step, others as ``lr_interval`` says. ``None`` keeps the rate constant.
        lr_interval: When a foreign schedule advances.
        reference_batch_size: Number of images that the learning rates are meant for. They are
            multiplied by global batch / this number, where global batch = images per device x
            devices x accumulated batches. ``None`` takes them as they are.
        layer_decay: Ratio of the learning rates of neighbouring blocks, in (0, 1]; ``None`` is off.
        dcn_lr_scale: Extra learning-rate factor of the offset layers. As in the official recipe it
            only acts together with ``layer_decay``.
    """

    monitor: ClassVar[str] = "val/loss"
    """Logged value that decides which checkpoint is best."""
    monitor_mode: ClassVar[str] = "min"

    criterion: nn.Module
    metrics: nn.ModuleDict

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module],
        weights: str | None = None,
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(
            params, lr=5e-4, weight_decay=0.05
        ),
        lr_scheduler: SchedulerFactory | None = WarmupCosine,
        lr_interval: str = "epoch",
        reference_batch_size: int | None = 512,
        layer_decay: float | None = None,
        dcn_lr_scale: float | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"The number of classes must be at least 1, got {num_classes}.")
        self.network_factory, self.num_classes, self.weights = network, num_classes, weights
        self.optimization = Optimization(
            optimizer,
            lr_scheduler,
            lr_interval,
            reference_batch_size,
            self.monitor,
            self.monitor_mode,
        )
        self.layer_decay, self.dcn_lr_scale = layer_decay, dcn_lr_scale
        self.network: nn.Module | None = None
        self.random_weights: tuple[str, ...] = ()
        self._averaged: tuple[nn.Module, ...] = ()  # a tuple, so that it is not a submodule
        self._resumed: resume.Resumed | None = None
        self._save_plain_hyperparameters()

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Build network, loss and metrics once; Lightning calls this again for every stage."""
        if self.network is not None:
            return
        self.network = self.build_network()
        self.criterion = self.build_loss()
        self.metrics = nn.ModuleDict(
            {
                "val": self.build_metrics().clone(prefix="val/"),
                "val_raw": self.build_metrics().clone(prefix="val/", postfix="_raw"),
                "test": self.build_metrics().clone(prefix="test/"),
            }
        )

    def build_network(self) -> nn.Module:
        """Make the network and give it its initial weights, in shards where the strategy asks."""
        network = self.make_network()
        building.check_channels(network, getattr(self._trainer, "datamodule", None))
        if self.weights is not None:
            report = building.load_weights(network, self.weights, self._trainer)
            self.random_weights = building.random_weights(report)
            if report.class_names:
                self._compare_classes(list(report.class_names), report.source)
        return network

    def make_network(self) -> nn.Module:
        """Make the network with initial values, split over the ranks where there is a mesh."""
        if self._device_mesh is None:
            return self._make()
        return building.make_in_shards(self._make, self._device_mesh, self.trainer.strategy)

    def copy_in_shards(self) -> nn.Module:
        """Make a second network, split and valued like the one in training."""
        assert self._device_mesh is not None
        return building.copy_in_shards(
            self.training_network, self._make, self._device_mesh, self.trainer.strategy
        )

    def _make(self) -> nn.Module:
        # By name, because functions may have other first arguments.
        make: Callable[..., nn.Module] = self.network_factory
        return make(num_classes=self.num_classes)

    def build_loss(self) -> nn.Module:
        """Make the training loss."""
        raise TypeError(f"{type(self).__name__} must define build_loss()")

    def build_metrics(self) -> MetricCollection:
        """Make the metrics of one evaluation, with bare names such as ``top1``."""
        raise TypeError(f"{type(self).__name__} must define build_metrics()")

    def _save_plain_hyperparameters(self) -> None:
        """Keep the settings in checkpoints for ``load_from_checkpoint``.

        From the command line they are the plain configuration. Factories that were given as Python
        objects are left out: a checkpoint must be readable without running code.
        """
        self.save_hyperparameters()
        for name in [name for name, value in self.hparams.items() if callable(value)]:
            del self.hparams[name]

    # -------------------------------------------------------------- evaluation

    @property
    def training_network(self) -> nn.Module:
        """The network in training."""
        if self.network is None:
            raise RuntimeError("the network is built by configure_model(), which has not run yet")
        return self.network

    @property
    def evaluation_network(self) -> nn.Module:
        """The averaged network while a moving average is kept, else the network in training."""
        return self._averaged[0] if self._averaged else self.training_network

    @property
    def is_averaging(self) -> bool:
        """Whether a moving average is kept."""
        return bool(self._averaged)

    def metrics_of(self, key: str) -> MetricCollection:
        """The metrics ``val``, ``val_raw`` or ``test``."""
        return cast("MetricCollection", self.metrics[key])

    def validation_names(self) -> set[str]:
        """Names that a validation logs, as far as they are known before one."""
        names = {"val/loss", *self.score_names()}
        return names | {f"{name}_raw" for name in names} if self.is_averaging else names

    def score_names(self) -> set[str]:
        """Names of the metrics that a validation logs."""
        return {str(name) for name in self.metrics_of("val").keys(keep_base=False)}

    def set_averaged_network(self, network: nn.Module | None) -> None:
        """Evaluate with ``network`` from now on, and the raw one beside it; ``None`` ends it."""
        self._averaged = () if network is None else (network,)

    def evaluation_step(self, network: nn.Module, batch: Any, stage: str, suffix: str) -> None:
        """Evaluate ``network`` on a batch and log values named ``<stage>/<metric><suffix>``."""
        raise TypeError(f"{type(self).__name__} must define evaluation_step()")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the averaged network and, where there is one, the raw network as well."""
        self.evaluation_step(self.evaluation_network, batch, "val", "")
        if self._averaged:
            self.evaluation_step(self.training_network, batch, "val", "_raw")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate on the test split."""
        self.evaluation_step(self.evaluation_network, batch, "test", "")

    # ------------------------------------------------------------ optimization

    def lr_scale(self) -> LrScale | None:
        """Learning-rate scale by parameter name, or ``None`` for one rate."""
        if self.layer_decay is None:
            if self.dcn_lr_scale is not None:
                rank_zero_warn(
                    f"dcn_lr_scale={self.dcn_lr_scale} has no effect without layer_decay"
                    " (the official recipe reads it only there)."
                )
            return None
        depths = getattr(self.network, "depths", None)
        if depths is None:
            raise UserError(
                f"layer_decay={self.layer_decay} needs a network with `depths`, which"
                f" {type(self.network).__name__} has not; set layer_decay to null."
            )
        return lr_scale_by_depth(depths, self.layer_decay, self.dcn_lr_scale)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the network."""
        network = self.training_network
        names: Callable[[], set[str]] | None = getattr(network, "no_weight_decay", None)
        return parameter_groups(
            network.named_parameters(), lr_scale=self.lr_scale(), no_decay=names() if names else ()
        )

    def configure_optimizers(self) -> Any:
        """Optimizer with grouped, scaled learning rates, and its schedule."""
        return self.optimization.configure(self.trainer, self.parameter_groups())

    @property
    def lr(self) -> float:
        """Learning rate of the configuration, or the one that Lightning's finder has set.

        The configuration's is for ``reference_batch_size`` images, the finder's for the batch in
        use.
        """
        found = self.optimization.found_lr
        return configured_lr(self.optimization.make_optimizer) if found is None else found

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimization.found_lr = value

    def on_train_start(self) -> None:
        """Let the configuration decide where a checkpoint or a finder brought other settings."""
        if self._resumed is not None:
            self._resumed.restart(self.trainer, self.optimization)
        elif self.optimization.is_outdated(self.trainer):
            self.optimization.restart(self.trainer, Position(self.trainer))
        self._resumed = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; FSDP1 knows the norm over all processes only itself."""
        whole = self.trainer.strategy.model
        is_norm = gradient_clip_algorithm in (None, "norm")
        if isinstance(whole, FullyShardedDataParallel) and is_norm and gradient_clip_val:
            whole.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ---------------------------------------------------------------- resuming

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which classes the weights tell apart, and which optimizer has trained them."""
        if self._class_names:
            checkpoint["class_names"] = self._class_names
        if len(self.trainer.optimizers) == 1 and self.optimization.current:
            checkpoint[resume.KEY] = resume.describe(
                self.trainer, self.optimization, self.training_network
            )

    @property
    def _class_names(self) -> list[str]:
        """Readable names of the classes of the data in use, if there are any."""
        data = getattr(self._trainer, "datamodule", None)
        return list(getattr(data, "class_names", []))

    def _compare_classes(self, trained: list[str], source: str = "The checkpoint") -> None:
        """Warn where the data have other classes than the weights, in as many places.

        Raises:
            UserError: If an evaluation or prediction would have the same names in another order.
        """
        now = self._class_names
        other = [(old, new) for old, new in zip(trained, now, strict=False) if old != new]
        if not other or (len(trained) != len(now) and source != "The checkpoint"):
            return  # layers of another number of classes are not taken from weights
        difference = (
            f"{len(other)} have other names, the first is {other[0][0]!r} there and"
            f" {other[0][1]!r} here"
        )
        if sorted(trained) == sorted(now) and not self._is_fitting:
            raise UserError(
                f"{source} was trained for the classes of the data in another order, so the results"
                f" would have wrong names: {difference}. Give data.class_names in the order of the"
                f" weights: {trained}."
            )
        rank_zero_warn(
            f"{source} was trained for other classes than those of the data: {difference}."
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another network; continue without an average if none is kept now.

        Raises:
            UserError: If names or shapes of the weights differ, or the optimizer cannot go on.
        """
        self._compare_classes(checkpoint.get("class_names", []))
        if self._trainer is not None:
            check_progress(checkpoint, self.trainer)
        if "state_dict" in checkpoint:  # else a sharding strategy has checked and loaded it
            self._check_file(checkpoint)
        if self._is_fitting:
            resume.keep_settings_of_callbacks(checkpoint, self.trainer.callbacks)  # type: ignore[attr-defined]
            self._resumed = resume.Resumed(checkpoint)
            for state in checkpoint.get("optimizer_states", []):
                resume.settings_into(state, self.optimization.make_optimizer)

    def _check_file(self, checkpoint: dict[str, Any]) -> None:
        if "current_model_state" in checkpoint and self._is_fitting and not self._averaged:
            resume.warn_of_lost_average()
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        resume.check_fits(shapes_of(checkpoint["state_dict"]), shapes_of(self.state_dict()))
        if self._is_fitting:
            resume.check_continues(checkpoint)
            state, groups = checkpoint["optimizer_states"][0], self.parameter_groups()
            self.check_optimizer(checkpoint, [len(g["params"]) for g in state["param_groups"]])
            resume.check_moments(checkpoint["optimizer_states"], groups)
            resume.check_states(state, self.optimization.make_optimizer)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, **settings: Any
    ) -> Self:
        """Make the task that a checkpoint describes, with its weights.

        Networks, losses, optimizers and schedules may be those of this project and of
        ``torch.optim``; the file cannot name anything else.

        Args:
            checkpoint_path: File that a run from the command line has written; of a folder make a
                file with ``consolidate``.
            settings: Arguments that replace those of the file. A file that was written from Python
                does not hold its factories, which must be given.

        Raises:
            UserError: If the file cannot be read, or describes what is not in this project.
        """
        path = Path(checkpoint_path)
        content = read_checkpoint(path)
        check_finite(content, path)
        task = make_task(cls, content.get("hyper_parameters") or {}, settings, path)
        task.configure_model()
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"])
        return task

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def check_optimizer(self, checkpoint: Mapping[str, Any], sizes: list[int]) -> None:
        """Refuse optimizer state of another optimizer or of other parameter groups.

        Args:
            checkpoint: Content of the checkpoint.
            sizes: Number of parameters in each of its groups.

        Raises:
            UserError: If the optimizer or its groups are others now.
        """
        groups = self.parameter_groups()
        now = [len(group["params"]) for group in groups]
        if sizes != now:
            raise UserError(
                f"The checkpoint groups the parameters for the optimizer as {sizes}, these settings"
                f" as {now}. Keep layer_decay, dcn_lr_scale and frozen parts as they were, or start"
                " from the weights alone with model.init_args.weights."
            )
        described = checkpoint.get(resume.KEY, {})
        make_optimizer = self.optimization.make_optimizer
        resume.check_optimizer(described, groups, make_optimizer, self.training_network)


def not_finite(path: str) -> str:
    """Sentence about an image for which a network gives NaN or infinite values."""
    return (
        f"The network gives values that are not finite for {path}: its weights are not, or numbers"
        " overflow in trainer.precision; take an earlier checkpoint, or precision 32-true."
    )
