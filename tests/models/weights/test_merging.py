"""Weights from checkpoints with low-rank factors."""

import pytest
import torch

from src.models.weights.merging import merged_state

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("factors", DTYPES)
def test_factors_may_have_another_dtype_than_the_weight(weights, factors):
    torch.manual_seed(0)
    original = torch.randn(6, 4).to(weights)
    up, down = torch.randn(6, 2).to(factors), torch.randn(2, 4).to(factors)
    name = "fc.parametrizations.weight."
    state = {f"{name}original": original, f"{name}0.up": up, f"{name}0.down": down}
    (merged,) = merged_state(state).values()
    assert merged.dtype == weights
    expected = original.double() + up.double() @ down.double()
    tolerance = max(torch.finfo(weights).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(merged.double(), expected, rtol=tolerance, atol=tolerance)
