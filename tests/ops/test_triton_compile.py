"""What Triton makes of its kernels for GPUs that are not here: spills, NVIDIA and AMD."""

import re
import subprocess

import pytest
from dcnv3_cases import cuobjdump, run_python

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

TRITON = """
import subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch
from src.ops._arguments import make_window
from src.ops.triton import kernels, launch

target = GPUTarget({target})
dtype = {dtype}
x = torch.empty(1, 8, 8, 64, dtype=dtype, device="meta")
window = make_window(4, 3, 1, 1, 1, 1.0, remove_center=False, mask_softmax=True)
constants = launch._constants(x, window) | {{"WIDE": False}}
name = {{torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}}[dtype]
sums = "fp64" if dtype == torch.float64 else "fp32"
pointers = {{
    "forward": dict.fromkeys(["input", "offset", "mask", "output"], f"*{{name}}"),
    "backward": dict.fromkeys(["grad", "input", "offset", "mask", "grad_offset", "grad_mask"],
                              f"*{{name}}")
    | {{"unit": "*fp64", "grad_input": f"*{{sums}}", "scratch": f"*{{sums}}"}},
}}
wants = dict.fromkeys(["WANT_INPUT", "WANT_OFFSET", "WANT_MASK"], True) | {{"DETERMINISTIC": False}}
for direction, types in pointers.items():
    kernel = getattr(kernels, direction)
    fixed = constants | (wants if direction == "backward" else {{}})
    signature = {{}}
    for argument in kernel.arg_names:
        signature[argument] = "constexpr" if argument in fixed else types.get(argument, "i32")
    aligned = [i for i, a in enumerate(kernel.arg_names) if a in types]
    aligned = {{(i,): [["tt.divisibility", 16]] for i in aligned}}
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
    binary = triton.compile(source, target=target)
    print(direction, sorted(binary.asm))
    if target.backend == "cuda":
        path = Path({folder!r}) / f"{{direction}}.cubin"
        path.write_bytes(binary.asm["cubin"])
        print((binary.asm["ptx"].count("v4.f32"), binary.asm["ptx"].count("ld.global")))
"""


def spills_in_loops(sass):
    """Instructions on local memory inside a loop: what is put aside around it costs nothing."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\d+ +)?[A-Z].*?);", sass)
    code = [(int(address, 16), text) for address, text in lines]
    jumps = ((at, re.search(r"BRA.* 0x([0-9a-f]+)", text)) for at, text in code)
    loops = [(int(jump[1], 16), at) for at, jump in jumps if jump and int(jump[1], 16) < at]
    assert loops
    local = [(at, text) for at, text in code if re.search(r"\b(?:LDL|STL)\b", text)]
    return [text for at, text in local if any(start <= at <= end for start, end in loops)]


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float32", "torch.float64"])
def test_triton_compiles_for_nvidia_without_spills_in_loops(tmp_path, dtype):
    code = TRITON.format(target="'cuda', 90, 32", dtype=dtype, folder=str(tmp_path))
    result = run_python(code, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr[-3000:]
    for direction in ("forward", "backward"):
        cubin = str(tmp_path / f"{direction}.cubin")
        usage, code = (
            subprocess.run([cuobjdump(), flag, cubin], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        )
        print(direction, dtype, re.findall(r"REG:\d+ STACK:\d+", usage.stdout))
        assert spills_in_loops(code.stdout) == []
        assert "LDG.E.128" in code.stdout
    assert dtype == "torch.float64" or "RED.E.ADD.F32x4" in code.stdout.replace("REDG", "RED")


def test_triton_compiles_for_amd(tmp_path):
    code = TRITON.format(target="'hip', 'gfx942', 64", dtype="torch.bfloat16", folder=str(tmp_path))
    result = run_python(code, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "hsaco" in result.stdout
