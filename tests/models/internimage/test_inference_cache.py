"""Blocks whose weights are packed once for evaluation, as one operator or layer by layer."""

import copy
import io
import weakref

import pytest
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from src.models import InternImage
from src.models.internimage import inference_cache, parts
from src.models.internimage.blocks import Downsample
from src.models.internimage.fused_block import FusedBlock
from src.models.internimage.inference_cache import InferenceCache
from src.models.internimage.layers import MLP
from src.models.internimage.packed_block import PackedBlock
from src.models.layers.compilation import Compilation, compile_parts
from src.models.layers.linear import Linear
from src.models.layers.low_rank import add_low_rank
from src.ops._load import LIBRARIES
from src.ops.cpu_block import is_available

SMALL = {"channels": 16, "depths": [1, 2], "groups": [1, 2]}
BLOCKS = sum(SMALL["depths"])

needs_float32 = pytest.mark.skipif(
    not is_available(torch.float32),
    reason="this CPU or build has no kernel of a block",
)
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN"
)
needs_bfloat16 = pytest.mark.skipif(
    not is_available(torch.bfloat16),
    reason="this CPU or build has no bfloat16 kernel of a block",
)


def make(**options):
    """A network in evaluation mode whose offsets, masks and gates are not zero."""
    torch.manual_seed(0)
    network = InternImage(10, **SMALL | options).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter.data, float(parameter.mean() == 1), 0.2)
    return network


def make_compiled(**options):
    """A network that runs fused blocks in float32, also on CPUs without a kernel for bfloat16."""
    network = make(**options)
    compile_parts(network, Compilation())
    return network


@pytest.fixture(
    params=[
        pytest.param(make, id="layers", marks=needs_onednn),
        pytest.param(make_compiled, id="operator", marks=needs_float32),
    ]
)
def build(request):
    """Function that makes a network whose blocks have packed weights in float32."""
    return request.param


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(3, 3, 64, 96)


@pytest.fixture
def calls(monkeypatch):
    """The blocks with packed weights that ran, as weak references."""
    found = []
    for kind in (FusedBlock, PackedBlock):

        def spy(self, x, run=kind.__call__):
            found.append(weakref.ref(self))
            return run(self, x)

        monkeypatch.setattr(kind, "__call__", spy)
    return found


@pytest.fixture
def uncompiled(monkeypatch):
    """Parts that are not fused run eagerly, because the compiler takes long."""
    monkeypatch.setattr("src.models.layers.compilation._compiled", lambda compute, _: compute)


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


@needs_float32
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_compiled_networks_are_fused(context, images, calls):
    network = make_compiled()
    with context():
        network(images)
    assert kinds(calls) == [FusedBlock] * BLOCKS


@needs_bfloat16
@pytest.mark.parametrize("build", [make, make_compiled])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_fused_under_autocast(context, build, images, calls):
    network = build()
    with context(), bfloat16():
        network(images)
    assert kinds(calls) == [FusedBlock] * BLOCKS


@needs_onednn
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_eager_float32_is_layer_by_layer_with_packed_weights(context, images, calls):
    network = make()
    with context():
        network(images)
    assert kinds(calls) == [PackedBlock] * BLOCKS


@needs_float32
@torch.no_grad()
def test_compiled_later(images, calls):
    network = make()
    network(images)
    calls.clear()
    compile_parts(network, Compilation())
    network(images)
    assert kinds(calls) == [FusedBlock] * BLOCKS


@torch.no_grad()
def test_no_packed_weights_without_onednn_or_in_reference_mode(images, calls, monkeypatch):
    network = make()
    with torch.backends.mkldnn.flags(enabled=False):
        network(images)
    with monkeypatch.context() as patch:
        patch.setattr(LIBRARIES, "mode", "reference")
        network(images)
    monkeypatch.setattr(inference_cache, "can_pack", lambda dtype: False)
    network(images)
    assert not calls
    assert not any(stage._cache._entries for stage in network.levels)


def kinds(calls):
    return [type(ref()) for ref in calls]


def first(network):
    return network.levels[0].blocks[0]


def forward_of_instance(network):
    fc1 = first(network).mlp.fc1
    fc1.forward = lambda x: type(fc1).forward(fc1, x)


def another_activation(network):
    first(network).dcn.act = nn.GELU("tanh")


CHANGES = {
    "forward hook": lambda n: first(n).mlp.fc1.register_forward_hook(lambda *_: None),
    "hook of the block": lambda n: first(n).register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda n: first(n).dcn.register_full_backward_hook(lambda *_: None),
    "low rank": lambda n: add_low_rank([n.levels[0]], 2),
    "dropout in training mode": lambda n: first(n).mlp.drop.train(),
    "block in training mode": lambda n: first(n).train(),
    "forward of an instance": forward_of_instance,
    "another activation": another_activation,
    "compiled by the caller": lambda n: first(n).compile(backend="eager"),
}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_a_changed_block_is_layer_by_layer(build, change, images, calls):
    network = build()
    network(images)
    change(network)
    calls.clear()
    network(images)
    assert len(calls) == BLOCKS - 1


@pytest.mark.usefixtures("uncompiled")
def test_layer_by_layer_in_training_and_with_gradients(build, images, calls):
    network = build()
    network(images)
    with torch.no_grad():
        network.train()(images)
        network.eval().double()(images.double())
    assert not calls


@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
def test_layer_by_layer_where_others_look_at_layers_or_operators(build, images, calls):
    network = build()
    with BaseTorchFunctionMode():
        network(images)
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert counter.get_total_flops() > 0
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        network(images)
    finally:
        handle.remove()
    assert not calls


@needs_float32
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "options",
    [{"channels": 24, "depths": [1], "groups": [1]}, {"norm_layer": "BN"}, {"core_op": "DCNv4"}],
    ids=str,
)
@torch.no_grad()
def test_what_has_no_kernel(options, images, calls):
    make_compiled(**options)(images)
    assert not calls


@pytest.mark.usefixtures("uncompiled")
@torch.inference_mode()
def test_weights_without_versions(build, images, calls):
    build()(images)  # made in inference mode
    assert not calls


@torch.no_grad()
def test_norms_of_float32_are_layer_by_layer(images, calls):
    with bfloat16():
        make(float32_norms=True)(images)
    assert not calls


@torch.no_grad()
def test_other_precisions_are_layer_by_layer(images, calls):
    with torch.autocast("cpu", torch.float16):
        make()(images)
    make().bfloat16()(images.bfloat16())
    with bfloat16():
        make().bfloat16()(images)
    assert not calls


@torch.no_grad()
def test_whole_networks_are_compiled_and_exported_without_it(images, calls):
    """No graph breaks, which ``fullgraph`` would raise for."""
    network = make()
    with bfloat16():
        network(images)  # fills the cache
        calls.clear()
        torch.compile(network, backend="aot_eager", fullgraph=True)(images)
        torch.export.export(network, (images,))
    torch.jit.trace(make_compiled(), images, check_trace=False)
    assert not calls


@torch.no_grad()
def test_transformed_networks_are_layer_by_layer(build):
    blocks, found = build().levels[0].blocks, []

    def look(x):
        found.append(InferenceCache().packed_blocks(blocks, x))
        return x

    look(x := torch.randn(2, 8, 8, 16))
    torch.func.vmap(look)(x[None])
    assert [len(fused) for fused in found] == [1, 0]


VARIANTS = [
    {},
    {"layer_scale": 0.5, "post_norm": True},
    {"res_post_norm": True, "center_feature_scale": True, "dw_kernel_size": 5},
    {"depths": [1, 1, 2], "groups": [1, 2, 4], "level2_post_norm_block_ids": (0,)},
]


@pytest.mark.parametrize("part", [1, 2**22])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_same_values(options, part, build, images, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(InferenceCache, "packed_blocks", lambda *_: {})
        expected = make(**options)(images)
    monkeypatch.setattr(parts, "PART", part)
    torch.testing.assert_close(build(**options)(images), expected, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_packed_weights_are_as_precise(options, images, calls, monkeypatch):
    network = make(**options)
    packed = network(images)
    assert calls
    with monkeypatch.context() as patch:
        patch.setattr(InferenceCache, "packed_blocks", lambda *_: {})
        plain = network(images)
        exact = network.double()(images.double())
    assert (packed - exact).norm() <= 2 * (plain - exact).norm()


@needs_bfloat16
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_bfloat16_differs_by_its_rounding(options, images, monkeypatch):
    """Fused blocks round fewer values than layers, so their error is at most as large.

    Both errors together bound the difference, which has to be above 0: other values are rounded.
    """
    network = make(**options)

    def features():
        maps = network.forward_intermediates(images, intermediates_only=True)
        return torch.cat([x.float().flatten() for x in maps])

    exact = features()
    with bfloat16():
        fused = features()
        monkeypatch.setattr(InferenceCache, "packed_blocks", lambda *_: {})
        layers = features()
    assert 0 < (fused - layers).norm() <= 2 * (layers - exact).norm()


def step(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with torch.enable_grad():
        loss = torch.stack([p.square().sum() for p in network.parameters()]).sum()
    loss.backward()
    optimizer.step()


def replace_data_twice(network):
    """The second tensor may get the address of the original one."""
    for parameter in network.parameters():
        parameter.data = parameter.data * 1.5
        parameter.data = parameter.data * 1.5


def replace_parameters(network):
    linear = first(network).mlp.fc1
    linear.weight = nn.Parameter(linear.weight * 1.5)


def replace_layer(network):
    torch.manual_seed(2)
    block = first(network)
    block.mlp.fc2 = type(block.mlp.fc2)(64, 16, init="xavier").eval()


def swap_blocks(network):
    first, second = network.levels[1].blocks
    network.levels[1].blocks[0], network.levels[1].blocks[1] = second, first


def average(network):
    other = make()
    torch._foreach_mul_(list(other.parameters()), 0.5)
    ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    ema(list(network.parameters()), list(other.parameters()), 1)


def scaled_state(network):
    return {name: 1.5 * value for name, value in network.state_dict().items()}


WRITES = {
    "optimizer": step,
    "in place": lambda n: [p.mul_(1.5) for p in n.parameters()],
    "load_state_dict": lambda n: n.load_state_dict(scaled_state(n)),
    "load_state_dict, assigned": lambda n: n.load_state_dict(scaled_state(n), assign=True),
    "in place, through data": lambda n: [p.data.mul_(1.5) for p in n.parameters()],
    "new data": lambda n: [setattr(p, "data", p.data * 1.5) for p in n.parameters()],
    "new data, twice": replace_data_twice,
    "downsampling": lambda n: n.levels[0].downsample.conv.weight.mul_(1.5),
    "option": lambda n: setattr(first(n).dcn, "offset_scale", 2.0),
    "new parameter": replace_parameters,
    "new layer": replace_layer,
    "other order": swap_blocks,
    "moving average": average,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@torch.no_grad()
def test_new_weights_are_seen(build, write, images, calls):
    network = build()
    before = network(images)
    write(network)
    after = network(images)
    assert len(calls) == 2 * BLOCKS
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(network)(images))


@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
def test_a_transposed_weight_is_seen(build, images, calls):
    """It keeps its address, its version and its first value."""
    network = build()
    network(images)
    weight = first(network).dcn.input_proj.weight
    weight.data = weight.data.t()
    calls.clear()
    after = network(images)
    assert len(calls) == BLOCKS - 1
    weight.data = weight.data.contiguous()
    torch.testing.assert_close(after, network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
def test_a_tensor_that_is_no_parameter_is_read_in_every_forward_pass(build, images):
    network = build()
    fc1 = first(network).mlp.fc1
    bias = fc1.bias.detach().clone()
    del fc1.bias
    fc1.bias = bias
    network(images)
    bias += 1
    after = network(images)
    fc1.bias = nn.Parameter(bias)
    torch.testing.assert_close(after, network(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_packed_once(build, images, calls):
    network = build()
    network(images)
    network.requires_grad_(False).eval().to("cpu").float()(images)
    assert [ref() for ref in calls[:BLOCKS]] == [ref() for ref in calls[BLOCKS:]]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "use",
    [
        lambda network, images: network.train(),
        lambda network, images: network.double(),
        lambda network, images: network.to("meta"),
        lambda network, images: network(images),
    ],
    ids=["train", "double", "meta", "gradients"],
)
def test_freed(build, use, images, calls):
    network = build()
    with torch.no_grad():
        network(images)
    assert all(ref() for ref in calls)
    use(network, images)
    assert not any(ref() for ref in calls)


@torch.no_grad()
def test_copies_and_files(build, images, calls):
    network = build()
    names = list(network.state_dict())
    file = io.BytesIO()
    torch.save(network, file)
    size = file.tell()
    expected = network(images)
    assert list(network.state_dict()) == names
    other = copy.deepcopy(network)
    file = io.BytesIO()
    torch.save(network, file)
    assert file.tell() == size
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for parameter in network.parameters():
        parameter.zero_()
    assert torch.equal(other(images), expected)
    assert torch.equal(loaded(images), expected)


@torch.no_grad()
def test_hooks_around_the_blocks_see_all_images(build, images, monkeypatch):
    monkeypatch.setattr(parts, "PART", 1)
    network, sizes = build(), []
    for conv in (network.patch_embed.conv1, network.levels[0].downsample.conv):
        conv.register_forward_hook(lambda _, given, out: sizes.append(len(out)))
    network(images)
    assert sizes == [len(images)] * 2


class Doubling(Downsample):
    """A subclass with a forward pass of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Pooling(nn.Module):
    """A step to the next stage that is not a convolution."""

    def forward(self, x):
        return (
            nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 2)
            .permute(0, 2, 3, 1)
            .repeat(1, 1, 1, 2)
        )


@pytest.mark.parametrize("kind", [lambda: Doubling(16), Pooling])
@torch.no_grad()
def test_another_downsampling_is_called(build, kind, images):
    network = build()
    stage = network.levels[0]
    stage.downsample = kind().eval()
    out, following = stage(torch.randn(2, 8, 8, 16))
    torch.testing.assert_close(following, stage.downsample(out))


GEOMETRIES = [
    {"stride": (1, 1)},
    {"dilation": (2, 2), "padding": (2, 2)},
    {"padding_mode": "reflect", "_reversed_padding_repeated_twice": [1, 1, 1, 1]},
]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@torch.no_grad()
def test_another_geometry_of_the_downsampling(geometry, is_first, images):
    stage, x = make().levels[0], torch.randn(2, 8, 8, 16)
    if not is_first:
        stage(x)
    for name, value in geometry.items():
        setattr(stage.downsample.conv, name, value)
    out, following = stage(x)
    torch.testing.assert_close(following, stage.downsample(out), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "mixer",
    [lambda width, groups: Linear(width, width, init="xavier"), lambda width, _: MLP(width, width)],
    ids=["Linear", "MLP"],
)
@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
def test_mixers_of_the_same_layers(build, mixer, images, calls):
    build(mixer=mixer)(images)
    assert not calls


@torch.no_grad()
def test_sharding_can_still_free_the_parameters(build, images):
    network = build()
    network(images)
    assert all(p.untyped_storage().resizable() for p in network.parameters())
