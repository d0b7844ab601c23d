"""Selection of kernels, warnings, and instruction sets."""

import os
import shutil
import warnings

import pytest
import torch
from dcnv3_cases import ROOT, run_python

from src.ops import OpNotBuiltError, backends
from src.ops._load import LIBRARY_FILES, Libraries, read_mode

CALL = """
import torch
from dcnv3_cases import make_problem
from src.ops import backends, dcnv3
problem = make_problem(mask_softmax=True)
for _ in range(3):
    results = problem.run(dcnv3)
print(backends())
"""


@pytest.mark.skipif(
    os.environ.get("SRC_BUILD_OPS") == "0", reason="the operators are intentionally not built"
)
def test_the_installed_package_has_the_compiled_kernel():
    assert backends()["cpu"].startswith("compiled (")


def test_backends_give_reasons():
    report = backends()
    assert set(report) == {"cpu", "cuda"}
    assert report["cpu"].startswith(("compiled (", "reference ("))
    assert report["cuda"].startswith(("compiled (", "triton (", "reference ("))


def test_not_built_warns_once_with_the_build_command(tmp_path):
    """The package before anything is compiled."""
    (tmp_path / "setup.py").touch()
    shutil.copytree(ROOT / "src/ops", tmp_path / "src/ops", ignore=shutil.ignore_patterns("*.so"))
    code = f"import sys; sys.path[0] = {str(tmp_path)!r}\n{CALL}"
    result = run_python(code, PYTHONPATH=f"{tmp_path}:{ROOT / 'tests/ops'}")
    assert result.returncode == 0, result.stderr
    assert "reference (not built, _C.abi3.so is missing)" in result.stdout
    assert result.stderr.count("UserWarning") == 1
    assert f"`python setup.py build_ext --inplace` in {tmp_path}" in result.stderr


def test_each_device_type_warns_once(tmp_path, monkeypatch):
    monkeypatch.setattr("src.ops._load.triton_version", lambda: None)
    (tmp_path / "setup.py").touch()
    libraries = Libraries("auto", tmp_path / "src/ops")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for device in ("cpu", "cuda", "cpu", "xpu", "cuda"):
            libraries.on_fallback(device)
    cpu, cuda, xpu = (str(w.message) for w in caught)
    assert f"`python setup.py build_ext --inplace` in {tmp_path}" in cpu
    assert "plain PyTorch on cuda" in cuda
    assert f"`SRC_BUILD_CUDA=1 python setup.py build_ext --inplace` in {tmp_path}" in cuda
    assert "there is no kernel for xpu" in xpu


def test_an_installed_package_cannot_be_built_in_its_folder(tmp_path):
    with pytest.raises(OpNotBuiltError, match="Reinstall the package on a machine with a C"):
        Libraries("compiled", tmp_path / "dcnv3_ops").on_fallback("cpu")


def test_compiled_mode_does_not_fall_back(tmp_path):
    (tmp_path / "setup.py").touch()
    libraries = Libraries("compiled", tmp_path / "src/ops")
    message = (
        "INTERNIMAGE_OPS=compiled, but .* no compiled kernel on cpu.*`python setup.py build_ext"
    )
    with pytest.raises(OpNotBuiltError, match=message):
        libraries.on_fallback("cpu")


@pytest.fixture
def older_library(tmp_path, monkeypatch):
    """Folder with a library that has no kernels of DCNv4."""
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    folder = tmp_path / "src/ops"
    folder.mkdir(parents=True)
    (folder / LIBRARY_FILES["cpu"]).touch()
    (tmp_path / "setup.py").touch()
    return folder


def test_an_older_library_warns_once_with_the_build_command(older_library):
    libraries = Libraries("auto", older_library)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for device in ("cpu", "cuda", "cpu"):
            libraries.on_older_library(device)
    (warning,) = (str(w.message) for w in caught)
    assert "DCNv4 is slower on cpu than it could be" in warning
    assert "`python setup.py build_ext --inplace` in" in warning


def test_compiled_mode_does_not_accept_an_older_library(older_library):
    with pytest.raises(OpNotBuiltError, match=r"built before it had kernels of DCNv4.* Build it"):
        Libraries("compiled", older_library).on_older_library("cpu")


@pytest.mark.parametrize(
    ("mode", "cuda", "triton", "kernel"),
    [
        ("auto", "13.0", "3.9.0", "triton"),
        ("auto", "13.0", None, "reference"),
        ("auto", None, "3.9.0", "reference"),
        ("compiled", "13.0", "3.9.0", "reference"),
        ("triton", "13.0", "3.9.0", "triton"),
        ("reference", "13.0", "3.9.0", "reference"),
    ],
)
def test_choice_on_a_gpu_without_a_library(tmp_path, monkeypatch, mode, cuda, triton, kernel):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr("src.ops._load.triton_version", lambda: triton)
    libraries = Libraries(mode, tmp_path)
    assert libraries.kernel("cuda") == kernel
    assert libraries.kernel("cpu") == libraries.kernel("xpu") == "reference"


def test_a_compiled_library_has_priority_over_triton(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "_C_cuda.abi3.so").touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert Libraries("auto", tmp_path).kernel("cuda") == "compiled"
    assert Libraries("triton", tmp_path).kernel("cuda") == "triton"
    assert loaded == [str(tmp_path / "_C_cuda.abi3.so")]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("compiled", "no compiled kernel on cuda: .*`SRC_BUILD_CUDA=1 python setup.py build_ext"),
        ("triton", "INTERNIMAGE_OPS=triton, but DCNv3 cannot run .*: Triton is not installed"),
    ],
)
def test_a_missing_requested_gpu_kernel_is_an_error(tmp_path, monkeypatch, mode, message):
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("src.ops._load.triton_version", lambda: None)
    with pytest.raises(OpNotBuiltError, match=message):
        Libraries(mode, tmp_path / "src/ops").on_fallback("cuda")


def test_a_broken_library_is_reported(tmp_path):
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    libraries = Libraries("auto", tmp_path)
    assert libraries.missing["cpu"].startswith("_C.abi3.so did not load (")
    with pytest.warns(UserWarning, match=r"_C.abi3.so did not load \("):
        libraries.on_fallback("cpu")


def test_reference_mode_does_not_warn_and_imports_only_ops():
    code = CALL + "import sys; print(*(name for name in sys.modules if name.startswith('src.')))"
    result = run_python(code, INTERNIMAGE_OPS="reference")
    assert result.returncode == 0, result.stderr
    report, modules = result.stdout.splitlines()
    assert "'cpu': 'reference (INTERNIMAGE_OPS=reference)'" in report
    assert result.stderr == ""
    assert all(name.startswith("src.ops") for name in modules.split())


def test_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("INTERNIMAGE_OPS", "fast")
    with pytest.raises(
        ValueError, match="must be one of auto, compiled, triton, reference, got 'fast'"
    ):
        read_mode()


SETS = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}


@pytest.mark.parametrize("name", SETS)
def test_instruction_sets(name):
    """Every instruction set of this CPU, selected like in PyTorch."""
    order = list(SETS.values())
    if order.index(SETS[name]) > order.index(torch.backends.cpu.get_cpu_capability()):
        pytest.skip(f"this processor has no {SETS[name]}")
    code = f"""
import torch
from dcnv3_cases import FLOAT32, assert_same, dcnv4_of_two_tensors, make_problem
from src.ops import backends, dcnv3, dcnv3_reference
assert backends()["cpu"] == "compiled ({SETS[name]})", backends()
for channels in (1, 7, 8, 16, 20, 32, 64, 80):
    for window in ({{}}, {{"kernel_size": 1, "padding": 0}}, {{"kernel_size": 5}},
    {{"remove_center": True}}):
        for operator, is_softmax in ((dcnv3, True), (dcnv4_of_two_tensors, False)):
            problem = make_problem(
                n=1, groups=3, group_channels=channels, mask_softmax=is_softmax, **window
            )
            want = problem.run(dcnv3_reference)
            assert_same(problem.run(operator), want, rtol=1e-10, atol=1e-10)
            single = [t.double() for t in problem.run(operator, torch.float32)]
            assert_same(single, want, **FLOAT32)
"""
    result = run_python(code, ATEN_CPU_CAPABILITY=name, INTERNIMAGE_OPS="compiled")
    assert result.returncode == 0, result.stderr
