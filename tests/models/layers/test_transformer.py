"""Parts of transformers: positions, attention, feed-forward layer."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from src.errors import UserError
from src.models.layers.transformer import (
    FeedForward,
    MultiheadAttention,
    sine_encoding,
    sine_positions,
)


def test_sine_and_cosine_of_falling_frequencies():
    encoded = sine_encoding(torch.tensor([0.0, 1.5], dtype=torch.float64), 6, temperature=100.0)
    frequencies = [100.0 ** (-2 * i / 6) for i in range(3)]
    expected = [f(1.5 * w) for w in frequencies for f in (math.sin, math.cos)]
    assert encoded[0].tolist() == [0, 1] * 3
    assert_close(encoded[1], torch.tensor(expected, dtype=torch.float64))


def test_rows_come_first_then_columns():
    like = torch.zeros((), dtype=torch.float64)
    grid = sine_positions((3, 5), 8, like).unflatten(0, (3, 5))
    assert torch.equal(grid[1, :, :4], grid[1, :1, :4].expand(5, 4))  # one row, one code
    assert torch.equal(grid[:, 2, 4:], grid[:1, 2, 4:].expand(3, 4))
    angle = 2 / (3 + 1e-6) * 2 * math.pi  # the second of three rows
    assert grid[1, 0, 0].item() == pytest.approx(math.sin(angle))
    assert grid[1, 0, 1].item() == pytest.approx(math.cos(angle))


def test_half_precision_positions_are_rounded_once():
    half = sine_positions((40, 60), 16, torch.zeros((), dtype=torch.float16))
    full = sine_positions((40, 60), 16, torch.zeros(()))
    assert torch.equal(half, full.half())


@pytest.fixture
def pair():
    """Our attention and PyTorch's with the same parameters."""
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours.double(), theirs.double()


def test_attention_is_pytorchs(pair):
    ours, theirs = pair
    query, key, value = (torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 7, 7))
    visible = torch.rand(2, 5, 7) < 0.5
    visible[..., 0] = True
    blocked = ~visible.repeat_interleave(4, dim=0)
    assert_close(ours(query, key, value), theirs(query, key, value)[0])
    assert_close(ours(query, key, value, visible), theirs(query, key, value, attn_mask=blocked)[0])


def test_hidden_tokens_do_not_matter(pair):
    ours, _ = pair
    query, key = torch.randn(1, 3, 16).double(), torch.randn(1, 4, 16).double()
    visible = torch.tensor([True, True, False, True]).expand(1, 3, 4)
    changed = key.clone()
    changed[:, 2] = 9.0
    assert_close(ours(query, key, key, visible), ours(query, changed, changed, visible))


def test_start_values():
    attention, ffn = MultiheadAttention(64, 8), FeedForward(64, 256)
    assert not attention.in_proj_bias.any()
    assert attention.in_proj_weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.05)
    assert ffn.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 320), rel=0.05)


def test_widths_that_do_not_fit():
    with pytest.raises(UserError, match="channels=10 and heads=4"):
        MultiheadAttention(10, 4)
