"""Weights from checkpoints with low-rank factors."""

import pytest
import torch

from src.cli.commands.consolidate import official
from src.models import InternImage
from src.models.weights.merging import merged_state
from src.models.weights.names import official_names

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


def test_consolidated_weights_have_official_names_and_no_factors():
    arguments = {"channels": 8, "depths": [1, 1], "groups": [1, 2]}
    network = InternImage(3, **arguments)
    names = official_names(network)
    network.add_low_rank(2)
    for name, parameter in network.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter)
    state = network.state_dict()
    settings = {"class_path": "InternImage", "init_args": arguments}
    content = {
        "state_dict": {f"network.{name}": value for name, value in state.items()},
        "hyper_parameters": {"network": settings, "num_classes": 3},
    }
    found = official(content)["model"]
    assert {names[name]: value.shape for name, value in merged_state(state).items()} == {
        name: value.shape for name, value in found.items()
    }
    layer = "levels.0.blocks.0.mlp.fc1"
    factors = f"{layer}.parametrizations.weight."
    expected = state[f"{factors}original"] + state[f"{factors}0.up"] @ state[f"{factors}0.down"]
    torch.testing.assert_close(found[names[f"{layer}.weight"]], expected)
