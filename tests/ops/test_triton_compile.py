"""Local memory and wide instructions of the Triton kernels, compiled without a GPU."""

import re
import subprocess

import pytest
import torch
from dcnv3_cases import cuobjdump

compile_kernel = pytest.importorskip("triton_compiler").compile_kernel
GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget

pytestmark = pytest.mark.slow
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
DIRECTIONS = ["forward", "backward", "backward_input"]
VARIANTS = [{"channels": channels} for channels in (1, 8, 20, 32, 64)]
VARIANTS += [{"remove_center": True}, {"kernel_size": 7}, {"wide": True}, {"deterministic": True}]
VARIANTS += [{"side": side} for side in (14, 7, 1)]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def disassemble(tmp_path):
    """Compile for an NVIDIA GPU: registers and bytes of local memory, and SASS."""

    def run(direction, arch, *arguments, **variant):
        cubin = tmp_path / "kernel.cubin"
        code = compile_kernel(direction, GPUTarget("cuda", arch, 32), *arguments, **variant)
        cubin.write_bytes(code["cubin"])
        usage, sass = (
            subprocess.run([cuobjdump(), flag, cubin], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        )
        registers, *local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage.stdout).groups()
        print(f"{direction} sm_{arch} {arguments} {variant}: {registers} registers, local {local}")
        return [int(size) for size in local], sass.stdout

    return run


def assert_registers_suffice(local, sass):
    """Check that no registers are spilled to local memory."""
    assert local == [0, 0]
    assert re.findall(r"\b(?:LDL|STL)\b.*", sass) == []


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nvidia_needs_no_local_memory(disassemble, dtype, arch):
    for direction in DIRECTIONS:
        local, sass = disassemble(direction, arch, dtype)
        assert_registers_suffice(local, sass)
        if direction != "backward_input":
            assert "LDG.E.128" in sass
    if arch >= 90 and dtype != torch.float64:
        assert re.search(r"REDG?\.E\.ADD\.F32x4", sass)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_nvidia_needs_no_local_memory_for_other_shapes(disassemble, variant):
    for direction in DIRECTIONS:
        assert_registers_suffice(*disassemble(direction, 90, torch.bfloat16, **variant))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_amd(direction):
    code = compile_kernel(direction, GPUTarget("hip", "gfx942", 64), torch.bfloat16)
    assert "hsaco" in code
