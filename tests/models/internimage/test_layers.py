"""The MLP of a block with layers that were replaced."""

import pytest
import torch
from torch import nn

from src.models.internimage.layers import MLP


def with_activation(mlp):
    mlp.act = nn.Tanh()


def with_forward_of_the_instance(mlp):
    mlp.fc1.forward = lambda x: 2 * nn.functional.linear(x, mlp.fc1.weight, mlp.fc1.bias)


def with_subclass(mlp):
    base = type(mlp.fc1)
    mlp.fc1.__class__ = type("Doubling", (base,), {"forward": lambda m, x: 2 * base.forward(m, x)})


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(
    "change",
    [with_activation, with_forward_of_the_instance, with_subclass],
    ids=lambda f: f.__name__,
)
def test_replaced_layers_are_called(change, autocast, grad):
    torch.manual_seed(0)
    mlp, x = MLP(16, 32), torch.randn(4, 16)
    nn.init.normal_(mlp.fc1.weight)
    nn.init.normal_(mlp.fc2.weight)
    before = mlp(x)
    change(mlp)
    hidden = mlp.act(mlp.fc1(x))
    expected = nn.functional.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = mlp(x)
    tolerance = 0.1 if autocast else 1e-5
    assert (found - expected).norm() <= tolerance * expected.norm()
    assert (before - expected).norm() > 2 * tolerance * expected.norm()
