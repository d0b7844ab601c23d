"""Making the network of a task: whole or in shards, with initial or published weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from src.distributed import copy_network, materialise, shard
from src.errors import UserError
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.blocks import Block
from src.models.weights import LoadReport, load_official

SHARDED_UNITS: tuple[type[nn.Module], ...] = (Block,)
"""Modules that sharding strategies gather one at a time."""


def load_weights(network: nn.Module, source: str, trainer: Trainer | None) -> LoadReport:
    """Load published or own weights.

    Args:
        network: Loaded in place.
        source: File or hub name.
        trainer: What they are for; an evaluation warns of weights that the file does not have.

    Returns:
        What was loaded, what was not.

    Raises:
        UserError: If the file cannot be found or read, or does not fit.
    """
    report = load_official(network, source)
    random = random_weights(report)
    if random and trainer and trainer.state.fn not in (None, TrainerFn.FITTING):
        rank_zero_warn(
            f"{len(random)} weights of the network are not in {report.source} and have random"
            f" values (first: {random[0]}), so the results mean nothing. Give the classes that"
            " the weights were trained with (data.class_names), or fit first."
        )
    return report


def random_weights(report: LoadReport) -> tuple[str, ...]:
    """Names of the weights that keep their initial values and matter in evaluation."""
    return tuple(name for name in report.fresh if not name.startswith("auxiliary_head."))


def check_channels(network: nn.Module, data: Any) -> None:
    """Refuse a network for other images than those of a data module.

    Raises:
        UserError: If the number of channels differs.
    """
    read = getattr(data, "image_channels", None)
    backbones = (m for m in network.modules() if isinstance(m, InternImageBackbone))
    expected = next((m.patch_embed.conv1.in_channels for m in backbones), read)
    if read is not None and expected != read:
        raise UserError(
            f"in_chans of the network is {expected}, but images are read with {read} channels (RGB;"
            f" grey ones as three equal channels). Set in_chans to {read}, or give a data module of"
            " your own whose image_channels says what it reads."
        )


def make_in_shards(make: Callable[[], nn.Module], mesh: DeviceMesh, strategy: Any) -> nn.Module:
    """Make a network with initial values, split over the ranks of a mesh."""
    network = _in_shards(make, mesh, strategy)
    materialise(network, strategy.root_device)
    return network


def copy_in_shards(
    network: nn.Module, make: Callable[[], nn.Module], mesh: DeviceMesh, strategy: Any
) -> nn.Module:
    """Make a second network, split and valued like ``network``."""
    copy = _in_shards(make, mesh, strategy)
    copy.to_empty(device=strategy.root_device)
    copy_network(copy, network)
    return copy


def _in_shards(make: Callable[[], nn.Module], mesh: DeviceMesh, strategy: Any) -> nn.Module:
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "The networks are not made for tensor parallelism; use --trainer.strategy fsdp2,"
            " which splits them over all processes."
        )
    layer_sync = getattr(strategy, "_layer_sync", None)
    with torch.device("meta"):
        network = make()
        # Lightning leaves `trainer.sync_batchnorm` out for sharded networks.
        network = network if layer_sync is None else layer_sync.apply(network)
    shard(network, mesh["data_parallel"], SHARDED_UNITS)
    return network
