"""Memory of a training step, measured on the meta device.

Tensors of the meta device have shapes and no data. Every storage is counted from its allocation to
its release, so the result includes what autograd saves, what activation checkpointing recomputes
and the temporary tensors of operations, in the precision of the training. It does not include
fragmentation, the workspace of libraries, the CUDA context and the input images of the loader.

Detectors choose boxes by values, which the meta device does not have. A network that does so has a
method ``dense_outputs()`` (see `Detector.dense_outputs`); its losses are left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from src.models.image_text import TextTower
from src.models.internimage.blocks import Block
from src.models.layers import precision as layer_precision

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step without parameters and optimizer state, for one batch.

    Attributes:
        moments: Pairs of bytes: gradients of parameters, and the maximum of all other memory at
            that time.
        gradients: Bytes of all gradients.
        operations: Floating-point operations of convolutions and matrix products, forward and
            backward; a multiply-accumulate is two.
    """

    moments: tuple[tuple[int, int], ...]
    gradients: int
    operations: int

    def peak(self, gradient_share: float = 1.0, *, accumulates: bool = False) -> int:
        """Most bytes at any time.

        Args:
            gradient_share: Part of each gradient that this rank keeps.
            accumulates: Whether all gradients exist from the start, as in gradient accumulation
                after the first batch.
        """
        if accumulates:
            return int(gradient_share * self.gradients) + max(rest for _, rest in self.moments)
        return max(int(gradient_share * grads) + rest for grads, rest in self.moments)


def extrapolate(two: StepMemory, three: StepMemory, batch: int) -> StepMemory:
    """Memory of a step with any batch, from those with two and with three images.

    At any moment of the backward pass, memory grows linearly with the batch; which moment is the
    peak depends on the batch. A single image is not measured because batch norm may refuse it.
    """
    later = dict(three.moments)
    moments = tuple(
        (grads, rest + (batch - 2) * (later[grads] - rest))
        for grads, rest in two.moments
        if grads in later
    )
    operations = two.operations + (batch - 2) * (three.operations - two.operations)
    return StepMemory(moments, two.gradients, operations)


def measure_step(
    make: Callable[[], nn.Module],
    size: tuple[int, int],
    batch: int,
    *,
    precision: str = "32-true",
    checkpointing: bool | None = None,
) -> StepMemory:
    """Measure one forward and backward pass.

    Args:
        make: Makes the network.
        size: Height and width of the images, multiples of 32.
        batch: Images.
        precision: As Lightning's ``precision``.
        checkpointing: Whether blocks use activation checkpointing; ``None`` keeps the setting.
    """
    dtype = torch.bfloat16 if precision.endswith("16-true") else torch.float32
    with torch.device("meta"):
        network = make().to(dtype).train()
        image = torch.empty(batch, 3, *size, dtype=dtype)
    modules: Iterable[Any] = network.modules()
    for module in modules if checkpointing is not None else ():
        if hasattr(module, "set_grad_checkpointing"):
            module.set_grad_checkpointing(checkpointing)
    tracker = _Tracker([image, *network.parameters(), *network.buffers()])
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(tracker.take_gradient)
    is_mixed = precision.endswith("mixed")
    if is_mixed:
        for block in _recomputed(network):
            block.forward = _in_autocast(block.forward)
    with tracker:
        with _Autocast() if is_mixed else nullcontext():
            loss = torch.stack([out.float().sum() for out in outputs_of(network, image)]).sum()
        loss.backward()
    return StepMemory(tuple(tracker.moments.items()), tracker.gradients, tracker.operations)


def outputs_of(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Outputs of a network that its losses are computed from."""
    dense_outputs = getattr(network, "dense_outputs", None)
    if dense_outputs is not None:
        return list(dense_outputs(image))
    return [out for out in tree_leaves(network(image)) if out.requires_grad]


def omitted_part(network: nn.Module) -> str:
    """Part of a network, such as ``head``, that is not measured; empty if there is none."""
    return str(getattr(network, "not_in_dense_outputs", ""))


class _Autocast(TorchFunctionMode):
    """Autocast of CUDA for the meta device, which has none."""

    LOW = ("linear", "conv2d", "conv_transpose2d", "matmul", "bmm", "scaled_dot_product_attention")
    FULL = ("layer_norm", "softmax", "log_softmax", "cross_entropy")

    def __enter__(self) -> Self:
        """Also set the autocast dtype for layers that ask for it."""
        layer_precision.autocast_dtype_of_meta = torch.bfloat16
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        layer_precision.autocast_dtype_of_meta = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        dtypes = dict.fromkeys(self.LOW, torch.bfloat16) | dict.fromkeys(self.FULL, torch.float32)
        if name in dtypes:
            args, kwargs = tree_map(partial(_cast, dtype=dtypes[name]), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _recomputed(network: nn.Module) -> Iterator[nn.Module]:
    """Modules that activation checkpointing computes again."""
    for module in network.modules():
        if isinstance(module, Block):
            yield module
        elif isinstance(module, TextTower):
            yield from module.layers


def _in_autocast(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Autocast within a block, whose recomputation in the backward pass has no function modes."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with _Autocast():
            return forward(*args, **kwargs)

    return call


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def _convolution_backward(
    gradient: Tensor, image: Tensor, weight: Tensor, *settings: Any, output_mask: Any = None
) -> int:
    """Operations of the gradients of a convolution; PyTorch's count ignores groups."""
    transposed, asked = settings[4], output_mask or settings[-1]
    positions = image if transposed else gradient
    return 2 * int(positions.numel()) * int(weight[0].numel()) * sum(asked[:2])


class _Tracker(TorchDispatchMode):
    """Sum of the live storages, without the ignored ones and the gradients of parameters."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.gradients = self.operations = 0
        self.moments: dict[int, int] = {}
        self.known: dict[int, Any] = {}
        self.taken: set[int] = set()
        for tensor in ignored:
            storage = tensor.untyped_storage()
            self.known[storage._cdata] = storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        if func._overloadpacket is torch.ops.aten.convolution_backward:
            self.operations += _convolution_backward(*args, **(kwargs or {}))
        elif func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        return out

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, partial(self._end, key, size))
        self.live += size
        self.moments[self.gradients] = max(self.moments.get(self.gradients, 0), self.live)

    def _end(self, key: int, size: int, _: object) -> None:
        self.known.pop(key, None)
        self.live -= size

    def take_gradient(self, parameter: Tensor) -> None:
        """Count a finished gradient as such; several can share a storage."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if storage._cdata in self.taken:
            return
        self.taken.add(storage._cdata)
        if storage._cdata in self.known:
            self.live -= storage.nbytes()
        self.known[storage._cdata] = storage
        self.gradients += storage.nbytes()
