"""The GPU benchmarks as far as they go without a GPU."""

import subprocess
import sys

import pytest
import torch
from dcnv3_cases import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_peers
import op_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
@pytest.mark.parametrize("name", ["op_gpu", pytest.param("model_gpu", marks=pytest.mark.slow)])
def test_without_a_gpu_they_say_so_in_one_sentence(name):
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    message = f"{name}.py needs a CUDA device, and PyTorch sees none here.\n"
    assert result.stderr.endswith(message)
    assert "Traceback" not in result.stderr


def test_shapes_are_the_stages_of_the_networks():
    all_shapes = list(op_gpu.shapes([*op_gpu.MODELS], [*op_gpu.INPUTS]))
    assert len(all_shapes) == 3 * 4 * 4
    assert ("T.s1@224", 56, 56, 64, 4) in all_shapes
    assert ("T.s4@coco", 25, 42, 512, 32) in all_shapes
    assert ("H.s3@640", 40, 40, 1280, 40) in all_shapes
    assert all(channels // groups in (16, 32) for *_, channels, groups in all_shapes)


def test_packed_layout_of_the_peers():
    """Per group 18 offsets, then 9 masks; rows padded to a multiple of 8."""
    offset = torch.arange(36.0).view(1, 1, 1, 36)
    mask = 100 + torch.arange(18.0).view(1, 1, 1, 18)
    packed = gpu_peers.pack(offset, mask, 2)[0, 0, 0]
    assert packed.shape == (56,)
    assert packed[:18].tolist() == list(range(18))
    assert packed[18:27].tolist() == list(range(100, 109))
    assert packed[27:29].tolist() == [18, 19]
    assert packed[54:].tolist() == [0, 0]
    weights = gpu_peers.softmax(mask, 2).view(2, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))


def test_report_and_means():
    times = {"ours": 1.0, "plain": 8.0, "official": 2.0}
    row = {"shape": "T.s1@224", "batch": 1, "dtype": "fp16", "share": dict.fromkeys(times, 0.5)}
    row |= {"forward": times, "forward_backward": times, "share": {}}
    row["share"] = dict.fromkeys(op_gpu.DIRECTIONS, 0.5)
    half = {**row, "forward": {"ours": 1.0, "plain": 2.0}}
    means = op_gpu.geometric_means([row, half], gpu_peers.PATHS)
    assert means["plain"]["forward"] == pytest.approx(4.0)
    assert means["official"] == {"forward": 2.0, "forward_backward": 2.0}
    text = op_gpu.report(
        {
            "command": "python benchmarks/op_gpu.py",
            "machine": {"gpu": "none"},
            "not importable": {"DCNv4": "No module named 'DCNv4'"},
            "geometric mean": means,
            "paths": [*times],
            "rows": [row, half],
        }
    )
    assert "| T.s1@224 | 1 | fp16 | 1.0000 | 2.0000 | - | 50% |" in text
    assert "| official | 2.00x | 2.00x |" in text
