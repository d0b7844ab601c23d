"""Sampling locations, padding and initial values of the attention module."""

import pytest
import torch

from src.errors import UserError
from src.models.layers.deformable_attention import MultiScaleDeformableAttention

SHAPES = [(4, 6), (2, 3)]
PIXELS = 4 * 6 + 2 * 3


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return MultiScaleDeformableAttention(channels=16, heads=4, levels=2, points=3)


def test_official_names_and_initial_offsets_in_four_directions(attention):
    names = {name.split(".")[0] for name, _ in attention.named_parameters()}
    assert names == {"sampling_offsets", "attention_weights", "value_proj", "output_proj"}
    initial = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point in range(3):
        for level in range(2):
            torch.testing.assert_close(
                initial[:, level, point].detach(), expected * (point + 1), atol=1e-6, rtol=0
            )


def test_offsets_are_in_pixels_for_points_and_in_half_sizes_for_boxes(attention):
    query = torch.zeros(1, 1, 16)
    points = torch.full((1, 1, 2, 2), 0.5)
    found = attention._locations(query, points, SHAPES)
    assert found[0, 0, 0, 0, :, 0].tolist() == pytest.approx([0.5 + k / 6 for k in (1, 2, 3)])
    assert found[0, 0, 1, 1, :, 1].tolist() == pytest.approx([0.5 + k / 2 for k in (1, 2, 3)])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(1, 1, 2, 4)
    found = attention._locations(query, boxes, SHAPES)
    assert found[0, 0, 0, 0, :, 0].tolist() == pytest.approx([0.5 + k / 3 * 0.1 for k in (1, 2, 3)])


def test_padding_counts_as_zero(attention):
    query, value = torch.randn(2, 5, 16), torch.randn(2, PIXELS, 16)
    references = torch.rand(2, 5, 2, 2)
    padding = torch.zeros(2, PIXELS, dtype=torch.bool)
    padding[:, 10:] = True
    other = value.clone()
    other[:, 10:] = 1e3
    results = [attention(query, references, v, SHAPES, padding) for v in (value, other)]
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0], attention(query, references, value, SHAPES))


def test_16_bit(attention):
    query, value = torch.randn(2, 5, 16), torch.randn(2, PIXELS, 16)
    references = torch.rand(2, 5, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(query, references, value, SHAPES)
    torch.testing.assert_close(
        half.float(), attention(query, references, value, SHAPES), atol=0.05, rtol=0.05
    )


def test_meta_and_compile(attention):
    inputs = (torch.randn(2, 5, 16), torch.rand(2, 5, 2, 4), torch.randn(2, PIXELS, 16), SHAPES)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), attention(*inputs))
    with torch.device("meta"):
        meta = MultiScaleDeformableAttention(channels=16, heads=4, levels=2, points=3)
    assert meta(*(x.to("meta") for x in inputs[:3]), SHAPES).shape == (2, 5, 16)


def test_channels_that_heads_do_not_divide():
    with pytest.raises(UserError, match="channels=10 and heads=4"):
        MultiScaleDeformableAttention(channels=10, heads=4)
