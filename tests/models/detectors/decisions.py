"""Decisions of a two-stage detector in training, so that two runs of it can share them.

Float32 moves boxes by some 1e-4 pixels, and of millions of inputs of ReLUs a few change their sign.
Each of these is a step in the gradients, however exact the arithmetic is.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@dataclass
class Decisions:
    """Where the inputs of each ReLU are positive, and the boxes that each head learns from."""

    positive: list = field(default_factory=list)
    samples: list = field(default_factory=list)


@contextmanager
def decisions_of(network):
    """Collect the decisions of what runs within."""
    made = Decisions()

    def relu(x):
        made.positive.append(x.detach() > 0)
        return x.relu()

    def choose(region, proposals, target):
        made.samples.append(region(proposals, target))
        return made.samples[-1]

    with _decide(network, relu, choose):
        yield made


@contextmanager
def decided(network, decisions):
    """What runs within takes these decisions, in their order, instead of its own.

    Yields a list with the share of inputs of each ReLU whose own sign is another one.
    """
    positive, samples = iter(decisions.positive), iter(decisions.samples)
    changed = []

    def relu(x):
        is_positive = next(positive)
        changed.append(float((is_positive != (x > 0)).double().mean()))
        return x * is_positive

    def choose(region, proposals, target):
        sample = next(samples)
        return replace(sample, boxes=sample.boxes.to(proposals))

    with _decide(network, relu, choose):
        yield changed
    assert next(positive, None) is None, "fewer ReLUs than decisions"
    assert next(samples, None) is None, "fewer samples than decisions"


@contextmanager
def _decide(network, relu, choose):
    head, own = network.roi_head, network.roi_head.regions
    regions = own if isinstance(own, tuple) else (own,)
    instead = tuple(lambda *given, region=region: choose(region, *given) for region in regions)
    head.regions = instead if isinstance(own, tuple) else instead[0]
    try:
        with _InsteadOfReLU(relu):
            yield
    finally:
        head.regions = own


class _InsteadOfReLU(TorchFunctionMode):
    def __init__(self, relu):
        super().__init__()
        self.relu = relu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.relu(args[0]) if func is F.relu else func(*args, **kwargs or {})
