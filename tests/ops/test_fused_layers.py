"""LayerNorm and GELU with what surrounds them: in Triton's interpreter, on a device, compiled."""

import json
import os
import re
import subprocess
import sys

import fused_cases
import pytest
import torch
from dcnv3_cases import ROOT, run_python
from fused_cases import OPTIONS, WRAPPERS

pytest.importorskip("triton")

DTYPES = ["float64", "float32", "float16", "bfloat16"]
SHAPES = [(2, 5, 7, 64), (33, 20), (3, 320), (5, 3), (0, 4, 8)]


@pytest.fixture(scope="module")
def interpreter():
    """Call a check of fused_cases.py in a process that interprets Triton's kernels."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/ops/fused_interpreter.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/ops'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def call(function, *arguments):
        print(json.dumps([function, arguments]), file=process.stdin, flush=True)
        problem = json.loads(process.stdout.readline())
        assert problem is None, problem

    yield call
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(
    params=["interpreter", pytest.param("device", marks=pytest.mark.gpu)], scope="module"
)
def check(request):
    """Call a check where the kernels are interpreted, and on a device if there is one."""
    if request.param == "interpreter":
        yield request.getfixturevalue("interpreter")
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    else:
        yield lambda name, *args: getattr(fused_cases, name)(*args, device="cuda")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms(check, shape, dtype):
    check("check_norm", shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_and_gelu(check, shape, dtype):
    check("check_bias_gelu", shape, dtype)


def test_results_without_a_gradient(check):
    check("check_unused_results")


def test_tensors_that_are_not_contiguous(check):
    check("check_strided")


def test_programs_with_several_tiles(interpreter):
    interpreter("check_several_tiles_of_a_program")


def test_hooks(check):
    check("check_hooks")


@pytest.mark.slow
def test_schemas(check):
    check("check_schemas")


@pytest.mark.parametrize("name", OPTIONS)
def test_step_of_a_network(check, name):
    check("check_network", name)


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name])
def test_step_of_a_wrapped_network(check, wrapper):
    check("check_network", "internimage_t", wrapper)


def test_step_under_autocast(check):
    check("check_network", "internimage_t", None, "bfloat16")


ON_A_GPU = """
import torch
from fused_cases import OPTIONS, Names, make_network
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from src.ops import fused

graphs = []

def keep(graph, inputs):
    graphs.append(graph)
    return graph

network = make_network(OPTIONS["internimage_t"], "meta")
with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
    network.to_empty(device="cuda")
    x = torch.empty(2, 8, 8, 16, device="cuda")
    block = network.levels[0].blocks[0]
    with Names() as eager:
        assert block(x).shape == x.shape
    compiled = torch.compile(block, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    assert compiled(x).shape == x.shape
compiled = {str(node.target) for graph in graphs for node in graph.graph.nodes}
print(sorted(name for name in fused.EMPTY if name in eager.names))
print(sorted(target for target in compiled if "internimage" in target and "dcn" not in target))
print("aten.native_layer_norm.default" in compiled)
"""


@pytest.mark.parametrize(
    ("implementation", "names"),
    [("auto", ["bias_gelu", "layer_norm"]), ("reference", [])],
)
def test_selection_on_a_gpu(implementation, names):
    """Eager code uses the kernels if there is Triton; compiled code is PyTorch's own."""
    result = run_python(ON_A_GPU, INTERNIMAGE_OPS=implementation)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines() == [str(names), "[]", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_for_nvidia(tmp_path, monkeypatch, dtype, arch):
    """No register is spilled, and values are loaded 16 bytes at a time."""
    from triton.backends.compiler import GPUTarget
    from triton_compiler import compile_fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    target = GPUTarget("cuda", arch, 32)
    # 4096 is the last stage of InternImage-G. Wide rows of float64 do not fit into the registers.
    widest = 512 if dtype == "float64" else 4096
    for name in fused_cases.fused.EMPTY:
        for channels, gelu in ((64, True), (80, True), (512, False), (widest, False)):
            code = compile_fused(name, target, getattr(torch, dtype), channels, gelu)
            local, sass = usage_of(code["cubin"], tmp_path / "kernel.cubin")
            assert local == ["0", "0"], (name, channels, gelu)
            assert "LDG.E.128" in sass, (name, channels, gelu)


def usage_of(cubin, path):
    """Bytes of stack and of local memory, and SASS."""
    from dcnv3_cases import cuobjdump

    path.write_bytes(cubin)
    usage, sass = (
        subprocess.run([cuobjdump(), flag, path], capture_output=True, text=True, check=True).stdout
        for flag in ("-res-usage", "-sass")
    )
    found = re.search(r"STACK:(\d+) .*LOCAL:(\d+)", usage)
    return list(found.groups()), sass
