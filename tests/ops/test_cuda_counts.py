"""What the emulator counts of the CUDA kernels on maps of InternImage: additions, bank conflicts.

On one image and a device with one multiprocessor and the shared memory of sm_90, which is cut into
blocks as a large batch on a whole one.
"""

import pytest
import torch
from cuda_emulator import COMPILER, Emulator, Libraries
from dcnv3_cases import make_problem
from gpu_cases import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="the emulator is compiled with g++"),
]
# Height and width, groups, channels of a group.
STAGES = {"T.s1": (56, 4, 16), "T.s3": (14, 16, 16), "H.s3": (14, 40, 32)}


@pytest.fixture(scope="module")
def libraries(request):
    return Libraries(request.config.cache.mkdir("cuda_emulator"))


def additions_of_corners(problem, group_channels):
    """Additions of four channels if every corner of every point went to global memory."""
    n, height, width, _ = problem.offset.shape
    offset = problem.offset.double().view(n, height, width, -1, 3, 3, 2)
    taps = torch.arange(-1, 2)
    x = torch.arange(width)[:, None, None, None] + taps[:, None] + offset[..., 0]
    y = torch.arange(height)[:, None, None, None, None] + taps + offset[..., 1]
    counts = (x > -1) & (x < width) & (y > -1) & (y < height)
    inside = [
        [(at.floor() + side >= 0) & (at.floor() + side < size) for side in (0, 1)]
        for at, size in ((x, width), (y, height))
    ]
    corners = sum(int((counts & a & b).sum()) for a in inside[0] for b in inside[1])
    return corners * group_channels // 4


@pytest.mark.parametrize("std", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("stage", STAGES)
def test_additions_and_bank_conflicts(libraries, stage, std):
    side, groups, channels = STAGES[stage]
    problem = make_problem(
        n=1, height=side, width=side, groups=groups, group_channels=channels,
        offset_std=std, dtype=torch.bfloat16, mask_softmax=True,
    )  # fmt: skip
    emulator = Emulator(libraries, counting=True, block_shared=227 * 1024)
    run(emulator, problem)
    before = additions_of_corners(problem, channels)
    after = emulator.counts["emulate_backward"].additions
    print(f"{stage} std {std}: {before} additions before, {after} after")
    if side == 14:
        assert after == 0
    else:
        assert after * (8 if std < 8 else 1) <= before
    for direction in ("forward", "backward"):
        counts = emulator.counts[f"emulate_{direction}"]
        ratio = counts.wavefronts / counts.conflict_free
        print(f"{stage} std {std} {direction}: {ratio:.3f} wavefronts per conflict-free one")
        assert ratio <= 1.1
