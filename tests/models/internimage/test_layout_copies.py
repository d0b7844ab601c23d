"""The DCNv3 module moves no map in memory and does one matrix product per projection."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.models.internimage.dcnv3 import DCNv3


class Recorder(TorchDispatchMode):
    """Names of the operators that run, and sizes of those that copy."""

    def __init__(self):
        super().__init__()
        self.names, self.copied = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::")
        self.names.append(name)
        if name in ("clone", "copy_", "_to_copy", "contiguous", "repeat"):
            self.copied.append((name, args[0].numel()))
        return result


@pytest.mark.parametrize("center_feature_scale", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_layout_copies(center_feature_scale, dtype):
    torch.manual_seed(0)
    module = DCNv3(32, 2, center_feature_scale=center_feature_scale)
    x = torch.randn(2, 9, 9, 32, requires_grad=True)
    with Recorder() as forward, torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = module(x)
    copies = [size for name, size in forward.copied if name != "_to_copy" and size >= x.numel()]
    assert copies == []
    if dtype is None:
        assert forward.copied == []
    # input, offset and mask together, output; the gate of the centre
    operators = "addmm", "mm", "linear", "mkldnn::_linear_pointwise"
    products = [name for name in forward.names if name in operators]
    assert len(products) == 3 + center_feature_scale
    assert forward.names.count("internimage::dcnv3") == 1
    assert forward.names.count("lerp.Tensor") == center_feature_scale
    assert output.is_contiguous()
