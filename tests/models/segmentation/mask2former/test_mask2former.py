"""Mask2Former: its outputs, its weights, small images."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from src.errors import UserError
from src.models import InternImageBackbone, Mask2Former, Mask2FormerHead
from src.models.segmentation import image_probabilities
from src.models.segmentation.mask2former.head import attention_mask, class_map
from src.models.weights import load_official, to_official
from tests.official import assert_same_network

TINY = partial(InternImageBackbone, channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))
HEAD = partial(
    Mask2FormerHead,
    channels=16,
    num_queries=6,
    heads=4,
    encoder_layers=1,
    decoder_layers=3,
    encoder_hidden=16,
    decoder_hidden=16,
    norm_groups=4,
)


def tiny(num_classes=5, **changes):
    torch.manual_seed(0)
    return Mask2Former(num_classes, TINY, partial(HEAD, **changes))


def test_training_gives_every_layer_and_evaluation_scores():
    network, image = tiny(), torch.randn(2, 3, 37, 50)
    outputs = network.train()(image)
    assert [x.shape for x in outputs["class_logits"]] == [(2, 6, 6)] * 4
    assert [x.shape for x in outputs["mask_logits"]] == [(2, 6, 10, 13)] * 4
    scores = network.eval()(image)["out"]
    assert scores.shape == (2, 5, 37, 50)
    assert scores.min() >= 0


def test_scores_come_from_the_last_layer():
    network = tiny().eval()
    features = network.backbone(torch.randn(1, 3, 64, 64))
    every = network.decode_head.predict(features)
    assert len(network.decode_head.predict(features, every_layer=False)) == 1
    assert_same_network(network.decode_head(features), class_map(*every[-1]))


def test_score_is_the_mask_weighted_by_the_class():
    class_logits = torch.tensor([[[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]]])  # a third each, class 0
    mask_logits = torch.tensor([[[[0.0, 50.0]], [[50.0, -50.0]]]])
    expected = torch.tensor([[[[1 / 6 + 1, 1 / 3]], [[1 / 6, 1 / 3]]]])
    assert_close(class_map(class_logits, mask_logits), expected)


def test_classes_are_summed_with_32_bits():
    class_logits, mask_logits = torch.randn(1, 200, 6), torch.randn(1, 200, 4, 4)
    expected = class_map(class_logits, mask_logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(class_map(class_logits, mask_logits), expected)
        rounded = class_map(class_logits.bfloat16(), mask_logits.bfloat16())
    assert rounded.dtype == torch.float32


def test_queries_look_inside_their_masks_or_everywhere():
    masks = torch.tensor([[[[1.0, -1.0], [0.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    attn_mask = attention_mask(masks, (2, 2))
    assert attn_mask.tolist() == [[[True, False, True, False], [True] * 4]]


def test_every_parameter_is_trained():
    network = tiny()
    outputs = network(torch.randn(2, 3, 64, 64))
    loss = sum(x.square().mean() for values in outputs.values() for x in values)
    loss.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 31)])
def test_images_smaller_than_a_stride(size):
    network, image = tiny(), torch.randn(1, 3, *size)
    for values in network(image).values():
        assert all(x.isfinite().all() for x in values)
    with torch.no_grad():
        probability = image_probabilities(network.eval(), [image], size)
    assert probability.shape == (1, 5, *size)
    assert_close(probability.sum(1), torch.ones(1, *size))


def test_images_of_a_batch_do_not_mix():
    network, images = tiny().eval().double(), torch.randn(2, 3, 48, 64).double()
    with torch.no_grad():
        assert_same_network(network(images)["out"][1:], network(images[1:])["out"])


def test_meta_device_then_real():
    with torch.device("meta"):
        network = tiny()
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert network.eval()(torch.randn(1, 3, 32, 32))["out"].isfinite().all()
    head = network.decode_head
    assert head.query_feat.weight.std().item() == pytest.approx(1.0, rel=0.3)
    assert not head.transformer_decoder.layers[0].cross_attention.in_proj_bias.any()
    assert not head.pixel_decoder.mask_feature.bias.any()


def test_official_names_and_back():
    network = tiny()
    official = to_official(network)
    layer = "decode_head.transformer_decoder.layers.2"
    assert f"{layer}.attentions.1.attn.in_proj_weight" in official
    assert f"{layer}.ffns.0.layers.0.0.weight" in official
    encoder = "decode_head.pixel_decoder.encoder.layers.0"
    assert f"{encoder}.attentions.0.sampling_offsets.bias" in official
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = Mask2Former(5, TINY, HEAD)
    report = load_official(other, {"state_dict": official})
    assert not report.fresh
    assert not report.unused
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_weights_of_other_classes_start_the_class_embedding_fresh(caplog):
    official = to_official(tiny(171))
    network = tiny(150)
    report = load_official(network, official)
    assert set(report.fresh) == {"decode_head.cls_embed.weight", "decode_head.cls_embed.bias"}
    assert "has 172 class outputs, the network 151" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": 0}, "num_queries"),
        ({"heads": 3}, "channels=16 and heads=3"),
        ({"norm_groups": 5}, "norm_groups=5"),
        ({"norm_groups": 16}, "larger multiple"),
        ({"in_channels": [8]}, "at least two stages"),
        ({"decoder_layers": 0}, "decoder_layers"),
    ],
)
def test_bad_heads(changes, message):
    with pytest.raises(UserError, match=message):
        HEAD(**({"in_channels": [8, 16, 32, 64], "num_classes": 5} | changes))
