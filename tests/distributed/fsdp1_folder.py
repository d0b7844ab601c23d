"""Write a checkpoint folder like Lightning's FSDPStrategy, with two ranks on the CPU.

Lightning's strategy needs GPUs, but PyTorch's FSDP does not. The full state, gathered by
FullyShardedDataParallel, is written next to the folder.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from src.models import InternImage
from src.models.internimage.blocks import Block


class Task(nn.Module):
    """Module with a network under the same name as in a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.network = InternImage(3, channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))


def gather(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Full optimizer state on rank 0, gathered entry by entry.

    On the CPU, PyTorch gathers all entries of a parameter into the same memory.
    """
    states = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    whole: dict[str, Any] = {}
    for key in ("step", "exp_avg", "exp_avg_sq"):
        for parameter, state in states.items():
            optimizer.state[parameter] = {key: state[key]}
        part = copy.deepcopy(FullyShardedDataParallel.optim_state_dict(module, optimizer))
        for name, state in part.get("state", {}).items():
            whole.setdefault("state", {}).setdefault(name, {}).update(state)
        whole["param_groups"] = part.get("param_groups")
    return whole


def write(rank: int, folder: Path) -> None:
    address = f"file://{folder.with_suffix('.meeting')}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    module = FullyShardedDataParallel(
        Task(),
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in module.named_parameters() if n.endswith("weight")]},
            {"params": [p for n, p in module.named_parameters() if not n.endswith("weight")]},
        ]
    )
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    sharded = (ShardedStateDictConfig(), ShardedOptimStateDictConfig())
    with FullyShardedDataParallel.state_dict_type(
        module, StateDictType.SHARDED_STATE_DICT, *sharded
    ):
        state = {"model": module.state_dict()}
        state["optimizer_0"] = FullyShardedDataParallel.optim_state_dict(module, optimizer)
    dcp.save(state, checkpoint_id=folder)
    whole = (FullStateDictConfig(rank0_only=True), FullOptimStateDictConfig(rank0_only=True))
    with FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, *whole):
        expected = {"model": module.state_dict()}
        expected["optimizer_0"] = gather(module, optimizer)
    if rank == 0:
        torch.save({"epoch": 3, "pytorch-lightning_version": "2.6.6"}, folder / "meta.pt")
        torch.save(expected, folder.with_suffix(".expected"))
    distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            write(number, Path(sys.argv[1]))
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
