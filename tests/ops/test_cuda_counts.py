"""What the emulator counts of the CUDA kernels on maps of InternImage: additions, bank conflicts.

On one image and a device with one multiprocessor and the shared memory of sm_90, which is cut into
blocks as a large batch on a whole one.
"""

import pytest
import torch
from cuda_emulator import COMPILER, Emulator, Libraries
from dcnv3_cases import make_problem
from gpu_cases import STAGES, additions_of_corners, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="the emulator is compiled with g++"),
]


@pytest.fixture(scope="module")
def libraries(request):
    return Libraries(request.config.cache.mkdir("cuda_emulator"))


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
