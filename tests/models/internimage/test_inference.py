"""Copies of networks for inference with packed weights."""

import pytest
import torch
from torch import nn

from src.errors import UserError
from src.models import InternImage, prepare_for_inference
from src.models.internimage import inference, packed_block, packed_conv, parts
from src.models.layers.linear import Linear

SMALL = {"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
VARIANTS = [
    {},
    {"layer_scale": 0.5},
    {"layer_scale": 0.5, "post_norm": True},
    {"post_norm": True},
    {"res_post_norm": True, "center_feature_scale": True, "dw_kernel_size": 5},
    {"level2_post_norm_block_ids": (0,), "remove_center": True, "offset_scale": 2.0},
]


def make(**options):
    """A network whose offsets, masks and gates are not zero."""
    torch.manual_seed(0)
    network = InternImage(10, **SMALL, **options).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter.data, float(parameter.mean() == 1), 0.2)
    return network


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(3, 3, 64, 96)


@pytest.fixture(params=[True, False], ids=["fused", "layers"])
def fused(request, monkeypatch):
    """Whether blocks run as one operator, where there is one, or layer by layer."""
    if not request.param:
        monkeypatch.setattr(inference, "can_fuse", lambda block, dtype: False)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("part", [1, 2**22])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_same_values(options, part, images, monkeypatch):
    monkeypatch.setattr(parts, "PART", part)
    network = make(**options)
    expected = network.forward_intermediates(images, intermediates_only=True)
    features = prepare_for_inference(network).forward_intermediates(images, intermediates_only=True)
    for have, want in zip(features, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_bfloat16_is_as_accurate_as_autocast(options, images):
    network = make(**options)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(images).float()
        prepared = prepare_for_inference(network, torch.bfloat16)(images).float()
    assert (prepared - exact).norm() <= 1.5 * (cast - exact).norm()


@torch.no_grad()
def test_without_packed_products(images, monkeypatch):
    for module in (packed_block, packed_conv):
        monkeypatch.setattr(module, "can_pack", lambda dtype: False)
    monkeypatch.setattr(inference, "can_fuse", lambda block, dtype: False)
    network = make()
    out = prepare_for_inference(network)(images)
    torch.testing.assert_close(out, network(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_copy_keeps_its_weights(images):
    network = make()
    prepared = prepare_for_inference(network)
    before = prepared(images)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert torch.equal(prepared(images), before)
    assert not torch.equal(network(images), before)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda network, images: network.train(), "cannot be trained"),
        (lambda network, images: network.half(), "cannot be moved to another device or dtype"),
        (lambda network, images: network.state_dict(), "cannot be saved"),
        (lambda network, images: network(images), r"torch\.no_grad"),
        (lambda network, images: network(images[:, :2]), "expects 3 image channels"),
    ],
)
def test_what_a_copy_refuses(use, message, images):
    prepared = prepare_for_inference(make())
    with torch.set_grad_enabled("no_grad" in message), pytest.raises(UserError, match=message):
        use(prepared, images)


@torch.no_grad()
def test_another_precision(images):
    prepared = prepare_for_inference(make(), torch.bfloat16)
    with pytest.raises(UserError, match=r"prepared for inference in torch\.bfloat16"):
        prepared(images)


class Doubling(Linear):
    """A layer with a forward pass of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Adapted(nn.Module):
    """A layer around another one, whose attributes it shows."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.update = layer, nn.Linear(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.out_features = layer.out_features

    def forward(self, x):
        return self.layer(x) + self.update(x)


def adapt(network):
    mlp = network.levels[0].blocks[0].mlp
    mlp.fc1 = Adapted(mlp.fc1)


def double(network):
    network.levels[0].blocks[0].mlp.fc1.__class__ = Doubling


def double_by_instance(network):
    layer = network.levels[0].blocks[0].mlp.fc1
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)


def dilate(network):
    conv = network.levels[0].downsample.conv
    conv.dilation = conv.padding = (2, 2)


CHANGES = {
    "adapter": adapt,
    "subclass": double,
    "forward of an instance": double_by_instance,
    "activation": lambda n: setattr(n.levels[0].blocks[0].mlp, "act", nn.ReLU()),
    "activation of the stem": lambda n: setattr(n.patch_embed, "act", nn.ReLU()),
    "dilation": dilate,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_layers_of_others_are_called(change, images):
    network = make()
    before = network(images)
    change(network)
    network.eval()
    expected = network(images)
    assert not torch.allclose(expected, before, rtol=1e-3)
    torch.testing.assert_close(
        prepare_for_inference(network)(images), expected, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_packed_weights_of_the_network_are_freed(images):
    network = make()
    network(images)
    prepare_for_inference(network)
    assert not any(stage._cache._entries for stage in network.levels)


def test_what_cannot_be_prepared():
    with pytest.raises(UserError, match="call eval"):
        prepare_for_inference(make().train())
    with pytest.raises(UserError, match="float32 parameters"):
        prepare_for_inference(make().double())
    with pytest.raises(UserError, match="no stage of an InternImage with DCNv3"):
        prepare_for_inference(nn.Linear(2, 2).eval())
    with pytest.raises(UserError, match=r"float32 and bfloat16, got torch\.float16"):
        prepare_for_inference(make(), torch.float16)
