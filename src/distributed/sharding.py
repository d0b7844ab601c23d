"""Shard a network over ranks (FSDP2), and copy full tensors to and from its shards.

PyTorch's ``fully_shard`` turns every parameter into a ``DTensor`` whose first dimension is sharded
over the ranks; a unit is gathered for its forward and backward pass and resharded afterwards. This
module defines which modules are units, how a network built on the meta device is initialised with
the same values as on a real device, and how a full tensor (such as one of a checkpoint) is copied
so that each rank reads only its own shard.

The Lightning strategies are in ``src.strategies``; FSDP1 wrapping is done by Lightning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from src.errors import UserError


def shard(network: nn.Module, mesh: DeviceMesh, units: tuple[type[nn.Module], ...]) -> None:
    """Shard the parameters of a network over the ranks of a mesh, in place.

    Each module of the types ``units`` is an FSDP unit; the rest of the network (stem, norms between
    stages, neck and heads) is one further unit. Heads with data-dependent branches must not be
    units, because a rank that skips one would make the others wait forever.

    Args:
        network: Network on the meta device or a real device.
        mesh: One-dimensional mesh of ranks.
        units: Types of the modules that are units, such as the block of the backbone.
    """
    for module in network.modules():
        if isinstance(module, units):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether any parameter is sharded."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def forwards_behind(network: nn.Module, own: int) -> int:
    """Number of forward passes that this rank makes less than the rank with the most.

    All ranks of a sharded network must gather their shards equally often, or they would wait for
    each other forever. Must be called on all ranks; 0 for networks that are not sharded.
    """
    if not is_sharded(network):
        return 0
    parameter = next(p for p in network.parameters() if isinstance(p, DTensor))
    most = torch.tensor(own, device=parameter.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX, parameter.device_mesh.get_group())
    return int(most) - own


def local(tensor: Tensor) -> Tensor:
    """The local shard of a tensor; a plain tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shards(whole: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor like another one, without communication.

    Args:
        whole: Full tensor, the same on all ranks. If it is memory-mapped, each rank reads only its
            own shard.
        like: Tensor of the same (global) shape; if it is a plain tensor, ``whole`` is returned.
    """
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy a full tensor to a possibly sharded one, without communication."""
    local(target).copy_(local(as_shards(whole, target)))


@torch.no_grad()
def materialise(network: nn.Module, device: torch.device) -> None:
    """Allocate and initialise a network built on the meta device, module by module.

    Only one module at a time has full parameters, so a rank never needs more memory than its shards
    and the largest single layer. Random numbers are drawn in the same order as by the constructors,
    so with the same seed the values are those of a network built on the CPU.

    Args:
        network: Network on the meta device, sharded or not.
        device: Target device.

    Raises:
        UserError: If a module has tensors but cannot initialise them.
    """
    network.to_empty(device=device)
    for module in network.modules():
        owned = (*module._parameters.values(), *module._buffers.values())
        if all(tensor is None for tensor in owned):
            continue
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            raise UserError(
                f"A {type(module).__name__} cannot be built on the meta device: it has tensors but "
                "no reset_parameters() to initialise them. Use the strategy ddp."
            )
        with _whole_parameters(module):
            reset()


@contextmanager
def _whole_parameters(module: nn.Module) -> Iterator[None]:
    """Replace the parameters of a module by full ones, and copy them to the shards at the end.

    The submodules get full parameters too, because some modules also reset those; these values are
    discarded, because the submodules are initialised afterwards.
    """
    shards: list[tuple[nn.Module, str, nn.Parameter]] = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
    ]
    for owner, name, parameter in shards:
        whole = torch.empty(parameter.shape, dtype=torch.float32)
        owner._parameters[name] = nn.Parameter(whole, requires_grad=False)
    yield
    for owner, name, parameter in shards:
        value = owner._parameters[name]
        assert value is not None
        if owner is module:
            copy_whole(parameter, value)
        owner._parameters[name] = parameter


@torch.no_grad()
def copy_network(target: nn.Module, source: nn.Module) -> None:
    """Copy parameters and buffers between two networks with the same sharding."""
    for to, value in zip(tensors_of(target), tensors_of(source), strict=True):
        to.copy_(value)


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Average the buffers (running statistics of batch norm) over all ranks.

    FSDP2 shards only parameters; each rank updates its buffers from its own images.
    """
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    together = torch.cat([buffer.flatten().float() for buffer in buffers])
    distributed.all_reduce(together)
    together /= distributed.get_world_size()
    for buffer, mean in zip(buffers, together.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def tensors_of(network: nn.Module) -> list[Tensor]:
    """The local shards of all parameters and buffers, parameters first."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root unit is still gathered after evaluation
    everything: Iterable[Tensor] = (*network.parameters(), *network.buffers())
    return [local(tensor.detach()) for tensor in everything]


def load_whole(entries: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy full tensors to the entries of a possibly sharded state dict.

    Args:
        entries: Result of ``module.state_dict()``, on a real device.
        tensors: Values by name; other entries are not changed.
    """
    for name, whole in tensors.items():
        copy_whole(entries[name], whole)
