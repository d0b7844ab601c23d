"""Epochs per minute: full training, a frozen backbone, and cached features of a frozen backbone.

    python benchmarks/frozen_backbone.py --root data/imagenet --out frozen_backbone_cpu.md

Trains ``configs/classification/internimage_nano_96.yaml`` in one process, first with everything
trained, then with ``--model.freeze backbone``, then with
``-c configs/callbacks/cached_features.yaml``. An epoch includes loading the images (in the process
itself), its validation and the checkpoint. The epochs of a case follow each other; the median
counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import files
from src.cli import build

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "classification" / "internimage_nano_96.yaml"
CACHED = ROOT / "configs" / "callbacks" / "cached_features.yaml"
CASES = {
    "full training": ([], 2),
    "frozen backbone": (["--model.freeze", "backbone"], 2),
    "cached features": (["-c", str(CACHED)], 12),
}


class EpochTimes(Callback):
    """Time between the starts of epochs, with everything in between."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.begin = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the start of an epoch."""
        self.starts.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end of the last epoch."""
        self.starts.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Median duration of an epoch."""
        return statistics.median(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))


def measure(root: Path, flags: list[str], epochs: int, folder: Path) -> tuple[float, float]:
    """Seconds of an epoch, and seconds before the first one."""
    given = ["-c", str(RECIPE), *flags, "--data.root", str(root), "--data.num_workers", "0"]
    given += ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", "1"]
    given += ["--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"]
    given += ["--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu"]
    given += ["--model.lr_scheduler", "null"]
    if "-c" in flags:
        given += ["--trainer.callbacks.folder", str(folder / "features")]
    cli, times = build(given), EpochTimes()
    cli.trainer.callbacks.append(times)
    cli.trainer.fit(cli.model, cli.datamodule)
    return times.seconds, times.starts[0] - times.begin


def main() -> None:
    """Measure all cases and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="class folders: train and val")
    parser.add_argument("--out", type=Path, help="Markdown file of the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, base = [], 0.0
    counts = [sum(1 for p in (args.root / s).rglob("*") if p.is_file()) for s in ("train", "val")]
    for name, (flags, epochs) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, start = measure(args.root, flags, epochs, Path(folder))
        base = base or seconds
        rows.append(
            f"| {name} | {start:.1f} | {seconds:.2f} | {60 / seconds:.1f} | {base / seconds:.1f}x |"
        )
        print(rows[-1], flush=True)
    text = "\n".join(
        [
            "# Frozen backbone and cached features on one CPU thread",
            "",
            "`python benchmarks/frozen_backbone.py --root data/imagenet`: InternImage-nano at 96"
            f" pixels, {counts[0]} training and {counts[1]} validation images, a validation in"
            f" every epoch. torch {torch.__version__}.",
            "",
            "| case | before the first epoch [s] | an epoch [s] | epochs per minute | ratio |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    if args.out:
        files.write_text(args.out, text)


if __name__ == "__main__":
    main()
