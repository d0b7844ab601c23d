"""What every task shares: the network, its optimizer and schedule, evaluation with an average.

A task fills small hooks: ``build_network``, ``build_loss``, ``build_metrics``, ``parameter_groups``
and ``evaluation_step``. It meets the data only as batches (``src.types``); the number of classes
comes from the data module through the command line. What is not here: anything about one task, and
the moving average itself (``src.callbacks.ema``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Size, Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from src.distributed import copy_network, describe_mismatch, materialise, shapes_of, shard
from src.errors import UserError
from src.models.stages import Block
from src.models.weights import LoadReport, load_official
from src.optim.param_groups import LrScale, lr_scale_by_depth, parameter_groups
from src.optim.schedules import StepSchedule, WarmupCosine
from src.serialization import check_finite, read_checkpoint
from src.tasks.saved import check_progress, check_schedules, make_task

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
SHARDED_UNITS: tuple[type[nn.Module], ...] = (Block,)
"""Modules that sharding strategies gather one at a time."""
_MOMENTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
"""Types of the values in the state of an optimizer."""


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
        if reference_batch_size is not None and reference_batch_size < 1:
            raise UserError(
                f"reference_batch_size must be at least 1 or null, got {reference_batch_size}."
            )
        self.network_factory, self.num_classes, self.weights = network, num_classes, weights
        self.optimizer_factory, self.lr_scheduler_factory = optimizer, lr_scheduler
        self.lr_interval, self.reference_batch_size = lr_interval, reference_batch_size
        self.layer_decay, self.dcn_lr_scale = layer_decay, dcn_lr_scale
        self.network: nn.Module | None = None
        self.random_weights: tuple[str, ...] = ()
        self._averaged: tuple[nn.Module, ...] = ()  # a tuple, so that it is not a submodule
        self._group_settings: list[dict[str, Any]] = []
        self._saved_schedules: list[Any] | None = None
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
        """Make the network and give it its starting weights, in shards where the strategy asks."""
        network = self.make_network()
        if self.weights is not None:
            report = load_official(network, self.weights)
            fresh = (name for name in report.fresh if not name.startswith("auxiliary_head."))
            self.random_weights = tuple(fresh)
            self._warn_of_random_values(report)
            if report.class_names:
                self._compare_classes(list(report.class_names), report.source)
        return network

    def _warn_of_random_values(self, report: LoadReport) -> None:
        """Say that an evaluation means nothing where a part of the network is not in the file."""
        fresh = self.random_weights
        if fresh and self._trainer and self.trainer.state.fn not in (None, TrainerFn.FITTING):
            rank_zero_warn(
                f"{len(fresh)} weights of the network are not in {report.source} and have random"
                f" values (first: {fresh[0]}), so the results mean nothing. Give the classes that"
                " the weights were trained with (data.class_names), or fit first."
            )

    def make_network(self) -> nn.Module:
        """Make the network with start values, split over the processes where there is a mesh."""
        if self._device_mesh is None:
            return self._call_factory()
        network = self._in_shards(self._device_mesh)
        materialise(network, self.trainer.strategy.root_device)
        return network

    def copy_in_shards(self) -> nn.Module:
        """Make a second network, split and valued like the one in training."""
        assert self._device_mesh is not None
        network = self._in_shards(self._device_mesh)
        network.to_empty(device=self.trainer.strategy.root_device)
        copy_network(network, self.training_network)
        return network

    def _call_factory(self) -> nn.Module:
        # By name, because functions may have other first arguments.
        make: Callable[..., nn.Module] = self.network_factory
        return make(num_classes=self.num_classes)

    def _in_shards(self, mesh: DeviceMesh) -> nn.Module:
        if mesh["tensor_parallel"].size() > 1:
            raise UserError(
                "The networks are not made for tensor parallelism; use --trainer.strategy fsdp2,"
                " which splits them over all processes."
            )
        with torch.device("meta"):
            network = self._synchronised(self._call_factory())
        shard(network, mesh["data_parallel"], SHARDED_UNITS)
        return network

    def _synchronised(self, network: nn.Module) -> nn.Module:
        """Follow ``trainer.sync_batchnorm``, which Lightning leaves out for sharded networks."""
        layer_sync = getattr(self.trainer.strategy, "_layer_sync", None)
        return network if layer_sync is None else layer_sync.apply(network)

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

    def global_batch_size(self) -> int:
        """Images per optimizer step: images per device x devices x accumulated batches."""
        loader = self.trainer.train_dataloader
        # Fewer than the loader's where the data do not fill a batch.
        per_device = getattr(getattr(loader, "sampler", None), "batch_size", None)
        if per_device is None:
            per_device = getattr(loader, "batch_size", None)
        if per_device is None:
            per_device = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        if per_device is None:
            raise UserError(
                "The batch size of the training loader is unknown, so the learning rate cannot be"
                " scaled to it; set model.init_args.reference_batch_size to null."
            )
        return int(per_device) * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> Any:
        """Optimizer with grouped, scaled learning rates, and its schedule."""
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # the number of steps and the batch size come from the loader
        scale = 1.0
        if self.reference_batch_size is not None:
            scale = self.global_batch_size() / self.reference_batch_size
        optimizer = self.optimizer_factory(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"] * scale
        self._group_settings = [_settings(group) for group in optimizer.param_groups]
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        if not isinstance(scheduler, StepSchedule):
            config = {"scheduler": scheduler, "interval": self.lr_interval}
            return {"optimizer": optimizer, "lr_scheduler": config}
        self._plan(scheduler, scale)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _plan(self, scheduler: StepSchedule, scale: float) -> None:
        total_steps = self.trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise UserError(
                "The length of training is unknown, so the learning-rate schedule cannot be"
                " planned; set trainer.max_epochs or trainer.max_steps."
            )
        batches = self.trainer.num_training_batches
        per_epoch = max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))
        scheduler.plan(int(total_steps), per_epoch, scale)
        if scheduler.num_warmup_steps >= total_steps:
            rank_zero_warn(
                f"The warm-up of {scheduler.num_warmup_steps} steps fills the whole training of"
                f" {int(total_steps)} steps: the learning rate never falls. Shorten it in"
                " model.lr_scheduler (warmup_epochs or warmup_steps)."
            )

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
        """Remember which classes the weights tell apart."""
        if self._class_names:
            checkpoint["class_names"] = self._class_names

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
            UserError: If names or shapes of the weights differ.
        """
        self._compare_classes(checkpoint.get("class_names", []))
        if self._trainer is not None:
            check_progress(checkpoint, self.trainer)
            self._saved_schedules = checkpoint.get("lr_schedulers") if self._is_fitting else None
            if self.trainer.strategy.restore_checkpoint_after_setup:
                self._check_schedules()
        if "state_dict" not in checkpoint:
            return  # a sharding strategy has checked and loaded it
        if "current_model_state" in checkpoint and self._is_fitting and not self._averaged:
            self.warn_of_lost_average()
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        self.check_fits(shapes_of(checkpoint["state_dict"]), shapes_of(self.state_dict()))
        if self._is_fitting:
            self.check_continues(checkpoint)
            groups = checkpoint["optimizer_states"][0]["param_groups"]
            self.check_group_sizes([len(group["params"]) for group in groups])
            self.check_moments(checkpoint["optimizer_states"])

    def on_fit_start(self) -> None:
        """Compare the schedules of the checkpoint with those of the run, which are made by now."""
        self._check_schedules()

    def _check_schedules(self) -> None:
        if self._saved_schedules is not None:
            schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            check_schedules(self._saved_schedules, schedules)
            self._saved_schedules = None

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

    @staticmethod
    def check_continues(checkpoint: Mapping[str, Any]) -> None:
        """Refuse to continue without the state of the optimizer, or without the progress.

        Raises:
            UserError: Says what to do instead.
        """
        if not checkpoint.get("optimizer_states"):
            raise UserError(
                "The checkpoint holds weights only, so training cannot go on from it; to start anew"
                " from its weights use model.init_args.weights instead of ckpt_path."
            )
        missing = [key for key in ("loops", "lr_schedulers") if key not in checkpoint]
        if missing:
            raise UserError(
                f"The checkpoint does not hold {missing[0]}, so training cannot go on from it; to"
                " start anew from its weights use model.init_args.weights instead of ckpt_path."
            )

    def check_moments(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Refuse optimizer state whose tensors do not have the shapes of the parameters.

        Args:
            states: One for each optimizer, by the number of the parameter.

        Raises:
            UserError: Names the first entry that does not fit.
        """
        if len(states) != 1:
            raise UserError(f"The checkpoint has {len(states)} optimizers, and training has one.")
        shapes = [p.shape for group in self.parameter_groups() for p in group["params"]]
        numbers = [n for group in states[0]["param_groups"] for n in group["params"]]
        places = dict(zip(numbers, shapes, strict=False))
        for number, values in states[0]["state"].items():
            for name, value in values.items():
                fits = not isinstance(value, Tensor) or value.shape in (places[number], Size(()))
                if not fits or (isinstance(value, Tensor) and value.dtype not in _MOMENTS):
                    raise UserError(
                        f"The optimizer state of the checkpoint does not fit: {name} of parameter"
                        f" {number} is {tuple(value.shape)} {value.dtype}, and the parameter is"
                        f" {tuple(places[number])}."
                    )

    @staticmethod
    def check_fits(saved: Mapping[str, Size], wanted: Mapping[str, Size]) -> None:
        """Refuse weights whose names or shapes are not those of the network.

        Raises:
            UserError: Says how they differ.
        """
        mismatch = describe_mismatch(saved, wanted)
        if mismatch:
            raise UserError(
                f"The checkpoint does not fit this network: {mismatch}. Use the config.yaml of the"
                " run that wrote it; to start another network from published weights use"
                " model.init_args.weights."
            )

    @staticmethod
    def warn_of_lost_average() -> None:
        """Say that a checkpoint with an average is continued without one."""
        rank_zero_warn(
            "The checkpoint has a moving average but the EMA callback is not used now: training"
            " goes on with the weights in training and the average is lost."
        )

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def check_group_sizes(self, saved: list[int]) -> None:
        """Refuse optimizer state of other parameter groups.

        Args:
            saved: Number of parameters in each group of the checkpoint.

        Raises:
            UserError: If the groups are others now.
        """
        now = [len(group["params"]) for group in self.parameter_groups()]
        if saved != now:
            raise UserError(
                f"The checkpoint groups the parameters for the optimizer as {saved}, these settings"
                f" as {now}. Keep layer_decay, dcn_lr_scale and frozen parts as they were, or start"
                " from the weights alone with model.init_args.weights."
            )

    def on_train_start(self) -> None:
        """Let the configuration decide where the checkpoint brought other optimizer settings."""
        if self.trainer.ckpt_path is None:
            return
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        own = [scheduler for scheduler in schedulers if isinstance(scheduler, StepSchedule)]
        if len(own) < len(schedulers):
            return  # a foreign schedule keeps its own state in the groups
        (optimizer,) = self.trainer.optimizers
        for group, settings in zip(optimizer.param_groups, self._group_settings, strict=True):
            group.update(settings, initial_lr=settings["lr"])
        for scheduler in own:
            scheduler.apply()


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
