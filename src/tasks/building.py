"""Build the network (optionally sharded, with pretrained weights), loss and metrics of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import MetricCollection

from src.distributed import copy_network, materialise, shard
from src.errors import UserError
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.blocks import Block
from src.models.layers.compilation import Compilation, check_compiler, compile_parts
from src.models.weights import LoadReport, load_official
from src.tasks.class_names import class_names_of, compare_classes
from src.tasks.partial_training import Frozen, freeze

SHARDED_UNITS: tuple[type[nn.Module], ...] = (Block,)
"""Modules that sharding strategies gather one at a time."""


class BuildingHooks(LightningModule):
    """Part of `BaseTask` that builds the network, the loss and the metrics."""

    num_classes: int
    weights: str | None
    network_factory: Callable[..., nn.Module]
    compilation: Compilation | None
    frozen: Frozen
    lora: int | None
    network: nn.Module | None
    random_weights: tuple[str, ...]
    criterion: nn.Module
    metrics: nn.ModuleDict

    build_network: Callable[[], nn.Module]
    build_loss: Callable[[], nn.Module]
    build_metrics: Callable[[], MetricCollection]

    def configure_model(self) -> None:
        """Build network, loss and metrics once; Lightning calls this for every stage."""
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

    @property
    def training_network(self) -> nn.Module:
        """The network with the raw weights."""
        if self.network is None:
            raise RuntimeError("the network is built by configure_model(), which has not run yet")
        return self.network

    def make_network(self) -> nn.Module:
        """Build the randomly initialised network, sharded if there is a device mesh."""
        if self._device_mesh is None:
            return self._make()
        return make_in_shards(self._make, self._device_mesh, self.trainer.strategy)

    def copy_in_shards(self) -> nn.Module:
        """Build a second network with the weights and the sharding of the training network."""
        assert self._device_mesh is not None
        mesh, strategy = self._device_mesh, self.trainer.strategy
        return copy_in_shards(self.training_network, self._make, mesh, strategy)

    def load_weights(self, network: nn.Module) -> None:
        """Load `weights` into a network, and compare their classes with those of the data.

        Raises:
            UserError: If they do not match.
        """
        check_channels(network, getattr(self._trainer, "datamodule", None))
        if self.weights is None:
            return
        report = load_weights(network, self.weights, self._trainer)
        self.random_weights = random_weights(report)
        if report.class_names:
            self.compare_classes(list(report.class_names), report.source)

    def compare_classes(self, trained: list[str], *source: str) -> None:
        """Compare the classes of weights with those of the data; see `compare_classes`."""
        now = class_names_of(self._trainer)
        compare_classes(trained, now, *source, is_fitting=self._is_fitting)

    def network_arguments(self) -> dict[str, Any]:
        """Arguments that the factory of the network is called with."""
        return {"num_classes": self.num_classes}

    def _make(self) -> nn.Module:
        network = self.network_factory(**self.network_arguments())
        freeze(network, self.frozen)
        if self.compilation is not None:
            if self._trainer is not None:
                check_compiler(self._trainer.strategy.root_device.type)
            compile_parts(network, self.compilation)
        return network

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING


def load_weights(network: nn.Module, source: str, trainer: Trainer | None) -> LoadReport:
    """Load pretrained weights.

    Args:
        network: Loaded in place.
        source: File or hub name.
        trainer: If given, complete weights are reported with a line, and in evaluation missing ones
            with a warning.

    Returns:
        Report of what was loaded.

    Raises:
        UserError: If the file cannot be found or read, or does not match.
    """
    report = load_official(network, source)
    if trainer is not None and not (report.fresh or report.unused or report.notes):
        rank_zero_only(print)(f"Weights:     {source}, all {len(report.loaded)} tensors fit")
    random = random_weights(report)
    if random and trainer and trainer.state.fn not in (None, TrainerFn.FITTING):
        rank_zero_warn(
            f"{len(random)} weights of the network are not in {report.source} and are randomly"
            f" initialised (first: {random[0]}), so the results are meaningless. Set"
            " data.class_names to the classes that the weights were trained with, or train first."
        )
    return report


def random_weights(report: LoadReport) -> tuple[str, ...]:
    """Names of the weights that stay randomly initialised and are used in evaluation."""
    return tuple(name for name in report.fresh if not name.startswith("auxiliary_head."))


def check_channels(network: nn.Module, data: Any) -> None:
    """Check that the network has the number of input channels of the data module.

    Raises:
        UserError: If the number of channels differs.
    """
    read = getattr(data, "image_channels", None)
    backbones = (m for m in network.modules() if isinstance(m, InternImageBackbone))
    expected = next((m.patch_embed.conv1.in_channels for m in backbones), read)
    if read is not None and expected != read:
        raise UserError(
            f"in_chans of the network is {expected}, but images are read with {read} channels (RGB;"
            f" greyscale images are converted). Set in_chans to {read}, or use your own data module"
            " with another image_channels."
        )


def make_in_shards(make: Callable[[], nn.Module], mesh: DeviceMesh, strategy: Any) -> nn.Module:
    """Build a randomly initialised network, sharded over the ranks of a mesh."""
    network = _in_shards(make, mesh, strategy)
    materialise(network, strategy.root_device)
    return network


def copy_in_shards(
    network: nn.Module, make: Callable[[], nn.Module], mesh: DeviceMesh, strategy: Any
) -> nn.Module:
    """Build a second network with the weights and the sharding of ``network``."""
    copy = _in_shards(make, mesh, strategy)
    copy.to_empty(device=strategy.root_device)
    copy_network(copy, network)
    return copy


def _in_shards(make: Callable[[], nn.Module], mesh: DeviceMesh, strategy: Any) -> nn.Module:
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "Tensor parallelism is not supported; use --trainer.strategy fsdp2, which shards"
            " networks over all ranks."
        )
    layer_sync = getattr(strategy, "_layer_sync", None)
    with torch.device("meta"):
        network = make()
        # Lightning ignores `trainer.sync_batchnorm` for sharded networks.
        network = network if layer_sync is None else layer_sync.apply(network)
    shard(network, mesh["data_parallel"], SHARDED_UNITS)
    return network
