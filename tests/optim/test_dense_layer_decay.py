"""Layer-wise learning rates of detection and segmentation, as in the official code."""

import pytest

from src.optim.dense_layer_decay import dense_layer_id, dense_lr_scale, has_dense_weight_decay

DEPTHS = (6, 6, 32, 6)  # InternImage-H


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.patch_embed.conv1.weight", 0),
        ("backbone.levels.0.blocks.0.dcn.offset.weight", 1),
        ("backbone.levels.1.blocks.2.mlp.fc1.weight", 9),
        ("backbone.levels.3.blocks.5.norm1.weight", 50),
        ("backbone.levels.0.downsample.conv.weight", 7),
        ("backbone.levels.0.norm.weight", 7),
        ("backbone.levels.2.norm.weight", 45),
        ("backbone.levels.3.norm.weight", 45),  # the last stage counts like the previous one
        ("backbone.levels.2.post_norms.0.weight", 13),  # like block 0 of that stage
        ("backbone.levels.2.post_norms.4.bias", 17),
        ("backbone.cb_modules.1.levels.0.blocks.0.mlp.fc1.weight", 51),  # no layer decay
        ("decode_head.conv_seg.weight", 51),
        ("neck.convs.0.conv.weight", 51),
        ("bbox_head.transformer.level_embeds", 0),
        ("decode_head.query_feat.weight", 51),
    ],
)
def test_layers(name, layer):
    assert dense_layer_id(name, DEPTHS) == layer


def test_segmentation_rule_treats_queries_like_the_stem():
    names = ["mask_embed.0.weight", "cls_embed.weight", "level_embed.weight", "query_feat.weight"]
    for name in names:
        assert dense_layer_id(f"decode_head.{name}", DEPTHS, segmentation=True) == 0


def test_scales():
    scale = dense_lr_scale(DEPTHS, 0.95)
    assert scale("decode_head.conv_seg.weight") == 1.0
    assert scale("backbone.levels.3.blocks.5.mlp.fc1.weight") == pytest.approx(0.95)
    assert scale("backbone.patch_embed.conv1.weight") == pytest.approx(0.95**51)
    assert dense_lr_scale(DEPTHS, 1.0)("backbone.patch_embed.conv1.weight") == 1.0


def test_offsets_of_dino():
    name = "bbox_head.transformer.encoder.layers.0.attentions.0.sampling_offsets.weight"
    assert dense_lr_scale(DEPTHS, 0.9, offset_lr_scale=0.01)(name) == 0.01
    assert dense_lr_scale(DEPTHS, 0.9, offset_lr_scale=0.01, segmentation=True)(name) == 1.0


@pytest.mark.parametrize(
    ("name", "ndim", "decays"),
    [
        ("backbone.levels.0.blocks.0.dcn.input_proj.weight", 2, True),
        ("backbone.levels.0.blocks.0.dcn.input_proj.bias", 1, False),
        ("backbone.levels.0.blocks.0.gamma1", 1, False),
        ("backbone.levels.0.blocks.0.dcn.center_feature_scale_proj_weight", 2, True),
        ("decode_head.fpn_convs.0.conv.weight", 4, True),
        ("decode_head.fpn_convs.0.bn.weight", 1, False),
        ("bbox_head.encoder.sampling_offsets.weight", 2, False),
    ],
)
def test_weight_decay(name, ndim, decays):
    assert has_dense_weight_decay(name, ndim) == decays


@pytest.mark.parametrize("layer_decay", [0.0, 1.1])
def test_invalid_layer_decay(layer_decay):
    with pytest.raises(ValueError, match="layer_decay"):
        dense_lr_scale(DEPTHS, layer_decay)
