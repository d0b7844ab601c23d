"""Report of versions, devices and operator backends.

This module does not import Lightning, which would take seconds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from src import ops

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "jsonargparse",
    "timm",
    "torchmetrics",
    "albumentations",
    "pycocotools",
    "numpy",
    "pillow",
)
SLURM_JOB = "slurm_job"
"""Name of the row with the number of the SLURM job."""


def report() -> str:
    """Versions, devices, operator backends and source revision as aligned lines."""
    rows = [
        ("system", f"{platform.platform()}, Python {platform.python_version()}"),
        ("command", " ".join(sys.argv)),
        ("source", revision()),
        *((name, package_version(name)) for name in PACKAGES),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {cpu_capability()}"),
        *(("gpu", device) for device in gpus()),
        *(
            (f"{operator} on {device}", text)
            for operator in ("dcnv3", "dcnv4", "ms_deform_attn")
            for device, text in ops.backends(operator).items()
        ),
        *((SLURM_JOB, job) for job in [os.environ.get("SLURM_JOB_ID")] if job),
        ("INTERNIMAGE_OPS", os.environ.get("INTERNIMAGE_OPS", "auto (not set)")),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def package_version(name: str) -> str:
    """Installed version of a package, or a note that it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def cpu_capability() -> str:
    """The highest instruction set that PyTorch uses on this CPU."""
    return torch.backends.cpu.get_cpu_capability()


def gpus() -> list[str]:
    """Description of each visible GPU, or the reason why there is none."""
    if torch.version.cuda is None:
        return ["none (this PyTorch is built without CUDA)"]
    if not torch.cuda.is_available():
        return [f"none visible (PyTorch is built for CUDA {torch.version.cuda})"]
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor},"
        f" CUDA {torch.version.cuda}"
        for p in properties
    ]


def revision() -> str:
    """Git commit of the source, with a note if files were changed or there is no repository."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "not a git checkout"
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown (git is not available)"
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"git {commit}" + (" with local changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(root), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
