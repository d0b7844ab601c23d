"""Which libraries setup.py selects for a given environment, without building them."""

import os
import shutil
import subprocess
import sys

import pytest
from dcnv3_cases import ROOT

NVCC = """#!/bin/sh
echo "#$ TOP={toolkit}" >&2
"""
NVIDIA_SMI = """#!/bin/sh
echo 9.0
echo 9.0
echo 12.0
"""


def decide(tools, **environment):
    """Output of setup.py without compiling anything, with only `tools` on the PATH."""
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "SRC_BUILD_OPS")}
    result = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**clean, "PATH": str(tools), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr


@pytest.fixture
def tools(tmp_path):
    """Add a tool: `tools("nvcc", script)`; the folder is `tools.folder`."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, script):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    add.folder = folder
    return add


def test_cuda_is_not_built_without_a_gpu(tools, tmp_path):
    tools("nvcc", NVCC.format(toolkit=tmp_path))
    text = decide(tools.folder)
    reason = "no GPU was found and INTERNIMAGE_CUDA_ARCHS is not set"
    assert f"not building the CUDA library: {reason}" in text


def test_cuda_is_not_built_without_nvcc(tools):
    tools("nvidia-smi", NVIDIA_SMI)
    assert "not building the CUDA library: nvcc was not found" in decide(tools.folder)


def test_message_about_an_incomplete_toolkit(tools, tmp_path):
    tools("nvcc", NVCC.format(toolkit=tmp_path))
    text = decide(tools.folder, INTERNIMAGE_CUDA_ARCHS="9.0")
    assert f"{tools.folder}/nvcc is not part of a complete toolkit; set CUDA_HOME" in text


def test_an_impossible_explicit_build_is_an_error(tools):
    text = decide(tools.folder, SRC_BUILD_CUDA="1")
    assert "SRC_BUILD_CUDA=1, but the CUDA library cannot be built: nvcc was not found." in text


def test_it_can_be_turned_off(tools, tmp_path):
    tools("nvidia-smi", NVIDIA_SMI)
    tools("nvcc", NVCC.format(toolkit=tmp_path))
    assert "not building the CUDA library: SRC_BUILD_CUDA=0" in decide(
        tools.folder, SRC_BUILD_CUDA="0"
    )


@pytest.mark.parametrize(
    ("folder", "libraries"),
    [("project", ["src.ops._C", "src.ops._onnx"]), ("operator", ["dcnv3_ops._C"])],
)
def test_only_the_project_has_the_library_for_onnx_runtime(folder, libraries, tmp_path):
    """The wheel of the operator alone is for PyTorch; setup.py lies beside its package there."""
    path = ROOT if folder == "project" else tmp_path
    if folder == "operator":
        shutil.copy2(ROOT / "setup.py", tmp_path)
    code = """
import runpy, sys, setuptools
setuptools.setup = lambda **given: print(*(library.name for library in given["ext_modules"]))
runpy.run_path(sys.argv[1] + "/setup.py")
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "SRC_BUILD_CUDA": "0", "SRC_BUILD_OPS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1].split() == libraries
