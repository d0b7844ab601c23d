"""Batch norm in place of LayerNorm: the argument ``norm_layer``."""

import pytest
import torch
from torch import nn

from src.errors import UserError
from src.models import InternImage, InternImageBackbone, prepare_for_inference
from src.models.internimage.blocks import Block
from src.models.layers.norm import LayerNorm


def make(**options):
    torch.manual_seed(0)
    return InternImage(4, channels=16, depths=[1, 1], groups=[2, 4], norm_layer="BN", **options)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("core_op", ["DCNv3", "DCNv4"])
def test_every_norm_of_the_backbone(core_op):
    norms = [m for m in make(core_op=core_op).modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in make(core_op=core_op).modules() if isinstance(m, LayerNorm)]
    of_mixers = 2 if core_op == "DCNv3" else 0
    assert len(norms) == 2 + 1 + 2 * (2 + 1) + of_mixers + 1  # stem, downsampling, stages, head
    assert not others


def test_normalises_each_channel_over_images_and_positions(images):
    """In training; in evaluation, the result for an image does not depend on the others."""
    network = InternImageBackbone(
        channels=16, depths=[1, 1], groups=[2, 4], norm_layer="BN", drop_path_rate=0.0
    )
    for feature in network.train()(images):
        torch.testing.assert_close(feature.mean((0, 2, 3)), torch.zeros(feature.shape[1]))
        variance = feature.var((0, 2, 3), correction=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-2, atol=1e-2)
    network.eval()
    for alone, together in zip(network(images[:1]), network(images), strict=True):
        torch.testing.assert_close(alone, together[:1])


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_bfloat16(images, as_on_a_gpu, monkeypatch):
    """On a GPU, a block casts its parameters together, but not those of batch norm."""
    network = make()
    if as_on_a_gpu:
        casts_together = Block._casts_together
        monkeypatch.setattr(Block, "_casts_together", lambda self, _: casts_together(self, "cuda"))
    with torch.autocast("cpu", torch.bfloat16):
        features = network.forward_stages(images)
        network(images).float().square().sum().backward()
    assert {feature.dtype for feature in features} == {torch.bfloat16}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_synchronised_over_ranks(images):
    """`sync_batchnorm` of the trainer converts the layers; the results are the same."""
    network = make().eval()
    expected = network(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())
    torch.testing.assert_close(converted(images), expected)


def test_errors(images):
    with pytest.raises(UserError, match="norm_layer must be 'LN' or 'BN', got 'GN'"):
        InternImageBackbone("internimage_nano", norm_layer="GN")
    with pytest.raises(UserError, match="one image whose last feature map is 1 x 1"):
        make()(images[:1, :, :8, :8])
    with pytest.raises(UserError, match="no stage of an InternImage with DCNv3 and LayerNorm"):
        prepare_for_inference(make().eval())
