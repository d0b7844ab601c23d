"""Wheels of the project and of the operator alone, built and installed beside the environment."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from src import ops

pytest.importorskip("build.__main__")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*command, folder=ROOT, **environment):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


def install(wheel, folder):
    """Unpack a wheel as pip does, without its dependencies, which the environment has."""
    zipfile.ZipFile(wheel).extractall(folder)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operator")
    build = "packaging/dcnv3_ops/build.py"
    code, _, errors = run(build, "--output", folder, SRC_BUILD_CUDA="0", MAX_JOBS="1")
    assert code == 0, errors[-3000:]
    (wheel,) = folder.glob("*.whl")
    install(wheel, folder / "site")
    return wheel, folder / "site"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Without the compiled operators, which the other wheel has."""
    folder = tmp_path_factory.mktemp("project")
    # A source package, and the wheel from it.
    build = ["-m", "build", "--no-isolation", "--outdir", folder]
    code, _, errors = run(*build, SRC_BUILD_OPS="0")
    assert code == 0, errors[-3000:]
    (wheel,) = folder.glob("*.whl")
    install(wheel, folder / "site")
    return folder / "site"


def test_operator_contents(operator):
    wheel, site = operator
    assert wheel.name.startswith(f"dcnv3_ops-{ops.__version__}-cp311-abi3-")
    (library,) = site.rglob("*.so")
    assert library.name == "_C.abi3.so"
    assert wheel.stat().st_size < 3e6
    metadata = next(site.glob("*.dist-info/METADATA")).read_text()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert len(required) == 1
    assert required[0].startswith("Requires-Dist: torch")


def test_operator_runs(operator, tmp_path):
    """No module of the project and no compiler is needed."""
    code = """
import importlib.metadata, json, sys, torch
from dcnv3_ops import __version__, backends, dcnv3, official as DCNv3
x = torch.rand(1, 5, 6, 16, dtype=torch.float64)
offset, mask = torch.randn(1, 5, 6, 36).double(), torch.rand(1, 5, 6, 18).double()
window = 3, 3, 1, 1, 1, 1, 1, 1, 2, 8, 1.0
a = DCNv3.dcnv3_forward(x, offset, mask, *window, 256, False)
b = DCNv3.dcnv3_core_pytorch(x, offset, mask, *window)
assert importlib.metadata.version("dcnv3-ops") == __version__
print(json.dumps([backends()["cpu"], (a - b).abs().max().item(), "src" in sys.modules]))
"""
    environment = {"PYTHONPATH": str(operator[1]), "PATH": "", "INTERNIMAGE_OPS": "compiled"}
    status, output, errors = run("-c", code, folder=tmp_path, **environment)
    assert status == 0, errors
    kernel, difference, has_src = json.loads(output)
    assert kernel.startswith("compiled (")
    assert difference < 1e-6
    assert not has_src


def test_one_program_imports_one_of_the_packages(operator, tmp_path):
    path = f"{operator[1]}{os.pathsep}{ROOT}"
    command = "import dcnv3_ops, src.ops"
    status, _, errors = run("-c", command, folder=tmp_path, PYTHONPATH=path)
    assert status == 1
    assert "src.ops cannot be imported, because another package has registered" in errors


def test_project_runs_without_a_checkout(project, tmp_path):
    """The recipes are in the wheel."""
    assert not (project / "tests").exists()
    start = "import sys, internimage_lightning; sys.exit(internimage_lightning.main())"
    settings = ["--config", "configs/toy/classification.yaml", "--print_config"]
    status, output, errors = run(
        "-c", start, "fit", *settings, folder=tmp_path, PYTHONPATH=str(project)
    )
    assert status == 0, errors
    assert "variant: internimage_nano" in output


def test_a_source_package_has_no_processor():
    code, _, errors = run("packaging/dcnv3_ops/build.py", "--sdist", "--manylinux", "x86_64")
    assert code == 2
    assert "not allowed with argument" in errors
