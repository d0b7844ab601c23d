"""A float32 run in which each step starts from the values of a float64 run.

Float32 moves the values inside a network by some 1e-6. Where a function has a step (the sign of a
ReLU input, the cell of a sampling location, the order of two scores) one such value changes
gradients, or which boxes are found, by far more than rounding, and which value it is depends on the
processor. So the result of every layer of the float32 run is replaced by that of the float64 run,
rounded to float32, before the next layer sees it; gradients pass unchanged. Both runs then decide
alike, and each layer is compared by itself, forward and backward.

Layers are calls of PyTorch's functions. Kernels that replace these in float32 are not used;
``tests/ops/test_cpu_norm.py`` compares networks with and without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from src.ops import fused

LAYERS = {
    F.linear,
    F.conv2d,
    F.conv_transpose2d,
    F.layer_norm,
    F.group_norm,
    F.batch_norm,
    F.scaled_dot_product_attention,
    torch.einsum,
}


@dataclass
class Steps:
    """Results of the layers, and the boxes that each second stage learns from, in their order."""

    results: list[Tensor] = field(default_factory=list)
    samples: list[Any] = field(default_factory=list)


@contextmanager
def steps_of(network: nn.Module) -> Iterator[Steps]:
    """Collect the steps of what runs within."""
    made = Steps()

    def keep(result: Tensor) -> Tensor:
        made.results.append(result.detach().clone())
        return result

    def choose(region: Any, *given: Any) -> Any:
        made.samples.append(region(*given))
        return made.samples[-1]

    with _each_sample(network, choose), _pytorch_functions(), _EachLayer(keep):
        yield made


@contextmanager
def from_steps(network: nn.Module, steps: Steps, share: float) -> Iterator[None]:
    """Give what runs within the steps of another run, and check that its own agree.

    Args:
        network: The network that runs within.
        steps: Of a run on the same input.
        share: How far the result of one layer may be off, as a share of its largest value;
            infinite to leave the layers uncompared.
    """
    results, samples = iter(steps.results), iter(steps.samples)

    def follow(result: Tensor) -> Tensor:
        exact = next(results)
        assert result.shape == exact.shape, "the runs have different layers"
        if exact.numel() and not math.isinf(share):
            distance, largest = (result.detach() - exact).abs().max(), exact.abs().max()
            assert distance <= share * largest, f"one layer is off by {distance} of {largest}"
        return _Replace.apply(result, exact)

    def choose(region: Any, proposals: Tensor, target: Any) -> Any:
        sample = next(samples)
        return replace(sample, boxes=sample.boxes.to(proposals))

    with _each_sample(network, choose), _pytorch_functions(), _EachLayer(follow):
        yield
    assert next(results, None) is None, "fewer layers than steps"
    assert next(samples, None) is None, "fewer samples than steps"


def run_in_steps(run: Callable[[Any], Any], network: Any, exact: Any, share: float) -> Any:
    """Result of ``run(network)`` with the steps of ``run(exact)``, if these are two networks.

    Args:
        run: What to do with a network.
        network: A network of float32.
        exact: The same one of float64.
        share: See `from_steps`.
    """
    if network is exact:
        return run(exact)
    with torch.no_grad(), steps_of(exact) as steps:
        run(exact)
    with from_steps(network, steps, share):
        return run(network)


class _Replace(torch.autograd.Function):
    """The values of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, exact: Tensor) -> Tensor:
        return exact.to(value.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _pytorch_functions() -> Any:
    return patch.object(fused, "is_eager", lambda: False)


@contextmanager
def _each_sample(network: nn.Module, choose: Callable[..., Any]) -> Iterator[None]:
    head = getattr(network, "roi_head", None)
    if head is None:
        yield
        return
    own = head.regions
    head.regions = tuple(lambda *given, region=region: choose(region, *given) for region in own)
    try:
        yield
    finally:
        head.regions = own


class _EachLayer(TorchFunctionMode):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **kwargs or {})
        return self.change(result) if func in LAYERS else result
