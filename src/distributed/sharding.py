"""Sharding a network over processes (FSDP2), and moving whole tensors in and out of its shards.

PyTorch's ``fully_shard`` does the work: every parameter becomes a ``DTensor`` whose first dimension
is split over the processes; a unit is gathered for its forward and backward pass and freed after
it. Here stand the choices of this project: which modules are units, how a network that was made on
the meta device gets the start values it would have had on a real one, and how a whole tensor (of a
published file, say) is copied so that each process touches only its own part of it.

What is not here: Lightning (``src.strategies``), and FSDP1, whose wrapping is Lightning's own.
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
    """Split the parameters of a network over the processes of a mesh, in place.

    Each module of the types ``units`` is gathered by itself; the rest of the network (stem, norms
    between stages, neck and heads) is one further unit. Heads with branches that depend on the data
    must not be units: a process that skips one would leave the others waiting.

    Args:
        network: On the meta device or a real one.
        mesh: One-dimensional mesh of the processes that share the network.
        units: Types of the modules that are units, such as the backbone's block.
    """
    for module in network.modules():
        if isinstance(module, units):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Tell whether any parameter is split over processes."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def forwards_behind(network: nn.Module, own: int) -> int:
    """How many forward passes the busiest process makes beyond those of this one.

    All processes must call this, and then gather their shards equally often, or they would wait
    for each other for ever. Networks that are not split need no company: 0.
    """
    if not is_sharded(network):
        return 0
    parameter = next(p for p in network.parameters() if isinstance(p, DTensor))
    most = torch.tensor(own, device=parameter.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX, parameter.device_mesh.get_group())
    return int(most) - own


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shards(whole: Tensor, like: Tensor) -> Tensor:
    """Split a whole tensor as another one is, without communication.

    Args:
        whole: The same on all processes. Of a memory-mapped file only the part of this process is
            read.
        like: Tensor of the same (global) shape; a plain one leaves ``whole`` as it is.
    """
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a possibly split one, without communication."""
    local(target).copy_(local(as_shards(whole, target)))


@torch.no_grad()
def materialise(network: nn.Module, device: torch.device) -> None:
    """Give a network from the meta device its memory and its start values, module by module.

    One module at a time has whole parameters, so a process never needs more than its shards and the
    largest single layer. Random numbers are drawn in the order in which the constructors would have
    drawn them: with the same seed the values are those of a network made on the CPU.

    Args:
        network: On the meta device, sharded or not.
        device: Where it shall be.

    Raises:
        UserError: If a module owns tensors and cannot set their start values.
    """
    network.to_empty(device=device)
    for module in network.modules():
        owned = (*module._parameters.values(), *module._buffers.values())
        if all(tensor is None for tensor in owned):
            continue
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            raise UserError(
                f"A {type(module).__name__} cannot be made on the meta device: it owns tensors but "
                "has no reset_parameters() to set their start values. Use the strategy ddp."
            )
        with _whole_parameters(module):
            reset()


@contextmanager
def _whole_parameters(module: nn.Module) -> Iterator[None]:
    """Give a module whole parameters, and copy its own ones into their shards at the end.

    Its submodules have whole ones too, for modules that also reset those; they are thrown away,
    because the submodules have their turn afterwards. Memory that nobody writes to is not taken.
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
    """Copy parameters and buffers between two networks that are sharded alike."""
    for to, value in zip(tensors_of(target), tensors_of(source), strict=True):
        to.copy_(value)


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Give all processes the mean of their buffers (running statistics of batch norm).

    Only parameters are split and kept equal; each process updates buffers from its own images.
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
    """The parts of all parameters and buffers that this process holds, parameters first."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after an evaluation the outermost unit is still gathered
    everything: Iterable[Tensor] = (*network.parameters(), *network.buffers())
    return [local(tensor.detach()) for tensor in everything]


def load_whole(entries: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into the entries of a state dict, which may be split.

    Args:
        entries: What ``module.state_dict()`` returns, on a real device.
        tensors: Values by name; further entries keep theirs.
    """
    for name, whole in tensors.items():
        copy_whole(entries[name], whole)
