"""Blocks of InternImage as one operator."""

import pytest
import torch
from torch import nn

from src.models.internimage.blocks import Block, BlockOptions
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.fused_block import FusedBlock, can_fuse
from src.ops.cpu_block import is_available

needs_kernel = pytest.mark.skipif(
    not is_available(torch.float32), reason="this CPU or build has no kernel of a block"
)
needs_bfloat16 = pytest.mark.skipif(
    not is_available(torch.bfloat16), reason="this CPU or build has no bfloat16 kernel of a block"
)


def make(channels=32, groups=2, mlp_ratio=4.0, **options):
    torch.manual_seed(0)
    names = ("kernel_size", "dw_kernel_size", "offset_scale", "center_feature_scale")
    mixer = DCNv3(channels, groups, **{n: options.pop(n) for n in names if n in options})
    block = Block(channels, mixer, BlockOptions(mlp_ratio=mlp_ratio, **options)).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter.data, float(parameter.mean() == 1), 0.2)
    return block


@needs_kernel
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_scale": 0.5},
        {"layer_scale": 0.5, "post_norm": True},
        {"res_post_norm": True, "center_feature_scale": True},
        {"channels": 48, "groups": 4, "mlp_ratio": 1.0},
        {"channels": 80, "groups": 5, "kernel_size": 5, "dw_kernel_size": 7},
        {"channels": 16, "groups": 1, "offset_scale": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 7, 9), (1, 16, 15)], ids=str)
@torch.no_grad()
def test_same_values_as_the_layers(options, size):
    block = make(**options)
    x = torch.randn(*size, block.dcn.channels)
    out = FusedBlock(block, torch.float32)(x)
    torch.testing.assert_close(out, block(x), rtol=1e-4, atol=1e-4)


@needs_bfloat16
@torch.no_grad()
def test_bfloat16():
    block = make(channels=48, groups=3, center_feature_scale=True)
    x = torch.randn(2, 7, 9, 48).bfloat16()
    exact = block(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = block(x).float()
    out = FusedBlock(block, torch.bfloat16)(x).float()
    assert (out - exact).norm() <= (cast - exact).norm()


@needs_kernel
@torch.no_grad()
def test_independent_of_threads_and_of_other_images():
    block = FusedBlock(make(), torch.float32)
    x = torch.randn(3, 13, 11, 32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = block(x)
        torch.set_num_threads(3)
        assert torch.equal(block(x), expected)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(block(x[1:2].contiguous()), expected[1:2])


@needs_kernel
@torch.no_grad()
def test_large_and_missing_values():
    block = make()
    x = torch.randn(1, 4, 4, 32)
    x[0, 0, 0] = torch.inf
    x[0, 3, 3, 0] = torch.nan
    out, expected = FusedBlock(block, torch.float32)(x), block(x)
    assert torch.equal(out.isfinite(), expected.isfinite())


def test_what_has_no_kernel():
    assert not can_fuse(make(channels=24, groups=1), torch.float32)  # not a multiple of 16
    assert not can_fuse(make(), torch.float16)
