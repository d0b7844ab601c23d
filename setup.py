"""Builds the compiled operators; everything else about the package is in pyproject.toml.

The CPU library (src/ops/_C.abi3.so) is built at every install and needs a C++20 compiler and an
installed torch, no CUDA toolkit and no GPU. `python setup.py build_ext --inplace` builds it again;
what has not changed is skipped.

SRC_BUILD_OPS=0 installs without compiled operators. MAX_JOBS limits how many compilers run at once.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, SetupError
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent
CSRC = Path("src/ops/csrc")
TORCH_REQUIREMENT = "torch>=2.11,<2.16"

COMMON_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
# Not -ffast-math: the kernels compare with NaN.
KERNEL_FLAGS = [
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"),
]
# The stable ABI of torch 2.11: one build runs with every later version.
BINDING_FLAGS = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# DEFAULT comes first: of an inline function that several objects contain, the linker keeps the
# first copy, and that one must run on every processor.
INSTRUCTION_SETS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": [
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
        *("-mavx2", "-mfma", "-mf16c"),
    ],
}


@dataclass
class Unit:
    """One compiler call: a source file, its own flags and the folder of its object."""

    source: Path
    name: str
    flags: list[str] = field(default_factory=list)


class Library(Extension):
    """A shared library that torch loads, of units with their own flags each."""

    def __init__(self, name: str, units: list[Unit], torch: Path) -> None:
        """Depend on every file in csrc, on this file and on the version of torch."""
        headers = sorted(str(p.relative_to(ROOT)) for p in (ROOT / CSRC).rglob("*.h"))
        super().__init__(
            name,
            sources=sorted({str(unit.source) for unit in units}),
            depends=[*headers, "setup.py", str(torch / "version.py")],
            py_limited_api=True,
        )
        self.units = units
        self.torch = torch


class BuildLibraries(build_ext):
    """Compiles the units of a library in parallel, only those whose sources changed, and links
    them."""

    def build_extension(self, ext: Library) -> None:
        """Build one library unless it is newer than everything it is made of."""
        target = Path(self.get_ext_fullpath(ext.name))
        if not self.force and not newer_group([*ext.sources, *ext.depends], str(target), "newer"):
            print(f"{target.name} is up to date")
            return
        print(f"building {target.name} ({', '.join(unit.name for unit in ext.units)})")
        jobs = int(os.environ.get("MAX_JOBS", "0")) or os.cpu_count() or 1
        try:
            with ThreadPoolExecutor(jobs) as pool:
                objects = list(pool.map(lambda unit: self.compile_unit(ext, unit), ext.units))
            self.link(ext, objects, target)
        except (CompileError, LinkError) as error:
            raise SetupError(
                f"Building {ext.name} failed ({error}); it needs a C++20 compiler, for example g++ "
                "11 or clang 14. Set SRC_BUILD_OPS=0 to install without compiled operators, which "
                "are many times faster than plain PyTorch."
            ) from error

    def compile_unit(self, ext: Library, unit: Unit) -> str:
        """Compile one unit into a folder of its own; return the object file."""
        folder = Path(self.build_temp) / ext.name / unit.name
        target = folder / unit.source.with_suffix(".o")
        if not self.force and not newer_group(
            [str(unit.source), *ext.depends], str(target), "newer"
        ):
            return str(target)
        include = ext.torch / "include"
        flags = [f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
        (result,) = self.compiler.compile(
            [str(unit.source)],
            str(folder),
            extra_preargs=flags,
            extra_postargs=COMMON_FLAGS + unit.flags,
        )
        return result

    def link(self, ext: Library, objects: list[str], target: Path) -> None:
        """Link against libtorch_cpu, which is loaded already when the library is."""
        target.parent.mkdir(parents=True, exist_ok=True)
        is_mac = sys.platform == "darwin"
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=[] if is_mac else ["torch_cpu"],
            library_dirs=[str(ext.torch / "lib")],
            extra_postargs=["-undefined", "dynamic_lookup"] if is_mac else ["-Wl,-z,defs"],
            target_lang="c++",
        )


def find_torch() -> Path | None:
    """Folder of the installed torch, also from inside pip's isolated build environment."""
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders = (Path(entry) / "torch" for entry in [*sys.path, *site])
    return next((folder for folder in folders if (folder / "include/torch").is_dir()), None)


def cpu_library(torch: Path) -> Library:
    """DCNv3 on the CPU: the kernels once per instruction set, and the stable-ABI binding."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = INSTRUCTION_SETS if is_x86 else {"DEFAULT": []}
    defines = ["-DINTERNIMAGE_X86"] if is_x86 else []
    kernels = [
        Unit(
            CSRC / "cpu/kernels.cpp",
            name,
            [
                f"-DCPU_CAPABILITY={name}",
                f"-DCPU_CAPABILITY_{name}",
                *KERNEL_FLAGS,
                *flags,
                *defines,
            ],
        )
        for name, flags in sets.items()
    ]
    binding = Unit(CSRC / "cpu/binding.cpp", "binding", [*BINDING_FLAGS, *defines])
    return Library("src.ops._C", [*kernels, binding], torch)


def main() -> None:
    """Decide what to build and hand over to setuptools."""
    os.chdir(ROOT)
    torch = find_torch()
    wanted = os.environ.get("SRC_BUILD_OPS", "1") != "0"
    if wanted and sys.platform == "win32":
        print("The compiled operators are not supported on Windows; plain PyTorch is used instead.")
        wanted = False
    setup(
        ext_modules=[cpu_library(torch)] if wanted and torch else [],
        # Only an isolated build without torch comes here: pip installs it and asks again.
        setup_requires=[TORCH_REQUIREMENT] if wanted and not torch else [],
        cmdclass={"build_ext": BuildLibraries},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if wanted else {},
    )


main()
