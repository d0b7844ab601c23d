"""Behaviour of the backbone and the classifier beyond their numbers."""

from functools import partial

import pytest
import timm
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from src.errors import UserError
from src.models import ARCHITECTURES, DCNv3, InternImage, InternImageBackbone
from src.models.internimage.composite import CBInternImageBackbone
from src.models.internimage.layers import LAYER_NORM_EPS
from tests.official import assert_same_network

SLOW = pytest.mark.slow
SMALL = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}
HUGE_LIKE = {
    "res_post_norm": True,
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "level2_post_norm_block_ids": (1,),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def perturb(network):
    """Move the offsets, masks and gates away from their zero initialisation."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


# Sizes


@pytest.mark.parametrize(
    ("variant", "with_1k", "with_22k", "backbone"),
    [
        ("t", 29_918_424, 45_945_153, 28_754_672),
        ("s", 50_079_880, 70_108_081, 48_502_560),
        ("b", 97_461_832, 125_492_977, 94_909_920),
        ("l", 223_334_810, 263_370_371, 218_952_370),
        ("xl", 334_819_780, 382_858_285, 328_971_228),
        ("h", 1_089_636_760, 1_105_663_489, 1_073_122_480),
        ("g", 3_076_373_352, 3_092_400_081, 3_052_781_184),
    ],
)
def test_official_parameter_counts(variant, with_1k, with_22k, backbone):
    name = f"internimage_{variant}"

    def count(network):
        return sum(p.numel() for p in network.parameters())

    with torch.device("meta"):
        assert count(InternImage(1000, name)) == with_1k
        assert count(InternImage(21841, name)) == with_22k
        assert count(InternImageBackbone(name)) == backbone


def test_dense_t_has_layer_scales():
    with torch.device("meta"):
        backbone = InternImageBackbone("internimage_t", layer_scale=1.0)
    assert sum(p.numel() for p in backbone.parameters()) == 28_769_520


def test_nano_stays_small():
    with torch.device("meta"):
        network = timm.create_model("internimage_nano")
    assert sum(p.numel() for p in network.parameters()) < 5_000_000


@pytest.mark.parametrize("size", [(1, 1), (33, 65), (40, 31)])
def test_any_image_size(size):
    image = torch.randn(2, 3, *size)
    features = InternImageBackbone(**SMALL)(image)
    for i, value in enumerate(features):
        stride = 4 * 2**i
        assert value.shape == (2, 16 * 2**i, -(-size[0] // stride), -(-size[1] // stride))
    assert InternImage(3, **SMALL).eval()(image).shape == (2, 3)


def test_empty_batch():
    assert InternImage(3, **SMALL).eval()(torch.empty(0, 3, 32, 32)).shape == (0, 3)


def test_clip_projector_head_explains_the_sizes_it_needs():
    network = InternImage(3, **SMALL, **HUGE_LIKE, use_clip_projector=True)
    assert network(torch.randn(1, 3, 64, 32)).shape == (1, 3)
    with pytest.raises(UserError, match="multiples of 32"):
        network(torch.randn(1, 3, 48, 64))


# Structure


def test_every_norm_has_the_official_epsilon():
    network = InternImage(3, **SMALL, **HUGE_LIKE, use_clip_projector=True)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) > 20
    assert all(norm.eps == 1e-6 == LAYER_NORM_EPS for norm in norms)


@pytest.mark.parametrize(
    ("post_norm", "center_feature_scale", "expected"),
    [(False, False, True), (True, False, False), (True, True, True)],
)
def test_stage_norm_rule(post_norm, center_feature_scale, expected):
    backbone = InternImageBackbone(
        **SMALL, post_norm=post_norm, center_feature_scale=center_feature_scale
    )
    assert all((stage.norm is not None) == expected for stage in backbone.levels)


@pytest.mark.parametrize("ignored_by", [{"layer_scale": 1.0}, {"post_norm": True}])
def test_res_post_norm_gives_way(ignored_by):
    backbone = InternImageBackbone(**SMALL, res_post_norm=True, **ignored_by)
    assert not any("res_post_norm" in name for name, _ in backbone.named_parameters())


def test_drop_path_grows_over_all_blocks():
    backbone = InternImageBackbone(
        channels=16, depths=(2, 1, 3, 1), groups=(1, 2, 4, 8), drop_path_rate=0.3
    )
    rates = [block.drop_path.drop_prob for stage in backbone.levels for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


def test_drop_path_acts_in_training_only():
    network = perturb(InternImage(3, **SMALL, drop_path_rate=0.9))
    image = torch.randn(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(image), network(image))
    network.train()
    assert not torch.equal(network(image), network(image))


@pytest.mark.parametrize("out_indices", [(0,), (1, 3), (0, 1, 2, 3)])
def test_out_indices(out_indices):
    whole = perturb(InternImageBackbone(**SMALL))
    part = InternImageBackbone(**SMALL, out_indices=out_indices)
    part.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, 32, 32)
    for value, i in zip(part(image), out_indices, strict=True):
        assert torch.equal(value, whole(image)[i])


def test_frozen_stages_do_not_train_and_the_stem_does():
    backbone = InternImageBackbone(**SMALL, drop_path_rate=0.5, frozen_stages=2).train()
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "1"}
    assert backbone.patch_embed.conv1.weight.requires_grad
    assert [stage.training for stage in backbone.levels] == [False, False, True, True]


def test_a_frozen_backbone_has_no_drop_path_and_no_gradients():
    backbone = perturb(InternImageBackbone(**SMALL, drop_path_rate=0.9, drop_rate=0.5))
    backbone.freeze()
    backbone.train()
    image = torch.randn(2, 3, 32, 32)
    for value, again in zip(backbone(image), backbone(image), strict=True):
        assert torch.equal(value, again)
        assert not value.requires_grad


def test_a_frozen_composite_backbone():
    make = partial(InternImageBackbone, **SMALL)
    backbone = CBInternImageBackbone(make)
    backbone.freeze(2)
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {"cb_modules.1.gamma0", "cb_modules.1.gamma1"} < frozen
    parts = {name.split(".")[2] for name in frozen if ".levels." in name}
    assert parts == {"levels"}
    stages = {".".join(name.split(".")[1:4]) for name in frozen if ".levels." in name}
    assert stages == {f"{lead}.levels.{stage}" for lead in "01" for stage in "01"}
    backbone.freeze()
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"channels": 15}, "channels must be even"),
        ({"groups": (1, 2, 4)}, "one entry per stage"),
        ({"groups": (3, 2, 4, 8)}, "multiple of groups, got channels=16 and groups=3"),
        ({"depths": (1, 0, 2, 1)}, "at least 1"),
        ({"kernel_size": 4}, "odd positive kernel_size, got 4"),
        ({"dw_kernel_size": 2}, "odd positive dw_kernel_size, got 2"),
        ({"level2_post_norm_block_ids": (2,)}, "0 to 1"),
        ({"out_indices": (4,)}, "0 to 3"),
        ({"frozen_stages": 5}, "0 to 4"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        InternImageBackbone(**(SMALL | kwargs))


# DCNv3 layer


def test_new_dcnv3_layer_is_an_average_over_the_grid():
    """Zero offsets and equal mask values: the mean of nine neighbours, zero outside."""
    layer = DCNv3(8, groups=2)
    x = torch.randn(1, 5, 6, 8)  # (N, H, W, C)
    values = layer.input_proj(x).permute(0, 3, 1, 2)
    mean = torch.nn.functional.avg_pool2d(values, 3, 1, 1).permute(0, 2, 3, 1)
    assert_close(layer(x), layer.output_proj(mean))


def test_center_feature_scale_blends_with_the_projected_input():
    layer = DCNv3(8, groups=2, center_feature_scale=True)
    plain = DCNv3(8, groups=2)
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(1, 5, 6, 8)
    projected = layer.output_proj(layer.input_proj(x))
    assert_close(layer(x), (plain(x) + projected) / 2)  # a new gate is one half


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_kernel_size_keeps_the_size_of_the_feature_map(kernel_size):
    layer = perturb(DCNv3(8, groups=2, kernel_size=kernel_size, remove_center=kernel_size > 1))
    assert layer(torch.randn(1, 5, 6, 8)).shape == (1, 5, 6, 8)


# Memory and layout


class CopiedElements(TorchDispatchMode):
    """Counts elements that layout changes copy."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.total += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_nothing_is_copied_but_the_image():
    network = perturb(InternImage(3, **SMALL, **HUGE_LIKE))
    image = torch.randn(2, 3, 64, 64)
    with CopiedElements() as copied, torch.no_grad():
        network(image)
    assert copied.total == image.numel()
    value = network.forward_features(image)
    assert value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kwargs", [{}, HUGE_LIKE, {"layer_scale": 0.5, "post_norm": True}])
def test_checkpointing_changes_memory_and_not_gradients(kwargs):
    image = torch.randn(2, 3, 32, 32)
    gradients, saved = [], []
    network = perturb(InternImage(3, **SMALL, **kwargs, drop_path_rate=0.2)).train()
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        torch.manual_seed(1)  # the same paths are dropped
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(image).square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        saved.append(sum(kept.values()))
    assert_same_network(gradients[1], gradients[0])
    assert saved[1] < saved[0] / 2


# Initial values


def test_initial_values():
    network = InternImage(3, **SMALL, **HUGE_LIKE, use_clip_projector=True)
    dcn = network.levels[3].blocks[0].dcn
    for parameter in (dcn.offset.weight, dcn.mask.weight, dcn.offset.bias, dcn.mask.bias):
        assert not parameter.any()
    assert not dcn.center_feature_scale_proj_weight.any()
    assert not network.clip_projector.cross_dcn.k_bias.any()
    bound = (6 / 256) ** 0.5  # Xavier uniform of 128 to 128
    assert 0.9 * bound < dcn.input_proj.weight.abs().max() <= bound
    fc1 = network.levels[3].blocks[0].mlp.fc1
    assert fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not fc1.bias.any()


def test_meta_network_has_the_initial_values_of_any_other():
    kwargs = {**SMALL, **HUGE_LIKE, "use_clip_projector": True}
    with torch.device("meta"):
        network = InternImage(3, **kwargs)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.fill_(7)
    for module in network.modules():  # parents first, each its own parameters only
        if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
            module.reset_parameters()
    expected = InternImage(3, **kwargs).state_dict()
    for name, value in network.state_dict().items():
        assert value.float().mean().item() == pytest.approx(
            expected[name].float().mean().item(), abs=0.2
        ), name
        assert value.float().std(correction=0).item() == pytest.approx(
            expected[name].float().std(correction=0).item(), abs=0.05
        ), name


def test_layer_scales_have_their_initial_value():
    with torch.device("meta"):
        block = InternImageBackbone(**SMALL, layer_scale=1e-5).levels[0].blocks[0]
    block.to_empty(device="cpu").reset_parameters()
    assert torch.equal(block.gamma1, torch.full((16,), 1e-5))


# Compilers


@pytest.mark.parametrize(
    "kwargs", [SMALL | HUGE_LIKE, pytest.param(ARCHITECTURES["internimage_nano"], marks=SLOW)]
)
def test_export_with_a_free_batch_size(kwargs):
    network = perturb(InternImage(5, **kwargs)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    image = torch.randn(2, 3, 64, 64)
    program = torch.export.export(network, (image,), dynamic_shapes=({0: batch},))
    other = torch.randn(3, 3, 64, 64)
    assert_same_network(program.module()(other), network(other))


def test_one_graph_forward_and_backward():
    stages = {"channels": 16, "depths": (1, 1), "groups": (1, 2)}
    network = perturb(
        InternImage(5, **stages, res_post_norm=True, center_feature_scale=True, dw_kernel_size=5)
    ).eval()  # with statistics of the batch, the gradient of a bias before them is zero
    image = torch.randn(2, 3, 32, 32)
    network(image).square().sum().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    compiled(image).square().sum().backward()
    assert_same_network([p.grad for p in network.parameters()], gradients)


@pytest.mark.slow
def test_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing left from other runs
    network = perturb(timm.create_model("internimage_nano", num_classes=5)).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = torch.compile(network, fullgraph=True)(image)
        assert_same_network(out, network(image))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    network = perturb(InternImage(3, **SMALL, **HUGE_LIKE))
    image = torch.randn(2, 3, 32, 32)
    expected = network(image)
    with torch.autocast("cpu", dtype):
        out = network(image)
    out.float().sum().backward()
    assert torch.isfinite(network.patch_embed.conv1.weight.grad).all()
    assert_close(out.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
