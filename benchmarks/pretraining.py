"""Toy pre-training: zero-shot accuracy by CPU minutes, and fine-tuning with and without it.

Usage, after ``python -m src prepare toy --root data/toy``:

- ``python benchmarks/pretraining.py pretrain --out DIR``: run ``configs/pretraining/toy.yaml``;
- ``python benchmarks/pretraining.py finetune --out DIR``: run the toy classifier from random
  weights and from the pre-trained image tower;
- ``python benchmarks/pretraining.py memory``: peak memory of the contrastive losses by batch.

Each validation prints a JSON line with the CPU time of the process and its loaders until then, so
that other programs on the machine do not change the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from lightning.pytorch import Callback  # noqa: E402

from src.cli import main as run_command  # noqa: E402
from src.losses.contrastive import CLIPLoss, SigLIPLoss  # noqa: E402
from tests.allocations import peak_allocation  # noqa: E402

PRETRAINING = ROOT / "configs/pretraining/toy.yaml"
CLASSIFIER = ROOT / "configs/toy/classification.yaml"
BATCHES = (512, 1024, 2048, 4096, 8192)
WIDTH = 512


class CPUTime(Callback):
    """Print CPU minutes and metrics after every validation.

    Args:
        path: The lines are also appended to this file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Print a line."""
        if trainer.sanity_checking:
            return
        found = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if "/" in k}
        row = {"step": trainer.global_step, "cpu_minutes": round(cpu_seconds() / 60, 2), **found}
        print(json.dumps(row), flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def cpu_seconds() -> float:
    """CPU time of this process and of its children, also of those that are still running."""
    times = os.times()
    total = sum(times[:4])
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def fit(recipe: Path, out: Path, name: str, *settings: str) -> None:
    """Train a recipe; the metrics go to ``out/<name>.jsonl``."""
    callback = "--trainer.callbacks+=benchmarks.pretraining.CPUTime"
    lines = ["--trainer.callbacks.path", str(out / f"{name}.jsonl")]
    where = ["--name", name, "--trainer.default_root_dir", str(out)]
    arguments = ["fit", "--config", str(recipe), *where, callback, *lines, *settings]
    assert run_command([*arguments, "--trainer.enable_progress_bar", "false"]) == 0


def finetune(out: Path, epochs: int) -> None:
    """Train the toy classifier twice, with the same settings except for the initial weights."""
    weights = max((out / "pretrained").rglob("last.ckpt"))
    settings = ["--trainer.max_epochs", str(epochs)]
    fit(CLASSIFIER, out, "scratch", *settings)
    fit(CLASSIFIER, out, "finetuned", *settings, "--model.weights", str(weights))


def memory() -> None:
    """Peak memory of both losses, forward and backward, in a table."""
    print("| pairs | CLIP | SigLIP | one float32 matrix of logits |\n| --- | --- | --- | --- |")
    for pairs in BATCHES:
        peaks = [peak(loss(), pairs) for loss in (CLIPLoss, SigLIPLoss)]
        shown = " | ".join(f"{value / 2**20:.0f} MiB" for value in (*peaks, 4 * pairs * pairs))
        print(f"| {pairs} | {shown} |", flush=True)


def peak(loss: torch.nn.Module, pairs: int) -> int:
    image, text = (
        torch.nn.functional.normalize(torch.randn(pairs, WIDTH), dim=1).requires_grad_()
        for _ in range(2)
    )
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    return peak_allocation(lambda: loss(image, text, scale, bias).backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pretrain", "finetune", "memory"))
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the classifier")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "memory":
        memory()
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "pretrain":
        fit(PRETRAINING, args.out, "pretrained")
    else:
        finetune(args.out, args.epochs)


if __name__ == "__main__":
    main()
