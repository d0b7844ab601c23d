"""What setup.py decides to build, by environment and tools, without building it."""

import os
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
    """Output of a setup.py command that compiles nothing, with only `tools` on the PATH."""
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


def test_nothing_cuda_is_built_without_a_gpu(tools, tmp_path):
    tools("nvcc", NVCC.format(toolkit=tmp_path))
    text = decide(tools.folder)
    assert "not building the CUDA library: there is no GPU and no INTERNIMAGE_CUDA_ARCHS" in text


def test_a_gpu_without_nvcc_is_not_enough(tools):
    tools("nvidia-smi", NVIDIA_SMI)
    assert "not building the CUDA library: there is no nvcc" in decide(tools.folder)


def test_an_incomplete_toolkit_is_named(tools, tmp_path):
    tools("nvcc", NVCC.format(toolkit=tmp_path))
    text = decide(tools.folder, INTERNIMAGE_CUDA_ARCHS="9.0")
    assert f"{tools.folder}/nvcc belongs to no complete toolkit; set CUDA_HOME" in text


def test_what_is_demanded_and_cannot_be_built_is_an_error(tools):
    text = decide(tools.folder, SRC_BUILD_CUDA="1")
    assert "SRC_BUILD_CUDA=1, but the CUDA library cannot be built: there is no nvcc." in text


def test_it_can_be_switched_off(tools, tmp_path):
    tools("nvidia-smi", NVIDIA_SMI)
    tools("nvcc", NVCC.format(toolkit=tmp_path))
    assert "not building the CUDA library: SRC_BUILD_CUDA=0" in decide(
        tools.folder, SRC_BUILD_CUDA="0"
    )
