"""Build the operator alone as a package, `dcnv3-ops`, from the sources in src/ops.

    python packaging/dcnv3_ops/build.py                              # wheel for this machine
    python packaging/dcnv3_ops/build.py --sdist                      # source package
    python packaging/dcnv3_ops/build.py --manylinux x86_64 aarch64   # with zig as cross compiler

Needs `build`, and an installed torch for its headers; `--manylinux` also needs `ziglang`. A wheel
is for every Python from 3.11 and every torch from 2.11 to 2.15. With nvcc and
INTERNIMAGE_CUDA_ARCHS, the wheel of this machine contains the CUDA library (see setup.py).

The sources are copied into a temporary folder as package `dcnv3_ops` next to the project's own
setup.py, so there is no second copy in the repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GLIBC = (2, 28)  # that of the wheels of torch


def assemble(folder: Path) -> None:
    """Write the source tree of the package."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(ROOT / "src/ops", folder / "dcnv3_ops", ignore=ignored)
    (folder / "dcnv3_ops/py.typed").touch()
    (folder / "MANIFEST.in").write_text("graft dcnv3_ops/csrc\n")
    for file in (HERE / "pyproject.toml", HERE / "README.md", ROOT / "setup.py", ROOT / "LICENSE"):
        shutil.copy2(file, folder)


def build(folder: Path, output: Path, *options: str, **environment: str) -> None:
    """Run `python -m build` with the packages of this environment, which include torch."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, *options]
    subprocess.run([*command, folder], check=True, env={**os.environ, **environment})


def build_manylinux(folder: Path, output: Path, machine: str) -> None:
    """Build with zig for an older glibc than that of this machine, or for another processor."""
    target = f"{machine}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    compiler = f"{sys.executable} -m ziglang c++ -target {target}"
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    # Only the name of torch's library is recorded. Its symbols are found when torch is loaded.
    (stubs / "empty.cpp").touch()
    library = ["-shared", "-Wl,-soname,libtorch_cpu.so", "-o", str(stubs / "libtorch_cpu.so")]
    subprocess.run([*compiler.split(), *library, str(stubs / "empty.cpp")], check=True)
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}"
    build(
        folder,
        output,
        "--wheel",
        f"--config-setting=--build-option=--plat-name={tag}",
        CC=compiler.replace("c++", "cc"),
        CXX=compiler,
        LDSHARED=f"{compiler} -shared",
        LDCXXSHARED=f"{compiler} -shared",
        CFLAGS="",
        SRC_BUILD_CUDA="0",
        INTERNIMAGE_STUB_LIBRARIES=str(stubs),
        _PYTHON_HOST_PLATFORM=f"linux-{machine}",
    )


def main() -> None:
    """Build the requested packages into `--output`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sdist", action="store_true")
    kind.add_argument("--manylinux", nargs="+", metavar="MACHINE", choices=["x86_64", "aarch64"])
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    for machine in arguments.manylinux or [None]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            assemble(folder)
            if machine:
                build_manylinux(folder, output, machine)
            else:
                build(folder, output, "--sdist" if arguments.sdist else "--wheel")


if __name__ == "__main__":
    main()
