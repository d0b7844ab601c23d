"""Load networks and optimizers sharded by FSDP1 from data read by ``src.serialization``.

Lightning's own strategy would unpickle the metadata of a checkpoint folder and checkpoint files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.distributed.checkpoint.optimizer import load_sharded_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.optim import Optimizer

from src.serialization import Folder, check_optimizer_groups
from src.serialization.parallel import RestrictedReader


def load_folder(module: nn.Module, optimizers: Sequence[Optimizer], folder: Folder) -> None:
    """Load weights and optimizer state from a sharded checkpoint; each rank reads its shard.

    Args:
        module: The wrapped network.
        optimizers: Its optimizers; empty for evaluation.
        folder: Checkpoint folder written with FSDP1.
    """
    reader = RestrictedReader(folder)
    with FullyShardedDataParallel.state_dict_type(
        module,
        StateDictType.SHARDED_STATE_DICT,
        ShardedStateDictConfig(offload_to_cpu=True),
        ShardedOptimStateDictConfig(offload_to_cpu=True),
    ):
        parts = {"model": module.state_dict()}
        load(parts, storage_reader=reader)
        module.load_state_dict(parts["model"])
        for number, optimizer in enumerate(optimizers):
            key = f"optimizer_{number}"
            found = load_sharded_optimizer_state_dict(parts["model"], key, reader)[key]
            check_optimizer_groups(found, folder.path)
            state = FullyShardedDataParallel.optim_state_dict_to_load(module, optimizer, found)
            optimizer.load_state_dict(state)


def load_optimizers(
    module: nn.Module, optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]
) -> None:
    """Load full optimizer states from a checkpoint file; each rank keeps its shard.

    Args:
        module: The wrapped network.
        optimizers: Its optimizers.
        states: State of each optimizer, by parameter index or name.
    """
    with FullyShardedDataParallel.state_dict_type(
        module,
        StateDictType.FULL_STATE_DICT,
        FullStateDictConfig(offload_to_cpu=True, rank0_only=False),
        FullOptimStateDictConfig(offload_to_cpu=True, rank0_only=False),
    ):
        for optimizer, whole in zip(optimizers, states, strict=True):
            state: dict[str, Any] = dict(whole)
            if all(isinstance(key, int) for key in state["state"]):
                state = FullyShardedDataParallel.rekey_optim_state_dict(
                    state, OptimStateKeyType.PARAM_NAME, module
                )
            optimizer.load_state_dict(
                FullyShardedDataParallel.optim_state_dict_to_load(module, optimizer, state)
            )
