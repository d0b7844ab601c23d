"""Build the compiled operators; all other package metadata is in pyproject.toml.

The CPU library (src/ops/_C.abi3.so) and that of exported ONNX files (src/ops/_onnx.abi3.so) are
built at every installation and need a C++20 compiler and an installed torch, but no CUDA toolkit
and no GPU. The CUDA library (src/ops/_C_cuda.abi3.so) is
built if nvcc and either a GPU or INTERNIMAGE_CUDA_ARCHS is available, because it takes minutes.
`python setup.py build_ext --inplace` rebuilds all; unchanged files are skipped.

The same file builds the wheel of the operator alone (packaging/dcnv3_ops/build.py), whose package
is `dcnv3_ops` instead of `src.ops`.

SRC_BUILD_OPS=0 installs without compiled operators. SRC_BUILD_CUDA=0 skips the CUDA library,
SRC_BUILD_CUDA=1 builds it even without a GPU and raises an error if that fails.
INTERNIMAGE_CUDA_ARCHS="8.0;9.0" sets the architectures. MAX_JOBS limits parallel compilers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError, SetupError
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent
PACKAGE = "src.ops" if (ROOT / "src/ops").is_dir() else "dcnv3_ops"
CSRC = Path(*PACKAGE.split("."), "csrc")
TORCH_REQUIREMENT = "torch>=2.11,<2.16"

STUB_LIBRARIES = os.environ.get("INTERNIMAGE_STUB_LIBRARIES")
IS_WINDOWS = sys.platform == "win32"

COMMON_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
# Not -ffast-math: the kernels compare with NaN.
KERNEL_FLAGS = [
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"),
]
# The stable ABI of torch 2.11: one build runs with every later version.
BINDING_FLAGS = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# DEFAULT must be first: if several objects contain an inline function, the linker keeps the first
# copy, which must run on every CPU.
INSTRUCTION_SETS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": [
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
        *("-mavx2", "-mfma", "-mf16c"),
    ],
}
# Microsoft's compiler, written from its documentation: not run yet.
MSVC_FLAGS = ["/std:c++20", "/Zc:__cplusplus", "/O2", "/EHsc", "/W3", "/bigobj", "/DNOMINMAX"]
MSVC_INSTRUCTION_SETS = {"DEFAULT": [], "AVX2": ["/arch:AVX2"]}
# It is copied to other machines beside exported files, so it has no other libraries than libc.
ONNX_LINK_FLAGS = (
    ["-Wl,-exported_symbol,_RegisterCustomOps"]
    if sys.platform == "darwin"
    else [
        *("-static-libstdc++", "-static-libgcc", "-Wl,-s"),
        f"-Wl,--version-script={CSRC / 'onnx/exports.map'}",
    ]
)
# Kernels once per type; what runs without one (docs/ops.md) has no need of older GPUs.
CUDA_TYPES = ("double", "float", "__half", "__nv_bfloat16")
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0"
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]


@dataclass
class Unit:
    """One compiler call: a source file, its own flags and the folder of its object.

    Units of the same name and source are the same in all libraries.
    """

    source: Path
    name: str
    flags: list[str] = field(default_factory=list)
    nvcc: str | None = None

    def depends(self) -> list[str]:
        """Headers that the source may include, which are in its folder and in `CSRC`."""
        folders = {CSRC, self.source.parent}
        if self.source.parent.name == "onnx":
            folders.add(CSRC / "cpu")
        return sorted(
            str(path.relative_to(ROOT))
            for folder in folders
            for path in ROOT.glob(f"{folder}/*.*h")
        )


class Library(Extension):
    """A shared library, built from units with different flags."""

    def __init__(
        self,
        name: str,
        units: list[Unit],
        torch: Path,
        *,
        optional: bool = False,
        libraries: Sequence[str] = (),
        library_dirs: Sequence[str] = (),
        link_flags: Sequence[str] = (),
    ) -> None:
        """Depend on the headers of the sources, on this file and on the version of torch."""
        self.common = ["setup.py", str(torch / "version.py")]
        headers = sorted({path for unit in units for path in unit.depends()})
        super().__init__(
            name,
            sources=sorted({str(unit.source) for unit in units}),
            depends=[*headers, *self.common],
            py_limited_api=True,
            optional=optional,
            libraries=list(libraries),
            extra_link_args=list(link_flags),
            # A cross compiler cannot link with the installed torch; packaging/dcnv3_ops/build.py
            # provides an empty library of the same name.
            library_dirs=[STUB_LIBRARIES or str(torch / "lib"), *library_dirs],
        )
        self.units = units
        self.torch = torch


class BuildLibraries(build_ext):
    """Compile the changed units of a library in parallel, and link them."""

    compiled: ClassVar[set[Path]] = set()  # in this run

    def build_extension(self, ext: Library) -> None:
        """Build a library unless it is newer than all of its sources."""
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
            if ext.optional:
                hint = "plain PyTorch is used instead"
                if ext.name.endswith("_cuda"):
                    hint = "SRC_BUILD_CUDA=1 makes this an error"
                print(f"{target.name} was not built ({error}); {hint}")
                return
            raise SetupError(
                f"Building {ext.name} failed ({error}); it needs a C++20 compiler, for example g++ "
                "11 or clang 14. Set SRC_BUILD_OPS=0 to install without compiled operators, which "
                "are many times faster than plain PyTorch."
            ) from error

    def compile_unit(self, ext: Library, unit: Unit) -> str:
        """Compile a unit in its own folder and return the object file."""
        folder = Path(self.build_temp) / PACKAGE / unit.name
        target = folder / unit.source.with_suffix(".obj" if IS_WINDOWS else ".o")
        depends = [str(unit.source), *unit.depends(), *ext.common]
        if not newer_group(depends, str(target), "newer") and not (
            self.force and target not in self.compiled
        ):
            return str(target)
        self.compiled.add(target)
        if unit.nvcc:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            command = [
                unit.nvcc,
                *NVCC_FLAGS,
                *unit.flags,
                "-c",
                str(unit.source),
                "-o",
                str(target),
            ]
            print(*command)
            if subprocess.run(command, check=False).returncode != 0:
                raise CompileError(f"nvcc failed on {unit.source} for {unit.name}")
            return str(target)
        include = ext.torch / "include"
        headers = [include, include / "torch/csrc/api/include"]
        flags = [f"/I{folder}" if IS_WINDOWS else f"-isystem{folder}" for folder in headers]
        (result,) = self.compiler.compile(
            [str(unit.source)],
            str(folder),
            extra_preargs=flags,
            extra_postargs=(MSVC_FLAGS if IS_WINDOWS else COMMON_FLAGS) + unit.flags,
        )
        return result

    def link(self, ext: Library, objects: list[str], target: Path) -> None:
        """Link; the libraries of torch are loaded before one that needs them."""
        target.parent.mkdir(parents=True, exist_ok=True)
        is_mac = sys.platform == "darwin"
        flags = ["-undefined", "dynamic_lookup"] if is_mac else ["-Wl,-z,defs"]
        if IS_WINDOWS:
            flags = []
        elif STUB_LIBRARIES:
            flags = ["-Wl,-z,undefs", "-Wl,-s"]
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=[] if is_mac else ext.libraries,
            library_dirs=ext.library_dirs,
            # Must precede the libraries: the empty one has no symbol that is needed.
            extra_preargs=["-Wl,--no-as-needed"] if STUB_LIBRARIES else [],
            extra_postargs=[*flags, *ext.extra_link_args],
            target_lang="c++",
        )


class BuildPython(build_py):
    """Put the recipes into the wheel of the project, as src/configs."""

    def run(self) -> None:
        """Copy them unless the installation is editable and uses those of the checkout."""
        super().run()
        if (ROOT / "configs").is_dir() and not self.editable_mode:
            shutil.copytree(
                ROOT / "configs", Path(self.build_lib, "src/configs"), dirs_exist_ok=True
            )


def find_torch() -> Path | None:
    """Folder of the installed torch, also in pip's isolated build environment."""
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders = (Path(entry) / "torch" for entry in [*sys.path, *site])
    return next((folder for folder in folders if (folder / "include/torch").is_dir()), None)


def cpu_libraries(torch: Path) -> list[Library]:
    """The kernels once per instruction set, with the stable-ABI binding and that of ONNX Runtime.

    The second is for exported files of the project; the package of the operator does not have it.
    """
    # Python's own variable for cross compilation, such as linux-aarch64.
    machine = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rpartition("-")[2]
    is_x86 = machine.lower() in ("x86_64", "amd64")
    every_set = MSVC_INSTRUCTION_SETS if IS_WINDOWS else INSTRUCTION_SETS
    sets = every_set if is_x86 else {"DEFAULT": []}
    defines = ["-DINTERNIMAGE_X86"] if is_x86 else []
    kernels = [
        Unit(
            CSRC / "cpu/kernels.cpp",
            name,
            [
                f"-DCPU_CAPABILITY={name}",
                f"-DCPU_CAPABILITY_{name}",
                *([] if IS_WINDOWS else KERNEL_FLAGS),
                *flags,
                *defines,
            ],
        )
        for name, flags in sets.items()
    ]
    kernels.append(Unit(CSRC / "cpu/dispatch.cpp", "dispatch", defines))
    bindings = [
        Unit(CSRC / f"cpu/{name}.cpp", "binding", [*BINDING_FLAGS, *defines])
        for name in ("binding", "block", "linear", "norm")
    ]
    libraries = [
        Library(
            f"{PACKAGE}._C",
            [*kernels, *bindings],
            torch,
            optional=IS_WINDOWS,
            libraries=["torch_cpu"],
        )
    ]
    if PACKAGE == "src.ops" and not IS_WINDOWS:
        units = [
            Unit(CSRC / f"onnx/{name}.cpp", "onnx", defines) for name in ("block", "dcn", "library")
        ]
        libraries.append(
            Library(f"{PACKAGE}._onnx", [*kernels, *units], torch, link_flags=ONNX_LINK_FLAGS)
        )
    return libraries


def cuda_library(torch: Path) -> Library | None:
    """DCNv3 on CUDA, or None after printing the reason."""
    choice = os.environ.get("SRC_BUILD_CUDA", "auto")
    archs = os.environ.get("INTERNIMAGE_CUDA_ARCHS") or visible_architectures()
    nvcc = shutil.which("nvcc")
    toolkit = find_toolkit(nvcc) if nvcc else None
    reason = None
    if choice == "0":
        reason = "SRC_BUILD_CUDA=0"
    elif IS_WINDOWS:
        reason = "it is not supported on Windows"
    elif choice != "1" and not archs:
        reason = "no GPU was found and INTERNIMAGE_CUDA_ARCHS is not set"
    elif nvcc is None:
        reason = "nvcc was not found"
    elif toolkit is None:
        reason = f"{nvcc} is not part of a complete toolkit; set CUDA_HOME"
    elif not (torch / "lib/libtorch_cuda.so").is_file():
        reason = "the installed torch is built without CUDA"
    if reason or nvcc is None or toolkit is None:
        if choice == "1":
            raise SetupError(f"SRC_BUILD_CUDA=1, but the CUDA library cannot be built: {reason}.")
        print(f"not building the CUDA library: {reason}")
        return None
    numbers = [arch.replace(".", "") for arch in (archs or CUDA_ARCHITECTURES).split(";")]
    generate = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    newest = max(numbers, key=int)  # later GPUs compile its PTX at load time
    generate += [f"-gencode=arch=compute_{newest},code=compute_{newest}"]
    kernels = [
        Unit(CSRC / "cuda/kernels.cu", name, [f"-DINTERNIMAGE_TYPE={name}", *generate], nvcc)
        for name in CUDA_TYPES
    ]
    names = ", ".join(f"sm_{n}" for n in numbers)
    defines = ["-DUSE_CUDA", f'-DINTERNIMAGE_CUDA_ARCHITECTURES="{names}"']
    include = f"-isystem{toolkit / 'include'}"
    binding = Unit(CSRC / "cuda/binding.cpp", "binding", [*BINDING_FLAGS, *defines, include])
    return Library(
        f"{PACKAGE}._C_cuda",
        [*kernels, binding],
        torch,
        optional=choice != "1",
        # With the static runtime, the library works with every driver and CUDA version of torch.
        libraries=["torch_cpu", "torch_cuda", "cudart_static", "rt", "dl", "pthread"],
        library_dirs=[str(toolkit / "lib64"), str(toolkit / "lib")],
    )


def visible_architectures() -> str:
    """Compute capabilities of the visible GPUs, such as "8.0;9.0"; empty without a GPU."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ";".join(sorted({line.strip() for line in result.stdout.splitlines() if line.strip()}))


def find_toolkit(nvcc: str) -> Path | None:
    """Folder with the headers and libraries of an nvcc, which may be a wrapper script."""
    listing = subprocess.run(
        [nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False
    )
    tops = re.findall(r"TOP=(.+)", listing.stderr)
    candidates = [os.environ.get("CUDA_HOME", ""), *tops, str(Path(nvcc).resolve().parents[1])]
    for folder in (Path(name).resolve() for name in candidates if name):
        if (folder / "include/cuda_runtime.h").is_file():
            return folder
    return None


def main() -> None:
    """Select the libraries to build, and call setuptools."""
    os.chdir(ROOT)
    torch = find_torch()
    enabled = os.environ.get("SRC_BUILD_OPS", "1") != "0"
    libraries = [*cpu_libraries(torch), cuda_library(torch)] if enabled and torch else []
    setup(
        ext_modules=[library for library in libraries if library],
        # Only used in an isolated build without torch: pip installs it and builds again.
        setup_requires=[TORCH_REQUIREMENT] if enabled and not torch else [],
        cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if enabled else {},
    )


main()
