import pytest
import torch
from torch import nn

from src.models import ARCHITECTURES, InternImage
from src.optim import lr_scale_by_depth, parameter_groups
from src.optim.param_groups import has_weight_decay


def network(variant: str) -> InternImage:
    with torch.device("meta"):
        return InternImage(num_classes=10, **ARCHITECTURES[variant])


@pytest.fixture(scope="module")
def internimage_t() -> InternImage:
    return network("internimage_t")


@pytest.fixture(scope="module")
def internimage_h() -> InternImage:
    return network("internimage_h")


def test_weight_decay_applies_to_matrices_only(internimage_h: InternImage) -> None:
    decayed = {n for n, p in internimage_h.named_parameters() if has_weight_decay(n, p.ndim)}
    assert "levels.0.blocks.0.dcn.offset.weight" in decayed
    assert "levels.0.blocks.0.dcn.offset.bias" not in decayed
    assert "levels.0.blocks.0.norm1.weight" not in decayed
    # The (G, C) weight of the centre-feature scale has weight decay, its bias does not.
    assert "levels.0.blocks.0.dcn.center_feature_scale_proj_weight" in decayed
    assert "levels.0.blocks.0.dcn.center_feature_scale_proj_bias" not in decayed


def test_depth_decay_of_t(internimage_t: InternImage) -> None:
    scale = lr_scale_by_depth((4, 4, 18, 4), 0.9, dcn_lr_scale=0.1)
    # 30 blocks; the last has index 0.
    assert scale("levels.3.blocks.3.mlp.fc1.weight") == 1.0
    assert scale("levels.3.blocks.0.mlp.fc1.weight") == pytest.approx(0.9**3)
    assert scale("levels.2.blocks.17.mlp.fc1.weight") == pytest.approx(0.9**4)
    assert scale("levels.0.blocks.0.mlp.fc1.weight") == pytest.approx(0.9**29)
    assert scale("patch_embed.conv1.weight") == pytest.approx(0.9**29)
    # The layers at the end of a stage have the scale of the first block of the next one.
    assert scale("levels.0.downsample.conv.weight") == pytest.approx(0.9**25)
    assert scale("levels.0.norm.weight") == pytest.approx(0.9**25)
    # Other names keep the base rate.
    assert scale("levels.3.norm.weight") == 1.0
    assert scale("levels.0.post_norms.0.weight") == 1.0
    assert scale("conv_head.conv.weight") == scale("head.weight") == 1.0
    # Offsets have a lower learning rate, masks do not.
    assert scale("levels.3.blocks.3.dcn.offset.weight") == pytest.approx(0.1)
    assert scale("levels.3.blocks.3.dcn.mask.weight") == 1.0
    centre = "levels.3.blocks.3.dcn.center_feature_scale_proj_weight"
    assert scale(centre) == pytest.approx(0.1)


@pytest.mark.parametrize("variant", ["internimage_t", "internimage_h"])
def test_groups_cover_every_parameter_once(variant: str) -> None:
    module = network(variant)
    scale = lr_scale_by_depth(ARCHITECTURES[variant]["depths"], 0.9, 0.1)
    groups = parameter_groups(module.named_parameters(), lr_scale=scale)
    grouped = {id(p): group for group in groups for p in group["params"]}
    assert len(grouped) == sum(len(g["params"]) for g in groups) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        group = grouped[id(parameter)]
        assert group["lr_scale"] == scale(name)
        assert (group.get("weight_decay") == 0.0) != has_weight_decay(name, parameter.ndim)
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    blocks = sum(ARCHITECTURES[variant]["depths"])
    assert len(groups) <= 4 * blocks


def test_without_layer_decay_there_are_two_groups(internimage_t: InternImage) -> None:
    groups = parameter_groups(internimage_t.named_parameters())
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]


def test_frozen_and_named_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = parameter_groups(module.named_parameters(), no_decay={"1.weight"})
    assert [len(group["params"]) for group in groups] == [2]
    assert groups[0]["name"] == "no_decay"
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        parameter_groups(module.named_parameters())


@pytest.mark.parametrize("ratio", [0.0, 1.1, -0.5])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\]"):
        lr_scale_by_depth((1, 1), ratio)
