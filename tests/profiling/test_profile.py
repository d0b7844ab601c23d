"""Parameters, MACs and activation memory of the variants."""

import json
from functools import cache

import pytest
import timm
import torch

from src.cli.commands.profile import main
from src.errors import UserError
from src.ops import cpu_linear, fused
from src.profiling import profile
from src.profiling.profile import (
    PUBLISHED_MACS,
    Macs,
    count_macs,
    count_parameters,
    measure_activations,
)

STATS = [
    ("internimage_t", 224),
    ("internimage_s", 224),
    ("internimage_b", 224),
    ("internimage_l", 224),
    ("internimage_l", 384),
    ("internimage_xl", 224),
    ("internimage_xl", 384),
    ("internimage_h", 224),
    ("internimage_h", 384),
    ("internimage_h", 640),
    ("internimage_g", 224),
    ("internimage_g", 512),
]


@pytest.fixture(scope="module")
def stats(fixtures_dir):
    return json.loads((fixtures_dir / "model_stats.json").read_text())["models"]


def meta_image(size, batch=1):
    return torch.empty(batch, 3, size, size, device="meta")


@cache
def meta_network(variant):
    with torch.device("meta"):
        return timm.create_model(variant)


@cache
def macs_of(variant, size):
    return count_macs(meta_network(variant), meta_image(size))


def test_a_layer_of_ones_own_adds_its_rule():
    class Shift(torch.nn.Module):
        def forward(self, x):
            return x.roll(1, dims=-1)

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Shift())
    image = meta_image(8)
    assert count_macs(network.to("meta"), image) == Macs(conv=8 * 8 * 4 * 3)
    profile.macs_of.register(Shift, lambda module, inputs, output: Macs(sampling=output.numel()))
    assert count_macs(network, image).sampling == 8 * 8 * 4


def test_every_official_count_is_checked(stats):
    assert [(v, int(size)) for v in stats for size in stats[v]["flops"]] == STATS


@pytest.mark.parametrize(("variant", "size"), STATS)
def test_macs_equal_the_official_counts(stats, variant, size):
    """Counted independently: the official network under PyTorch's FLOP counter."""
    macs = macs_of(variant, size)
    expected = stats[variant]["flops"][str(size)]
    assert macs.conv == expected["conv2d_module_macs"]
    assert macs.linear == expected["linear_module_macs"]
    assert macs.modules + macs.products == expected["matmul_conv_macs"]
    assert macs.sampling == expected["dcnv3_core_official_5nkc"]
    assert macs.total == expected["total_macs_plus_dcn"]
    assert count_parameters(meta_network(variant)) == stats[variant]["num_params"]


@pytest.mark.parametrize(
    ("variant", "size", "giga"),
    [
        ("internimage_t", 224, 5),
        ("internimage_s", 224, 8),
        ("internimage_b", 224, 16),
        ("internimage_l", 384, 108),
        ("internimage_xl", 384, 163),
        ("internimage_h", 640, 1478),
        ("internimage_g", 512, 2700),
    ],
)
def test_published_figures_follow_from_their_rule(variant, size, giga):
    published = PUBLISHED_MACS[variant, size]
    macs = macs_of(variant, size)
    assert published.text == f"{giga}G"
    assert published.compute(macs) == giga


def test_h_at_224_differs_from_the_paper():
    """The paper prints 188G; no count of products and sampling comes to it."""
    macs = macs_of("internimage_h", 224)
    published = PUBLISHED_MACS["internimage_h", 224]
    assert (published.text, published.compute) == ("188G", None)
    assert round(macs.total / 1e9, 1) == 182.9


def test_macs_scale_with_the_batch():
    network = meta_network("internimage_nano")
    one, three = (count_macs(network, meta_image(64, batch)) for batch in (1, 3))
    assert three.total == 3 * one.total


def test_activations_on_meta_are_those_of_a_real_step(monkeypatch):
    has_kernels = fused.is_available(torch.ones(1))
    monkeypatch.setattr(fused, "is_available_on_meta", has_kernels)
    # The meta device stands for a GPU, where an MLP is not one operator.
    monkeypatch.setattr(cpu_linear, "HAS_KERNELS", False)
    real = timm.create_model("internimage_nano", drop_path_rate=0.0)
    with torch.device("meta"):
        meta = timm.create_model("internimage_nano", drop_path_rate=0.0)
    on_cpu = measure_activations(real, torch.randn(2, 3, 64, 64))
    on_meta = measure_activations(meta, meta_image(64, 2))
    # Real kernels may keep small extras such as a mask of a norm.
    assert on_meta.plain == pytest.approx(on_cpu.plain, rel=0.02)
    assert on_meta.checkpointed == pytest.approx(on_cpu.checkpointed, rel=0.02)
    assert on_meta.checkpointed < on_meta.plain / 4
    assert 0 < on_meta.recomputed < on_meta.plain


def test_activations_grow_with_the_area():
    """A constant part remains: concatenated offset and mask weights."""
    with torch.device("meta"):
        network = timm.create_model("internimage_nano", drop_path_rate=0.0)
    kept = [measure_activations(network, meta_image(size)).plain for size in (64, 128, 192)]
    expected = (192**2 - 128**2) / (128**2 - 64**2)
    assert (kept[2] - kept[1]) / (kept[1] - kept[0]) == pytest.approx(expected)
    hidden = 4 * 32 * 16 * 16 * 4  # bytes of one MLP map: 4 x 32 channels, 16 x 16, float32
    assert kept[0] > 2 * 2 * hidden  # two blocks in the first stage, before and after GELU


def test_command(capsys):
    assert main(["--model", "internimage_t", "--size", "224"]) == 0
    text = capsys.readouterr().out
    assert "29,918,424  (published: 30M)" in text
    assert "4.885 GMACs" in text
    assert "5G        (modules + sampling, rounded: 5G)" in text
    assert "to recompute the largest block" in text


def test_command_with_several_sizes(capsys):
    assert main(["--model", "internimage_nano", "--size", "32", "64", "--batch", "2"]) == 0
    text = capsys.readouterr().out
    assert "32 x 32, batch 2" in text
    assert "64 x 64, batch 2" in text
    assert "published" not in text


def test_command_refuses_unknown_models():
    with pytest.raises(UserError, match=r"Unknown model 'resnet50'.*internimage_t"):
        main(["--model", "resnet50"])
    with pytest.raises(UserError, match="at least 1"):
        main(["--model", "internimage_t", "--size", "0"])
