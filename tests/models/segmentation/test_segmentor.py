"""Segmentor: its parts, its outputs, its weights."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.errors import UserError
from src.models import InternImageBackbone
from src.models.segmentation import (
    Segmentor,
    SlidingWindow,
    image_probabilities,
    probability_strips,
    slide_logits,
)
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.upernet import UPerHead
from src.models.weights import load_official, to_official

TINY = partial(InternImageBackbone, channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))
HEADS = {
    "decode_head": partial(UPerHead, channels=16),
    "auxiliary_head": partial(FCNHead, channels=8),
}


def tiny(num_classes=5, **changes):
    return Segmentor(num_classes, TINY, **(HEADS | changes))


def test_training_gives_both_heads_and_evaluation_one():
    network = tiny()
    image = torch.randn(2, 3, 37, 50)
    outputs = network.train()(image)
    assert set(outputs) == {"out", "aux"}
    assert all(logits.shape == (2, 5, 37, 50) for logits in outputs.values())
    assert set(network.eval()(image)) == {"out"}


def test_no_auxiliary_head():
    network = tiny(auxiliary_head=None)
    assert set(network(torch.randn(2, 3, 32, 32))) == {"out"}
    assert not any("auxiliary" in name for name in network.state_dict())


def test_every_parameter_is_trained():
    network = tiny()
    loss = sum(logits.square().mean() for logits in network(torch.randn(2, 3, 64, 64)).values())
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_meta_device_then_real():
    with torch.device("meta"):
        network = tiny()
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    logits = network.eval()(torch.randn(1, 3, 32, 32))["out"]
    assert logits.isfinite().all()
    assert network.decode_head.conv_seg.weight.detach().std() == pytest.approx(0.01, rel=0.3)
    assert not network.decode_head.conv_seg.bias.any()


def test_official_names_and_back():
    network = tiny()
    official = to_official(network)
    assert "decode_head.psp_modules.0.1.conv.weight" in official
    assert "auxiliary_head.convs.0.bn.running_mean" in official
    other = tiny()
    report = load_official(other, {"state_dict": official})
    assert not report.fresh
    assert not report.unused
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_half_precision_file(tmp_path):
    network = tiny()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_var.uniform_(0.5, 2)
    half = {k: v.half() if v.is_floating_point() else v for k, v in to_official(network).items()}
    torch.save({"meta": {}, "state_dict": half}, tmp_path / "upernet.pth")
    other = tiny()
    load_official(other, tmp_path / "upernet.pth")
    assert all(p.dtype == torch.float32 for p in other.parameters())
    loaded = other.decode_head.bottleneck.bn.running_var
    assert torch.equal(loaded, network.decode_head.bottleneck.bn.running_var.half().float())


def test_weights_of_other_classes_start_the_class_layers_fresh(caplog):
    official = to_official(tiny(150))
    network = tiny(5)
    report = load_official(network, official)
    fresh = {name.rpartition(".")[0] for name in report.fresh}
    assert fresh == {"decode_head.conv_seg", "auxiliary_head.conv_seg"}
    assert "has 150 classes, the network 5" in caplog.text
    assert torch.equal(
        network.decode_head.bottleneck.conv.weight, official["decode_head.bottleneck.conv.weight"]
    )


def test_heads_of_another_width_are_refused():
    official = to_official(tiny())
    wide = tiny(decode_head=partial(UPerHead, channels=24))
    with pytest.raises(UserError, match="decode_head"):
        load_official(wide, official)


def test_backbone_weights_alone():
    from src.models import InternImage

    classifier = InternImage(10, channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))
    network = tiny()
    report = load_official(network, {"model": to_official(classifier)})
    assert {name.split(".")[0] for name in report.fresh} == {"decode_head", "auxiliary_head"}
    stem = network.backbone.patch_embed.conv1.weight
    assert torch.equal(stem, classifier.patch_embed.conv1.weight)


@pytest.mark.parametrize(
    ("head", "changes", "message"),
    [
        (UPerHead, {"in_channels": [8]}, "at least two stages"),
        (UPerHead, {"channels": 0}, "channels=0"),
        (UPerHead, {"pool_scales": ()}, "pool_scales"),
        (FCNHead, {"in_index": 4}, "in_index"),
        (FCNHead, {"num_convs": 0}, "num_convs=0"),
    ],
)
def test_bad_heads(head, changes, message):
    with pytest.raises(UserError, match=message):
        head(**({"in_channels": [8, 16, 32, 64], "num_classes": 5} | changes))


class Ramp(nn.Module):
    """Scores class 1 by the brightness of the first channel, class 0 by its negative."""

    def forward(self, image):
        return {"out": torch.stack([-image[:, 0], image[:, 0]], dim=1)}


def test_scores_have_32_bits_whatever_the_network_computes_with():
    network, image = tiny().eval(), torch.randn(1, 3, 64, 96)
    window = SlidingWindow((64, 64), (32, 32))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(image)["out"].dtype == torch.float32
        assert network.decode_head(network.backbone(image)).dtype == torch.bfloat16
        assert slide_logits(network, image, window).dtype == torch.float32


def test_views_are_averaged_as_probabilities_and_flips_are_undone():
    image = torch.linspace(-2, 2, 12).expand(1, 3, 4, 12)
    one = image_probabilities(Ramp(), [image], (4, 12))
    assert (one.argmax(1)[0, 0] == (torch.arange(12) >= 6).long()).all()
    both = image_probabilities(Ramp(), [image, image.flip(-1)], (4, 12), flipped=[False, True])
    torch.testing.assert_close(both, one)
    mixed = image_probabilities(Ramp(), [image, 3 * image], (4, 12))
    tripled = image_probabilities(Ramp(), [3 * image], (4, 12))
    torch.testing.assert_close(mixed, (one + tripled) / 2)


@pytest.mark.parametrize("size", [(20, 20), (48, 30), (33, 64)])
def test_windows_cover_every_pixel(size):
    window = SlidingWindow(crop_size=(32, 32), stride=(21, 21))
    image = torch.randn(1, 3, *size)
    torch.testing.assert_close(
        image_probabilities(Ramp(), [image], size, window=window),
        image_probabilities(Ramp(), [image], size),
    )


def test_windows_must_overlap_or_touch():
    with pytest.raises(UserError, match="stride"):
        SlidingWindow(crop_size=(32, 32), stride=(33, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("view", "size"),
    [((32, 48), (77, 61)), ((512, 9), (3001, 20)), ((40, 30), (40, 33)), ((64, 50), (40, 50))],
)
def test_strips_of_large_images_are_rows_of_the_whole(view, size, dtype):
    torch.manual_seed(0)
    image = torch.randn(2, 3, *view, dtype=dtype)
    resized = F.interpolate(Ramp()(image)["out"], size=size, mode="bilinear")
    top = 0
    for rows, probabilities in probability_strips(Ramp(), [image], size, max_values=40 * size[1]):
        assert rows.start == top
        top = rows.stop
        expected = resized[:, :, rows].softmax(dim=1)
        # PyTorch's float32 rounds the place of a row to about 1e-4, not always in the same way.
        atol = 1e-12 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=atol)
    assert top == size[0]


@pytest.mark.parametrize(
    "options",
    [
        {"flipped": [False, True]},
        {"content_size": (20, 30)},
        {"window": SlidingWindow(crop_size=(16, 16), stride=(11, 11))},
    ],
)
def test_strips_know_views_margins_and_windows(options):
    image, size = torch.randn(1, 3, 32, 40), (50, 70)
    views = [image, image.flip(-1)] if "flipped" in options else [image]
    parts = [
        probabilities
        for _, probabilities in probability_strips(Ramp(), views, size, max_values=700, **options)
    ]
    assert len(parts) == 10
    whole = image_probabilities(Ramp(), views, size, **options)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-5)


def test_many_large_views_of_a_small_image_are_added_up_one_by_one():
    views = [torch.randn(1, 3, 32, 40)] * 6
    strips = list(probability_strips(Ramp(), views, (30, 40), max_values=80))
    assert [rows for rows, _ in strips] == [slice(0, 30)]


def test_an_image_needs_a_view():
    with pytest.raises(UserError, match="at least one view"):
        image_probabilities(Ramp(), [], (4, 4))
