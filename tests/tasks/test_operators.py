"""The operators of a network, as the report of a run names them."""

import pytest
from torch import nn

from src.models import InternImage
from src.models.layers.deformable_attention import MultiScaleDeformableAttention
from src.tasks.operators import operators_of


@pytest.mark.parametrize("operator", ["DCNv3", "DCNv4"])
def test_the_operators_of_a_network(operator: str) -> None:
    shape = {"channels": 32, "depths": [1, 1, 1, 1], "groups": [2, 4, 8, 16]}
    network = InternImage(num_classes=2, core_op=operator, **shape)
    assert operators_of(network) == [operator]
    more = nn.ModuleList([network, MultiScaleDeformableAttention(32)])
    assert operators_of(more) == [operator, "ms_deform_attn"]
    assert operators_of(nn.Linear(1, 1)) == []
