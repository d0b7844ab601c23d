"""InternImage-nano against timm's ResNet-18, from scratch on few images, in the same CPU time.

Usage: ``python benchmarks/from_scratch.py --root data/imagenet-mini --minutes 20``. Both networks
train with the augmentation of the nano recipe, each in its own process with one thread, at the same
time. A trial of a few steps gives the number of epochs that fit into the CPU minutes, so that each
network runs its whole learning-rate schedule. CPU time of the process counts, loading and
validation included, so other programs on the machine do not change the comparison. Each network
prints a JSON line after every validation and one at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RECIPE = ROOT / "configs/classification/internimage_nano_96.yaml"
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}  # lr per 32 images
SETTINGS: dict[str, list[str]] = {
    "internimage_nano": [],
    "resnet18": [
        f"--model.optimizer={json.dumps({'class_path': 'torch.optim.SGD', 'init_args': SGD})}",
        "--model.reference_batch_size=32",
        "--data.batch_size=32",
    ],
}
"""Changes to the recipe for each network; the optimizer of ResNet-18 is the usual one."""
_TRIAL = (2, 10)  # steps: the first ones warm up
_VALIDATIONS = 20


def train(args: argparse.Namespace) -> None:
    """Train one network and print its results; the process has nothing else to do."""
    import timm
    import torch
    from lightning.pytorch import Callback

    from src.cli import build

    torch.set_num_threads(1)

    class Clock(Callback):
        """CPU seconds and accuracy."""

        def __init__(self) -> None:
            self.start = self.speed = 0.0
            self.history: list[dict[str, float]] = []

        def on_train_start(self, *_: Any) -> None:
            self.start = time.process_time()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if args.epochs == 0 and trainer.global_step == _TRIAL[0]:
                self.start = time.process_time()

        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            if trainer.sanity_checking or args.epochs == 0:
                return
            self.history.append(
                {
                    "epoch": trainer.current_epoch + 1,
                    "minutes": round((time.process_time() - self.start) / 60, 2),
                    "top1": round(100 * float(trainer.callback_metrics["val/top1"]), 1),
                }
            )
            print(json.dumps({"network": args.network, **self.history[-1]}), flush=True)

    clock = Clock()
    epochs = args.epochs or 1
    folder = Path(args.out) / f"{args.network}_{args.seed}"
    options = [
        *("--config", str(RECIPE), "--data.root", str(args.root), "--data.num_workers", "0"),
        *("--trainer.max_epochs", str(epochs), "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--seed_everything", str(args.seed)),
        *("--trainer.default_root_dir", str(folder), "--trainer.num_sanity_val_steps", "0"),
        *("--trainer.check_val_every_n_epoch", str(max(1, epochs // _VALIDATIONS))),
    ]
    if args.epochs == 0:
        options += ["--trainer.limit_train_batches", str(_TRIAL[1])]
        options += ["--trainer.limit_val_batches", "0"]
    cli = build([*options, *SETTINGS[args.network]])
    if args.network == "resnet18":
        cli.model.network_factory = partial(timm.create_model, "resnet18")
        cli.model.network = None  # was built with the task
        cli.model.configure_model()
    cli.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    seconds = time.process_time() - clock.start
    batch = cli.datamodule.batch_size
    images = len(cli.datamodule.train_dataloader()) * batch
    result: dict[str, Any] = {"network": args.network, "seed": args.seed, "epochs": args.epochs}
    if args.epochs == 0:
        result |= {"images_per_second": (_TRIAL[1] - _TRIAL[0]) * batch / seconds, "images": images}
    else:
        top1 = [row["top1"] for row in clock.history]
        parameters = sum(p.numel() for p in cli.model.network.parameters())
        result |= {"parameters": parameters, "cpu_minutes": round(seconds / 60, 1)}
        result |= {"top1": top1[-1], "best": max(top1), "history": clock.history}
    print(json.dumps(result), flush=True)


def run(commands: dict[str, list[str]], folder: Path) -> dict[str, dict[str, Any]]:
    """Last JSON line of each command; they run at the same time, with one thread each.

    Args:
        commands: By name of the network.
        folder: Gets the output of each command.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = {}
    for name, command in commands.items():
        with (folder / f"{name}.jsonl").open("w") as out, (folder / f"{name}.log").open("w") as log:
            # A session each, so that Linux gives both the same share of a busy machine.
            running[name] = subprocess.Popen(
                command, stdout=out, stderr=log, env=environment, start_new_session=True
            )
    try:
        codes = {name: process.wait() for name, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()
    results = {}
    for name, code in codes.items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        lines = [line for line in lines if line.startswith("{")]
        if code or not lines:
            sys.exit(f"{name} failed with exit code {code}; see {folder / name}.log")
        results[name] = json.loads(lines[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/imagenet-mini", help="train/<class>, val/<class>")
    parser.add_argument("--minutes", type=float, default=20, help="CPU minutes of each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/from_scratch", help="logs and checkpoints")
    parser.add_argument("--network", choices=list(SETTINGS), help="train only this one")
    parser.add_argument("--epochs", type=int, help="with --network; 0 measures the speed")
    args = parser.parse_args()
    if args.network:
        train(args)
        return
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    base = [sys.executable, str(Path(__file__)), "--root", args.root, "--seed", str(args.seed)]
    base += ["--out", args.out, "--network"]
    commands = {}
    for name, trial in run({n: [*base, n, "--epochs", "0"] for n in SETTINGS}, folder).items():
        epochs = int(60 * args.minutes * trial["images_per_second"] / trial["images"])
        print(json.dumps({**trial, "epochs": epochs}), flush=True)
        commands[name] = [*base, name, "--epochs", str(max(1, epochs))]
    results = run(commands, folder)
    for result in results.values():
        print(json.dumps(result), flush=True)
    (folder / "results.json").write_text(json.dumps(list(results.values()), indent=1))


if __name__ == "__main__":
    main()
