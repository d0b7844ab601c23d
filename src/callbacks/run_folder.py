"""Run folder with the configuration (config.yaml), the environment (env.txt) and the results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from src import files, ops
from src.callbacks.metric_text import is_score, percent
from src.environment import report
from src.errors import agreed, counted
from src.file_names import quoted
from src.runs import CONFIG, ENVIRONMENT, versions_with_checkpoints
from src.tasks import BaseTask, can_predict
from src.tasks.operators import operators_of

_MANY_LEFT_OUT = 0.1  # of the training images
_SPLITS: dict[TrainerFn | None, str] = {
    TrainerFn.FITTING: "train",
    TrainerFn.VALIDATING: "val",
    TrainerFn.TESTING: "test",
}


@rank_zero_only
def tell(text: str) -> None:
    """Print a line on rank 0 only."""
    print(text, flush=True)


def is_dry_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which writes no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def next_run_folder(parent: Path, prefix: str) -> Path:
    """Next free folder ``<parent>/<prefix>_<n>``, which is not created."""
    pattern = re.compile(rf"{re.escape(prefix)}_(\d+)")
    found = [pattern.fullmatch(p.name) for p in parent.iterdir()] if parent.is_dir() else []
    return parent / f"{prefix}_{max((int(m[1]) for m in found if m), default=-1) + 1}"


def run_folder(trainer: Trainer, given: str | None = None) -> Path:
    """Output folder: the given one, else that of `RunFolder`, or of the logger or trainer."""
    if given:
        return Path(given)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunFolder):
            return callback.path
    return Path(trainer.log_dir or trainer.default_root_dir)


class RunFolder(Callback):
    """Write ``config.yaml`` and ``env.txt``, and print a report at the start and end of a run.

    Args:
        path: Folder of the run; files are written when the run starts.
        config: Text of ``config.yaml``, which repeats the run.
        resumed_from: Checkpoint that the run is resumed from, for the report.
    """

    def __init__(self, path: Path, config: str, resumed_from: str | None = None) -> None:
        self.path, self.config, self.resumed_from = path, config, resumed_from
        self._has_trained = False
        self._first_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Broadcast the folder to all ranks."""
        self.path = trainer.strategy.broadcast(self.path)
        self._has_trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the start report of training."""
        self._announce(trainer, pl_module, "Training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the start report of validation, unless it is part of training."""
        if trainer.state.fn == "validate":
            self._announce(trainer, pl_module, "Validating")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the start report of testing."""
        self._announce(trainer, pl_module, "Testing")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the start report of prediction."""
        self._announce(trainer, pl_module, "Predicting")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log at least once per epoch, also for very short epochs."""
        self._has_trained, self._first_step = True, trainer.global_step
        batches = trainer.num_training_batches
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        trainer.log_every_n_steps = int(max(1, min(interval, batches)))  # type: ignore[attr-defined]
        if self.resumed_from:
            tell(f"Resuming at epoch {trainer.current_epoch}, step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the metrics of the epoch, so that a killed run keeps them."""
        for lightning_logger in trainer.loggers:
            if isinstance(lightning_logger, CSVLogger):
                lightning_logger.save()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Unmark a training run that ends before its first step, so that its folder is deleted."""
        has_stepped = self._has_trained and trainer.global_step > self._first_step
        if trainer.state.fn == "fit" and not has_stepped and trainer.is_global_zero:
            (self.path / CONFIG).unlink(missing_ok=True)  # the command then deletes the folder

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the output folder and the checkpoints of a training run."""
        if is_dry_run(trainer) or stage != "fit":
            return
        tell(f"\nResults:     {self.path}")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                _announce_checkpoints(callback, pl_module)
        if can_predict(pl_module) and self.path.parent.parent == Path("runs"):
            name = quoted(self.path.parent.name)
            tell(f"Predict:     python -m src predict --name {name} --data.predict_dir FOLDER")
            tell(f"Export:      python -m src export --name {name} --check FOLDER")

    def _announce(self, trainer: Trainer, pl_module: LightningModule, verb: str) -> None:
        if not is_dry_run(trainer):
            self._write_files()
        rows = {
            verb: _describe_task(pl_module),
            "Data": _describe_data(trainer),
            **_describe_images(trainer, verb),
            **_describe_rate(trainer, pl_module, verb),
            "Device": _describe_device(trainer),
            **_describe_operators(pl_module),
        }
        if is_dry_run(trainer):
            rows["Results"] = "none (fast_dev_run)"
        elif verb != "Predicting":  # what was predicted, if anything, is named at the end
            rows["Results"] = str(self.path)
        if self.resumed_from:
            rows["Checkpoint"] = self.resumed_from
        elif verb == "Training" and not is_dry_run(trainer):
            rows |= _describe_earlier_versions(self.path)
        text = "\n".join(f"{name + ':':<12} {value}" for name, value in rows.items())
        tell(f"\n{text}\n")

    @rank_zero_only
    def _write_files(self) -> None:
        origin = f"resumed    {self.resumed_from}\n" if self.resumed_from else ""
        files.write_text(self.path / ENVIRONMENT, f"{origin}{report()}\n")
        # Written last, because it marks the run as started.
        files.write_text(self.path / CONFIG, self.config)


def _describe_task(task: LightningModule) -> str:
    if not isinstance(task, BaseTask):
        return type(task).__name__
    network = task.evaluation_network
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return (
        f"{type(task).__name__}: {type(network).__name__},"
        f" {millions:.1f} M parameters, {task.num_classes} classes"
    )


def _describe_data(trainer: Trainer) -> str:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        return "data loaders"
    root = getattr(data, "predict_dir" if trainer.predicting else "root", None)
    folders = getattr(data, "splits", {}).get(_SPLITS.get(trainer.state.fn))
    if str(root) == "." and isinstance(folders, tuple):  # of images and of their annotations
        root = folders[0]
    return type(data).__name__ if root is None or str(root) == "." else str(root)


def _describe_images(trainer: Trainer, verb: str) -> dict[str, str]:
    """Number of training images, if known."""
    images = getattr(trainer.datamodule, "images_in_use", "")  # type: ignore[attr-defined]
    if verb != "Training" or not images:
        return {}
    return {"Images": images + _describe_incomplete_step(trainer)}


def _describe_rate(trainer: Trainer, task: LightningModule, verb: str) -> dict[str, str]:
    """The learning rate of training, if it is scaled by another batch size than its own."""
    if verb != "Training" or not isinstance(task, BaseTask) or trainer.train_dataloader is None:
        return {}
    optimization = task.optimization
    scale, reference = optimization.rate_scale(trainer), optimization.reference_batch_size
    if reference is None or scale == 1 or optimization.found_lr is not None:
        return {}
    return {
        "Rate": f"{task.lr * scale:.3g} for {counted(round(reference * scale), 'image')} per step"
        f" (model.optimizer.lr is {task.lr:.3g} for {reference})"
    }


def _describe_incomplete_step(trainer: Trainer) -> str:
    """A line about images that incomplete steps of an epoch would have: left out or filled up."""
    loader: Any = trainer.train_dataloader
    sampler: Any = getattr(loader, "sampler", None)
    left_out: int = getattr(sampler, "left_out", 0)
    repeated: int = sampler.repeated if getattr(sampler, "is_mixed", False) else 0
    # Otherwise a part of it is asked for.
    is_whole = (left_out or repeated) and trainer.num_training_batches == len(loader)
    if is_whole and repeated:
        again = agreed(repeated, "one comes", f"{repeated} come")
        return (
            f"\n{'':<12} batches have wide or high images only: {again} again in each epoch to fill"
            f" them up, so it has {counted(len(loader), 'step')}"
        )
    if not is_whole:
        return ""
    total = len(loader.dataset)
    if left_out <= _MANY_LEFT_OUT * total:
        return ""
    return (
        f"\n{'':<12} {left_out} of {total} are left out of each epoch, others each time;"
        " a smaller --data.batch_size uses more"
    )


def _describe_earlier_versions(folder: Path) -> dict[str, str]:
    """A note that this run replaces earlier ones of the same name, if there are any."""
    runs = folder.parent
    if versions := [name for name in versions_with_checkpoints(runs) if name != folder.name]:
        return {
            "Note": f"{runs} has earlier versions; --name {quoted(runs.name)} means this one from"
            f" now on, --ckpt_path {quoted(runs / versions[-1])} the previous one"
        }
    return {}


def _describe_device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    count = torch.get_num_threads()
    threads = f" ({count} thread{'s' * (count > 1)})" if device.type == "cpu" else ""
    return f"{trainer.world_size} x {name}{threads}, precision {trainer.precision}"


def describe_operators(network: nn.Module, device: str) -> str:
    """The operators of a network and what computes them, such as ``DCNv3 compiled (AVX512)``.

    Args:
        network: The network.
        device: Type of the device, such as ``cpu``.

    Returns:
        Separated by semicolons; empty if the network has none of them.
    """
    return "; ".join(
        f"{name} {ops.backends(name.lower()).get(device, f'reference (no kernel for {device})')}"
        for name in operators_of(network)
    )


def _describe_operators(task: LightningModule) -> dict[str, str]:
    """The operators of the network, if there are any."""
    network = getattr(task, "evaluation_network", task)
    found = describe_operators(network, task.device.type)
    return {"Operator": found} if found else {}


def _announce_checkpoints(callback: ModelCheckpoint, task: LightningModule) -> None:
    if callback.best_model_path and callback.best_model_score is not None:
        value = float(callback.best_model_score)
        is_of_task = is_score(str(callback.monitor), task)
        text = percent(value) if is_of_task else f"{value:.4f}"
        tell(f"Best:        {callback.best_model_path} ({callback.monitor} {text})")
        meaning = getattr(task, "zero_score", "")
        if meaning and value == 0 and callback.monitor == getattr(task, "monitor", None):
            tell(f"Note:        {meaning}")
    if callback.last_model_path:
        tell(f"Last:        {callback.last_model_path}")
