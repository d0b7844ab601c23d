"""InternImage behaves as any backbone in timm does."""

import pytest
import timm
import torch
from timm.models import group_parameters

from src.errors import UserError
from src.models import InternImage
from src.models.internimage.architectures import ARCHITECTURES
from src.models.internimage.registry import default_cfgs
from src.models.weights import to_official

VARIANTS = [f"internimage_{v}" for v in ("nano", "t", "s", "b", "l", "xl", "h", "g")]


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return timm.create_model("internimage_nano", num_classes=10).eval()


@pytest.fixture(scope="module")
def projector():
    """A small network with the CLIP-projector head of H and G."""
    torch.manual_seed(0)
    return timm.create_model(
        "internimage_h",
        num_classes=10,
        channels=16,
        depths=(1, 1, 2, 1),
        groups=(1, 2, 4, 8),
        level2_post_norm_block_ids=(1,),
    ).eval()


@pytest.fixture(params=["nano", "projector"])
def network(request):
    return request.getfixturevalue(request.param)


def test_variants_are_registered():
    assert sorted(timm.list_models("internimage*")) == sorted(VARIANTS)
    pretrained = timm.list_pretrained("internimage*")
    assert "internimage_t.in1k_224" in pretrained
    assert "internimage_xl.in22k_ft_in1k_384" in pretrained
    assert not any("nano" in name for name in pretrained)


@pytest.mark.parametrize("variant", VARIANTS)
def test_default_configuration(variant):
    with torch.device("meta"):
        network = timm.create_model(variant)
    cfg = network.default_cfg
    assert (cfg["crop_pct"], cfg["interpolation"]) == (1.0, "bicubic")
    assert cfg["num_classes"] == network.num_classes == network.get_classifier().out_features
    assert network.get_submodule(cfg["first_conv"]).in_channels == 3
    assert network.get_submodule(cfg["classifier"]) is network.get_classifier()
    assert all(c.hf_hub_filename for tag, c in default_cfgs[variant].cfgs.items() if tag)


def test_tag_sets_size_and_classes():
    with torch.device("meta"):
        network = timm.create_model("internimage_l.in22k_384")
    assert network.num_classes == 21841
    assert network.default_cfg["input_size"] == (3, 384, 384)


def test_features_head_and_forward_agree(network):
    image = torch.randn(2, 3, 64, 64)
    features = network.forward_features(image)
    assert features.shape[1] == network.num_features
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, network.head_hidden_size)
    assert torch.equal(network.get_classifier()(pooled), network(image))
    assert torch.equal(network.forward_head(features), network(image))


def test_forward_intermediates(network):
    image = torch.randn(2, 3, 64, 64)
    final, maps = network.forward_intermediates(image)
    assert torch.equal(final, network.forward_features(image))
    assert [m.shape[1] for m in maps] == [f["num_chs"] for f in network.feature_info]
    assert [64 // m.shape[2] for m in maps] == [f["reduction"] for f in network.feature_info]
    (third,) = network.forward_intermediates(
        image, indices=[2], stop_early=True, intermediates_only=True
    )
    assert torch.equal(third, maps[2])
    last_two = network.forward_intermediates(image, indices=2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, maps[2:], strict=True))
    with pytest.raises(UserError, match="maps as NCHW only"):
        network.forward_intermediates(image, output_fmt="NLC")


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (-1,)])
def test_features_only(nano, out_indices):
    features = timm.create_model("internimage_nano", features_only=True, out_indices=out_indices)
    missing, unexpected = features.model.load_state_dict(nano.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith(("levels", "head", "conv_head")) for name in unexpected)
    image = torch.randn(1, 3, 64, 64)
    maps = features.eval()(image)
    _, expected = nano.forward_intermediates(image)
    assert features.feature_info.channels() == [m.shape[1] for m in maps]
    for i, value in zip(out_indices, maps, strict=True):
        assert torch.equal(value, expected[i])


def test_features_only_drops_what_it_does_not_need():
    features = timm.create_model("internimage_nano", features_only=True, out_indices=(0, 1))
    assert len(features.model.levels) == 2
    assert not any("head" in name for name, _ in features.named_parameters())


def test_reset_classifier():
    network = timm.create_model("internimage_nano", num_classes=10).double().eval()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    network.reset_classifier(4)
    assert (network.num_classes, network(image).shape) == (4, (1, 4))
    assert network.head.weight.dtype == torch.float64
    network.reset_classifier(0)
    assert network(image).shape == (1, network.head_hidden_size)
    network.reset_classifier(4, global_pool="max")
    assert network(image).shape == (1, 4)


def test_pooled_features_without_classifier():
    network = timm.create_model("internimage_nano", num_classes=0).eval()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, network.head_hidden_size)


@pytest.mark.parametrize(
    ("global_pool", "shape"),
    [
        (None, (2, 384)),
        ("avg", (2, 384)),
        ("fast", (2, 384)),
        ("max", (2, 384)),
        ("avgmax", (2, 384)),
        ("catavgmax", (2, 768)),
        ("", (2, 384, 2, 2)),
    ],
)
def test_global_pooling_as_timm_names_it(global_pool, shape):
    network = timm.create_model("internimage_nano", num_classes=0, global_pool=global_pool).eval()
    image = torch.randn(2, 3, 64, 64)
    assert network(image).shape == shape
    assert network.head_hidden_size == shape[1]
    if global_pool:
        network.reset_classifier(5)
        assert network(image).shape == (2, 5)


def test_pooling_values_are_those_of_the_feature_map():
    network = timm.create_model("internimage_nano", num_classes=0, global_pool="").eval()
    image = torch.randn(2, 3, 64, 64)
    feature_map = network(image)
    for global_pool, expected in (
        ("avg", feature_map.mean((2, 3))),
        ("max", feature_map.amax((2, 3))),
    ):
        network.reset_classifier(0, global_pool)
        assert torch.equal(network(image), expected)


def test_impossible_heads_are_refused():
    with pytest.raises(UserError, match=r"global_pool must be one of '', 'avg', .* got 'median'"):
        timm.create_model("internimage_nano", global_pool="median")
    with pytest.raises(UserError, match="set num_classes to 0, or global_pool to 'avg'"):
        timm.create_model("internimage_nano", num_classes=3, global_pool="")
    with pytest.raises(UserError, match="num_classes must be 0"):
        timm.create_model("internimage_nano", num_classes=-1)
    huge = {"channels": 16, "depths": (1, 1), "groups": (1, 2), "use_clip_projector": True}
    with pytest.raises(UserError, match="pools by attention"):
        InternImage(num_classes=0, global_pool="max", **huge)
    network = InternImage(num_classes=0, global_pool="", **huge).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 1024, 8, 8)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_images_of_other_channels(in_chans):
    network = timm.create_model("internimage_nano", in_chans=in_chans).eval()
    assert network(torch.randn(1, in_chans, 32, 32)).shape == (1, 1000)
    with pytest.raises(UserError, match=rf"expects {in_chans} image channels \(in_chans\), got 3"):
        network(torch.randn(1, 3, 32, 32))


def test_no_channels_are_refused():
    with pytest.raises(UserError, match="in_chans must be at least 1"):
        timm.create_model("internimage_nano", in_chans=0)


def test_a_single_value_per_channel_cannot_be_normalised(nano):
    nano.train()
    with pytest.raises(UserError, match=r"data.batch_size to 2 or more"):
        nano(torch.randn(1, 3, 32, 32))
    assert nano(torch.randn(2, 3, 32, 32)).shape[0] == 2
    assert nano.eval()(torch.randn(1, 3, 32, 32)).shape[0] == 1


def test_groups_of_parameters_follow_the_depth(nano):
    groups = group_parameters(nano, nano.group_matcher(), reverse=True)
    order = [
        groups[name]
        for name in (
            "patch_embed.conv1.weight",
            "levels.0.blocks.0.norm1.weight",
            "levels.0.downsample.conv.weight",
            "levels.1.blocks.0.dcn.offset.weight",
            "levels.2.blocks.0.norm1.weight",
            "levels.2.blocks.1.norm1.weight",
            "levels.3.blocks.0.mlp.fc2.bias",
            "levels.3.norm.weight",
            "head.weight",
        )
    ]
    assert order == sorted(set(order))
    assert groups["levels.0.norm.weight"] == groups["levels.0.downsample.conv.weight"]
    coarse = group_parameters(nano, nano.group_matcher(coarse=True), reverse=True)
    assert coarse["levels.2.blocks.2.norm1.weight"] == coarse["levels.2.norm.weight"] == 3


def test_weight_decay_follows_the_shape_only(nano):
    assert nano.no_weight_decay() == set()


def test_pretrained_file_goes_through_the_converter(nano, tmp_path):
    torch.save({"model": to_official(nano)}, tmp_path / "nano.pth")
    network = timm.create_model(
        "internimage_nano",
        pretrained=True,
        num_classes=10,
        pretrained_cfg_overlay={"file": str(tmp_path / "nano.pth"), "num_classes": 10},
    )
    assert torch.equal(network.head.weight, nano.head.weight)
    assert torch.equal(network.patch_embed.norm1.weight, nano.patch_embed.norm1.weight)


def test_pretrained_tag_downloads_the_published_file(nano, tmp_path, monkeypatch):
    torch.save({"model": to_official(nano)}, tmp_path / "file.pth")
    asked = []

    def download(repo_id, filename, **kwargs):
        asked.append(f"{repo_id}/{filename}")
        return str(tmp_path / "file.pth")

    monkeypatch.setattr("src.models.weights.files.is_hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    network = timm.create_model(
        "internimage_t.in1k_224",
        pretrained=True,
        num_classes=10,
        **ARCHITECTURES["internimage_nano"],
    )
    assert asked == ["OpenGVLab/InternImage/internimage_t_1k_224.pth"]
    assert torch.equal(network.head.weight, nano.head.weight)


def test_a_pretrained_tag_without_a_connection_is_one_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("src.models.weights.files.is_hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"internimage_t_1k_224.pth is not on this machine.*Fetch "):
        timm.create_model("internimage_t", pretrained=True)
    assert not caplog.messages


def test_error_for_pretrained_without_weights():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for internimage_nano"):
        timm.create_model("internimage_nano", pretrained=True)
