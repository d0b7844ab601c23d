"""Progress lines of ``make install``."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = """\
Downloading torch-2.15.0.whl (539.1 MB)
  Downloading torchvision-0.29.2.whl.metadata (28 kB)
Downloading pillow-13.0.0.whl (7.1 MB)
Downloading cuda-1.whl (1.2 GB)
Installing collected packages: torch, pillow, cuda
"""


def test_only_large_downloads_of_pip_are_shown() -> None:
    rule = "show: ; @$(PROGRESS)"
    ended = subprocess.run(
        ["make", "--no-print-directory", "--eval", rule, "show"],
        cwd=ROOT, input=PIP, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert [line.strip() for line in ended.stdout.splitlines()] == [
        "downloading torch-2.15.0.whl (539.1 MB)",
        "downloading cuda-1.whl (1.2 GB)",
        "installing 3 packages",
    ]
