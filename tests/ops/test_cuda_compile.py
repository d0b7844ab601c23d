"""Registers, spills and wide instructions of the compiled CUDA kernels.

No GPU is needed. The hot kernels are those for float32 and bfloat16 with nine points.
"""

import re
import shutil
import subprocess

import pytest
from dcnv3_cases import ROOT, cuobjdump

NVCC = shutil.which("nvcc")
KERNELS = ROOT / "src/ops/csrc/cuda/kernels.cu"
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
TYPES = {"float": 4, "__nv_bfloat16": 8}  # channels that 16 bytes hold
# A multiprocessor has 65,536: for 7 blocks of 128 threads, and for 1,024 threads.
MOST_REGISTERS = {"forward": 72, "backward": 64}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Report of ptxas and cubin of every type and architecture: one compiler run per type."""
    folder = tmp_path_factory.mktemp("cubins")
    results = {}
    for type_name in TYPES:
        for arch in ARCHITECTURES:
            cubin = folder / f"{type_name}_{arch}.cubin"
            command = [NVCC, "-std=c++17", "-O3", "-cubin", f"-arch={arch}", "-Xptxas=-v"]
            command += [f"-DINTERNIMAGE_TYPE={type_name}", str(KERNELS), "-o", str(cubin)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            results[type_name, arch] = ptxas_report(result.stderr), cubin
    return results


def ptxas_report(text):
    """Registers and spilled bytes of every kernel."""
    report, name = {}, None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            report[name] = int(match[1]), spills
    return report


def hot(names, direction, type_name):
    """The kernel with 16 bytes per load and nine points."""
    pattern = rf"{direction}_kernel.*Li{TYPES[type_name]}ELi9E"
    (name,) = (n for n in names if re.search(pattern, n))
    return name


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("type_name", TYPES)
def test_no_kernel_spills(compiled, type_name, arch):
    report, _ = compiled[type_name, arch]
    assert len(report) == 6  # forward and backward: vectors and nine points, vectors, scalars
    assert {name: spills for name, (_, spills) in report.items() if spills} == {}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_registers_of_the_hot_kernels(compiled, direction, type_name, arch):
    report, _ = compiled[type_name, arch]
    registers, _ = report[hot(report, direction, type_name)]
    print(f"{direction} {type_name} {arch}: {registers} registers")
    assert registers <= MOST_REGISTERS[direction]


def instructions(cubin, name):
    """Opcodes of one kernel."""
    command = [cuobjdump(), "-sass", "-fun", name, str(cubin)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z][\w.]+)", listing, re.M)


@pytest.mark.parametrize("type_name", TYPES)
def test_sass_has_the_wide_instructions(compiled, type_name):
    report, cubin = compiled[type_name, "sm_90"]
    forward, backward = (
        instructions(cubin, hot(report, direction, type_name))
        for direction in ("forward", "backward")
    )
    for name, code in (("forward", forward), ("backward", backward)):
        wide = [op for op in code if op.startswith("LDG") and ".128" in op]
        print(f"{name} {type_name}: {len(code)} instructions, {len(wide)} LDG.128")
        assert len(wide) >= 4
        assert not [op for op in code if op.startswith(("LDL", "STL"))]  # local memory: spills
    assert [op for op in forward if op.startswith("STG") and ".128" in op]
    adds = [op for op in backward if op.startswith(("REDG", "RED.", "ATOMG"))]
    # 64-bit integers are those of the deterministic mode.
    floats = [op for op in adds if ".64" not in op]
    assert floats
    assert all("F32x4" in op for op in floats), adds


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("type_name", TYPES)
def test_sass_adds_integers_to_shared_memory(compiled, type_name, arch):
    """Two sums for each of nine points; compare-and-swap only for those that are not finite."""
    report, cubin = compiled[type_name, arch]
    code = instructions(cubin, hot(report, "backward", type_name))
    shared = [op for op in code if op.startswith("ATOMS")]
    assert len([op for op in shared if op == "ATOMS.ADD"]) == 18
    assert len([op for op in shared if "CAS" in op]) <= 4


def test_parsing_of_the_ptxas_report():
    text = """ptxas info    : Compiling entry function '_Zk' for 'sm_90'
ptxas info    : Function properties for _Zk
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers"""
    assert ptxas_report(text) == {"_Zk": (40, 12)}
