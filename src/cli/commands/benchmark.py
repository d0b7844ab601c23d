"""``python -m src benchmark``: speed, latency and memory of a recipe on the device at hand.

Training runs as in ``fit``, with the recipe's data, augmentation, precision, strategy and EMA, but
writes nothing. Inference runs as in ``predict`` on the images of the validation split, from the
transfer to the device to the final scores, boxes or label maps.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from src import files
from src.callbacks import DataWaiting, MonitorCheck, RunFolder
from src.callbacks.data_waiting import MUCH_WAITING, advice, available_cores
from src.callbacks.pace import number_of_images
from src.callbacks.run_folder import describe_operators
from src.callbacks.step_times import StepTimes, Waiting, now
from src.cli.app import TrainingCLI
from src.cli.run_settings import with_settings_of_run
from src.cli.tool_parser import ToolParser, add_recipe_options
from src.environment import package_version
from src.errors import UserError

_QUIET = (
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.limit_val_batches=0",
)
# Callbacks that write, monitor or stop a run; others, such as EMA, are part of a step.
_LEFT_OUT = (
    DataWaiting,
    ModelCheckpoint,
    EarlyStopping,
    LearningRateMonitor,
    MonitorCheck,
    RunFolder,
)


@dataclass(frozen=True)
class Speed:
    """Measurements of training or of inference.

    Attributes:
        batch: Images of a step, except for the last one of an epoch.
        images_per_second: Throughput over consecutive steps, without synchronising the device in
            between.
        p50_ms: Median latency of a step, without loading.
        p95_ms: 95th percentile of the latency.
        waiting: Fraction of the time spent waiting for the loader.
        peak_bytes: Peak memory: allocated by PyTorch on a GPU, else the resident set of the process
            so far.
    """

    batch: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    waiting: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a recipe and print a Markdown table.

    Args:
        argv: Arguments after ``benchmark``.

    Returns:
        0.

    Raises:
        UserError: If an argument is wrong or the run ended before all was measured.
    """
    args, given = _parser().parse_known_args(argv)
    settings = with_settings_of_run(["benchmark", *given])[1:]
    if args.warmup < 1 or args.steps < 1:
        raise UserError(f"--warmup and --steps accept 1 or more, got {args.warmup}, {args.steps}.")
    cli = TrainingCLI.create([*settings, *_QUIET], run=False)
    if cli.trainer.world_size > 1:
        raise UserError(
            f"benchmark measures one device, got {cli.trainer.world_size}; set --trainer.devices 1."
            " configs/callbacks/throughput.yaml measures a run on several."
        )
    speeds = {"training": measure_training(cli, args.warmup, args.steps, args.one_batch)}
    if cli.model.predicts:
        speeds["inference"] = measure_inference(cli, args.warmup, args.steps, args.one_batch)
    facts = _facts(cli) | {"one batch": args.one_batch}
    print(table(facts, speeds))
    if speeds["training"].waiting > MUCH_WAITING:
        print(
            f"\nTraining waited for images {speeds['training'].waiting:.0%} of the time. "
            + advice(cli.datamodule.num_workers, available_cores())
        )
    if args.output is not None:
        result = facts | {name: asdict(speed) for name, speed in speeds.items()}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(args.output, json.dumps(result, indent=1) + "\n")
    return 0


def measure_training(cli: TrainingCLI, warmup: int, steps: int, one_batch: bool) -> Speed:
    """Run training steps through the trainer of a recipe.

    Args:
        cli: Task, data module and trainer.
        warmup: Steps before the measurement.
        steps: Steps of each kind, see `StepTimes`.
        one_batch: Load a single batch and repeat it, so that no step waits for data.
    """
    trainer, task, data = cli.trainer, cli.model, cli.datamodule
    device = trainer.strategy.root_device
    trainer.profiler = Waiting()  # type: ignore[attr-defined]
    times = StepTimes(warmup, steps, trainer.profiler)  # type: ignore[attr-defined]
    kept = [c for c in trainer.callbacks if not isinstance(c, _LEFT_OUT)]  # type: ignore[attr-defined]
    trainer.callbacks = [*kept, times]  # type: ignore[attr-defined]
    task.weights = None  # speed does not depend on values
    if one_batch:
        loader = _one_batch(data.train_dataloader, warmup + 2 * steps, device)
        data.train_dataloader = loader
    _reset_peak(device)
    trainer.fit(task, datamodule=data)
    if not times.is_complete:
        raise UserError(
            f"The training ended before {warmup} + 2 x {steps} steps were measured; lower --steps"
            " or raise trainer.max_steps."
        )
    p50, p95 = _percentiles(times.latencies)
    return Speed(
        batch=times.images // steps,
        images_per_second=times.images / times.seconds,
        p50_ms=p50,
        p95_ms=p95,
        waiting=times.waited / times.seconds,
        peak_bytes=_peak(device),
    )


def measure_inference(cli: TrainingCLI, warmup: int, steps: int, one_batch: bool) -> Speed:
    """Predict the images of the validation split, after `measure_training`.

    Args:
        cli: Task, data module and trainer, which have trained.
        warmup: Batches before the measurement.
        steps: Consecutive batches, and as many single ones.
        one_batch: Load a single batch and repeat it.
    """
    trainer, task, device = cli.trainer, cli.model, cli.trainer.strategy.root_device
    task.set_averaged_network(None)
    task.to(device).eval()
    _reset_peak(device)
    load = cli.datamodule.val_dataloader
    batches = _endless(_one_batch(load, 1, device) if one_batch else load)
    largest, images, waited, start = 0, 0, 0.0, 0.0
    latencies: list[float] = []
    with torch.inference_mode(), trainer.precision_plugin.predict_step_context():
        for number in range(warmup + 2 * steps):
            in_a_row = number < warmup + steps
            if number in (warmup, warmup + steps):
                reached = now(device)
                seconds = reached - start  # of the batches before
                start = reached
            asked = time.perf_counter()
            batch = next(batches)
            begun = time.perf_counter() if in_a_row else now(device)
            task.predict_step(trainer.strategy.batch_to_device(batch), number)
            largest = max(largest, len(batch["path"]))
            if number >= warmup and in_a_row:
                images, waited = images + len(batch["path"]), waited + begun - asked
            elif not in_a_row:
                latencies.append(now(device) - begun)
    p50, p95 = _percentiles(latencies)
    return Speed(largest, images / seconds, p50, p95, waited / seconds, _peak(device))


class _Repeated:
    """A loader that gives one batch a number of times."""

    def __init__(self, batch: Any, count: int) -> None:
        self.batch, self.count, self.batch_size = batch, count, number_of_images(batch)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (self.batch for _ in range(self.count))


def _one_batch(
    make_loader: Callable[[], Iterable[Any]], count: int, device: torch.device
) -> Callable[[], _Repeated]:
    """Make a loader that gives the first batch of another one, on the device, `count` times."""
    return lambda: _Repeated(move_data_to_device(next(iter(make_loader())), device), count)


def _endless(make_loader: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    loader = make_loader()
    while True:
        yield from loader


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """Median and 95th percentile in milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    median, high = values.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return median, high


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _facts(cli: TrainingCLI) -> dict[str, Any]:
    device = cli.trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "recipe": cli.run_name,
        "device": name,
        "threads": torch.get_num_threads(),
        "precision": str(cli.trainer.precision),
        "workers": cli.datamodule.num_workers,
        "torch": package_version("torch"),
        "operator": describe_operators(cli.model.training_network, device.type),
    }


def table(facts: dict[str, Any], speeds: dict[str, Speed]) -> str:
    """Markdown: a row for training and, unless the task does not predict, one for inference."""
    names = ("recipe", "", "device", "precision", "N", "images/s", "p50 [ms]", "p95 [ms]")
    lines = ["| " + " | ".join([*names, "waiting", "peak [GiB]"]) + " |", "| --- " * 10 + "|"]
    for what, speed in speeds.items():
        cells = [facts["recipe"], what, facts["device"], facts["precision"], str(speed.batch)]
        cells += [f"{speed.images_per_second:.1f}", f"{speed.p50_ms:.2f}", f"{speed.p95_ms:.2f}"]
        cells += [f"{speed.waiting:.1%}", f"{speed.peak_bytes / 2**30:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src benchmark",
        usage="python -m src benchmark (--config FILE | --name RUN | --ckpt_path FILE) [options]",
        description="Images per second, latency and memory of a recipe on this device.\n"
        "Also accepts the settings of fit: --data.batch_size, --trainer.precision, ...",
    )
    add_recipe_options(parser, "measure training and inference with the recipe of a run")
    add = parser.add_argument
    add("--warmup", type=int, default=10, help="steps that are not measured (%(default)s)")
    add(
        "--steps",
        type=int,
        default=30,
        help="steps of each measurement (%(default)s)",
    )
    add("--one_batch", action="store_true", help="repeat one batch, to exclude data loading")
    add("--output", type=Path, metavar="FILE", help="write the results as JSON")
    return parser
