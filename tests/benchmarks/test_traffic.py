"""The traffic of a training step, counted without a device."""

import torch

from benchmarks.traffic import count
from src.models.layers import precision


def test_casts_of_a_step(monkeypatch):
    monkeypatch.setattr(precision, "autocast_dtype_of_meta", None)
    traffic = count("internimage_nano", batch=2, image_size=64, drop_path=0.1)
    blocks = traffic.launches["dcnv3"]
    assert blocks > 1
    assert traffic.launches["_foreach_copy_"] == 2 * blocks
    # What is left: stem, norms between blocks, downsampling and head.
    assert traffic.launches["_to_copy"] < 70
    assert traffic.bytes["mm"] > 0


def test_float32_is_counted_as_four_bytes():
    from benchmarks.traffic import Traffic

    x = torch.empty(8, 1, device="meta").expand(8, 16)
    with Traffic() as traffic:
        _ = x.view(8, 16) + torch.empty(8, 16, device="meta")
    assert traffic.launches == {"add": 1}
    assert traffic.bytes["add"] == 4 * (8 + 2 * 8 * 16)
