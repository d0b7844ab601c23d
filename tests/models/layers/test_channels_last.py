"""Convolution of channels-last feature maps, eager and in compiled code."""

from functools import partial

import pytest
import torch
from torch import nn

from src.models.layers.channels_last import conv_nhwc

compile_ = partial(torch.compile, fullgraph=True, backend="aot_eager")


def results(function, conv, x):
    """Output and gradients."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    out = function(conv, x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in conv.parameters())]


@pytest.mark.parametrize(
    "arguments",
    [{"padding": 1, "groups": 8}, {"padding": 1, "stride": 2}, {"padding": 1, "bias": False}],
    ids=["depthwise", "strided", "no bias"],
)
def test_compiled_is_the_same(arguments):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, **arguments)
    x = torch.randn(2, 6, 7, 8)
    compiled = results(compile_(conv_nhwc), conv, x)
    torch.testing.assert_close(compiled, results(conv_nhwc, conv, x))
    torch.testing.assert_close(compiled[0], conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("function", [conv_nhwc, compile_(conv_nhwc)], ids=["eager", "compiled"])
def test_output_and_gradient_are_contiguous(function):
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    out, gradient, *_ = results(function, conv, torch.randn(2, 6, 7, 8))
    assert out.is_contiguous()
    assert gradient.is_contiguous()


def test_compiled_under_autocast():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(1, 5, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        compiled, eager = compile_(conv_nhwc)(conv, x), conv_nhwc(conv, x)
    assert compiled.dtype == eager.dtype == torch.bfloat16
    torch.testing.assert_close(compiled, eager)


def test_operators():
    x, weight = torch.randn(2, 5, 6, 4), torch.randn(4, 1, 3, 3)
    arguments = x.requires_grad_(), weight.requires_grad_(), None, (1, 1), (1, 1), 4
    torch.library.opcheck(torch.ops.internimage.conv_nhwc.default, arguments)
