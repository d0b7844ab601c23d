"""The traffic of a training step, counted without a device."""

import pytest
import torch

from benchmarks.traffic import Traffic, count
from src.models.layers import precision
from src.ops import fused


@pytest.fixture
def traffic(monkeypatch):
    """Traffic of a step of a small network."""
    monkeypatch.setattr(precision, "autocast_dtype_of_meta", None)
    monkeypatch.setattr(fused, "is_available_on_meta", False)
    return count("internimage_nano", batch=2, image_size=64, drop_path=0.1)


def test_casts_of_a_step(traffic):
    blocks = traffic.launches["dcnv3"]
    assert blocks > 1
    assert traffic.launches["_foreach_copy_"] == 2 * blocks
    # What is left: stem, norms between blocks, downsampling, head, and sums of gradients.
    assert traffic.launches["_to_copy"] < 70 + 4 * blocks
    assert traffic.bytes["mm"] > 0


def test_fused_passes_of_a_step(traffic):
    """Norms and GELU of all blocks and of the stem, and no copies but that of the images."""
    blocks = traffic.launches["dcnv3"]
    for name in ("layer_norm", "layer_norm_backward"):
        assert traffic.launches[name] == 3 * blocks + 1
    for name in ("bias_gelu", "bias_gelu_backward"):
        assert traffic.launches[name] == blocks
    assert traffic.launches["clone"] == 1


def test_what_is_overwritten_is_not_read():
    x = torch.empty(8, device="meta")
    with Traffic() as traffic:
        x.new_ones(2).copy_(x[:2])
    assert traffic.bytes == {"new_ones": 4 * 2, "copy_": 2 * 4 * 2}


def test_float32_is_counted_as_four_bytes():
    x = torch.empty(8, 1, device="meta").expand(8, 16)
    with Traffic() as traffic:
        _ = x.view(8, 16) + torch.empty(8, 16, device="meta")
    assert traffic.launches == {"add": 1}
    assert traffic.bytes["add"] == 4 * (8 + 2 * 8 * 16)
