"""LightningCLI of this project: classes, default callbacks, run folder and checkpoint.

The configuration chooses the task and the data module (subclass mode); the number of classes is
passed from the data to the task. Checkpoints never change the configuration: only weights and
states are read from them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, Self

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from src.callbacks import (
    AtomicCheckpointIO,
    Checkpoint,
    ClassPredictionWriter,
    ClassTable,
    DataWaiting,
    DetectionWriter,
    EpochSeed,
    FinalValidation,
    GracefulStop,
    LabelMapWriter,
    MonitorCheck,
    NetworkSummary,
    PanopticWriter,
    RunFolder,
    StepBoundary,
    TerminateOnNaN,
    TimeEstimate,
    UnreadableImages,
)
from src.callbacks.loggers import default_loggers
from src.callbacks.monitors import check_callbacks
from src.callbacks.progress import default_progress
from src.callbacks.run_folder import next_run_folder, tell
from src.cli.arguments import checked, option
from src.cli.checkpoints import (
    check_reads_safely,
    failed_while_restoring,
    refuse_untrained,
    resolve_checkpoint,
)
from src.cli.class_errors import invalid_value, missing_package
from src.cli.interruption import after_interrupted_fit
from src.cli.parser_errors import explain
from src.cli.process_failures import explanation
from src.cli.slurm import checkpoint_of_requeued_job, requeue
from src.cli.third_party_warnings import quieten
from src.cli.trainer_errors import (
    check_number_of_devices,
    explain_trainer,
    float32_on_cpu,
    warn_about_precision,
)
from src.cli.unused_settings import warn_about_unused_settings
from src.data.datamodules import BaseDataModule
from src.data.formats.image_files import left_out_files
from src.errors import UserError, printable
from src.file_names import check_name, name_of
from src.models import InternImage  # noqa: F401  short name for YAML
from src.runs import CONFIG, AbsentCheckpointError, has_results
from src.serialization import shown
from src.serialization.former_names import former_arguments, present_name, with_present_names
from src.stopping import Interrupted, active
from src.strategies import FSDP1Strategy, FSDP2Strategy  # noqa: F401  short names for YAML
from src.tasks import BaseTask

_SHUTDOWN_SECONDS = 8.0
"""Time for the other ranks to exit after rank 0, when all ranks have stopped together."""
_DEFAULT_CALLBACKS = {
    "checkpoint": Checkpoint,
    "lr_monitor": LearningRateMonitor,
    "model_summary": NetworkSummary,
    "predictions": ClassPredictionWriter,
    "label_maps": LabelMapWriter,
    "panoptic": PanopticWriter,
    "class_table": ClassTable,
    "detections": DetectionWriter,
    "terminate_on_nan": TerminateOnNaN,
    "data_waiting": DataWaiting,
}

_FORMER_SETTINGS = {"max_pictures": "max_images"}


class Parser(LightningArgumentParser):
    """Parser with one-line error messages.

    Arguments may also be given by their former names (``src.serialization.former_names``).
    """

    _class: type | None = None
    """Class whose arguments this parser is for, without a prefix."""

    def add_class_arguments(
        self, class_type: type, nested_key: str | None = None, **kwargs: Any
    ) -> list[str]:
        """Add the arguments of a class."""
        self._class = None if nested_key else class_type
        return super().add_class_arguments(class_type, nested_key, **kwargs)

    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse values by name."""
        if former_arguments(self._class):
            values = vars(obj) if isinstance(obj, Namespace) else obj
            obj = Namespace(with_present_names(self._class, values))
        return super().parse_object(obj, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse the text of a file, which may have former names of the settings of callbacks."""
        for former, present in _FORMER_SETTINGS.items():
            renamed = re.sub(rf"\b{former}(?=\s*:)", present, content)
            if renamed != content:
                content = renamed
                warnings.warn(
                    f"The setting {former} was renamed to {present}.", FutureWarning, stacklevel=2
                )
        return super().parse_string(content, *args, **kwargs)

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse options, which for the arguments of a class have the form ``--name=value``."""
        if args and former_arguments(self._class):
            options = [arg.removeprefix("--").partition("=") for arg in args]
            args = [f"--{present_name(self._class, n)}{sep}{v}" for n, sep, v in options]
        return super().parse_args(args, *more, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UserError`; if ``exit_on_error`` is false, behave like the base."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(explain(message, getattr(ex, "subcommand_parser", None) or self)) from ex


class TrainingCLI(LightningCLI):
    """Task, data module and trainer from the command line; use `create` to build one."""

    _has_command = True

    @classmethod
    def create(cls, args: list[str], *, run: bool) -> Self:
        """Parse ``args`` and build everything; with ``run``, the first argument is the command."""
        quieten()
        cls._has_command = run
        args = checked(args, after=1 if run else 0)
        # Lightning reads sys.argv when it launches other ranks, and warns if it also gets `args`.
        argv, sys.argv = sys.argv, [sys.argv[0], *(args if run else [])]
        try:
            return cls(
                BaseTask,
                BaseDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,  # RunFolder does it
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={"prog": "python -m src", "allow_abbrev": False},
                auto_configure_optimizers=False,
                args=None if run else args,
                run=run,
            )
        except ModuleNotFoundError as error:
            raise UserError(missing_package(error)) from error
        except ValueError as error:
            message = None if isinstance(error, UserError) else invalid_value(str(error))
            if message is None:
                raise
            raise UserError(message) from error
        finally:
            sys.argv = argv

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the given command, because building the parsers of all four takes longer."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run name and the default callbacks, which can be configured."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run folder, runs/<name>. Default: joined names of the config files.",
        )
        if not self._has_command:
            # The config.yaml of a run contains these keys; Lightning adds them for its commands.
            for key, kind in (("ckpt_path", str), ("weights_only", bool)):
                parser.add_argument(f"--{key}", type=kind | None, help="Ignored.")
        for key, callback in _DEFAULT_CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.callback_keys.clear()  # `instantiate_trainer` selects them depending on other flags
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    def _parse_ckpt_path(self) -> None:
        """Keep the settings of the user instead of the hyperparameters of the checkpoint."""

    @property
    def run_config(self) -> Any:
        """Settings of the command, without the command as prefix."""
        return self.config[self.subcommand] if self.subcommand else self.config

    @property
    def run_name(self) -> str:
        """Name of the run: ``--name``, or the configuration files, for example ``recipe-fsdp2``."""
        if self.run_config.name is not None:
            return check_name(str(self.run_config.name), "--name")
        files = [Path(str(file)) for file in self.run_config.config or []]
        return name_of((file.stem for file in files), "unnamed")

    @property
    def runs(self) -> Path:
        """Folder of all runs of this name."""
        return Path(self.run_config.trainer.default_root_dir or "runs") / self.run_name

    def before_instantiate_classes(self) -> None:
        """Find and validate the checkpoint before anything is built."""
        if self.run_config.model.get("init_args", {}).get("num_classes") is not None:
            raise UserError(
                "model.num_classes cannot be set, because it is the number of classes of the data."
                " Remove it; use data.class_names for classes that have no folder."
            )
        _write_enumerations(self.config)
        self.checkpoint: Path | None = None
        given = self.run_config.get("ckpt_path")
        if not given and self.subcommand == "fit":
            given = checkpoint_of_requeued_job(self.runs)
        if given:
            self.checkpoint = resolve_checkpoint(str(given), self.runs)
            self.run_config["ckpt_path"] = str(self.checkpoint)
        elif self.run_config.model.get("init_args", {}).get("weights") is None:
            refuse_untrained(self.subcommand, self.runs)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer with this project's loggers, callbacks and run folder."""
        config = self._get(self.config_init, "trainer")
        check_number_of_devices(config)
        warn_about_unused_settings(self.run_config, self.model, sys.argv)
        reserve = self.subcommand is not None and not config.fast_dev_run
        self._folder = folder = self._choose_folder(reserve=reserve)
        self._is_reserved = reserve
        callbacks = [MonitorCheck(), *_as_list(config.callbacks)]  # before callbacks that monitor
        check_callbacks(callbacks)
        callbacks += self._default_callbacks(config, callbacks, folder)
        kwargs = {"default_root_dir": self.runs, "callbacks": callbacks, **kwargs}
        if config.logger is not False:
            given = [] if config.logger is True else _as_list(config.logger)
            defaults = [] if self.subcommand == "predict" else default_loggers(folder, given)
            kwargs["logger"] = [*defaults, *given]
        plugins = _as_list(config.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if self.subcommand == "predict" and option(sys.argv, "--trainer.precision") is None:
            kwargs |= float32_on_cpu(config)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, RuntimeError, ValueError, TypeError) as error:
            if reserve:
                _discard_unless_started(folder)
            raise UserError(explain_trainer(error)) from error
        warn_about_precision(config.precision, trainer)
        # After Lightning's own callbacks, of which the timer of max_time may stop the training.
        trainer.callbacks.append(FinalValidation())  # type: ignore[attr-defined]
        GracefulStop.install(trainer)
        return trainer

    def _choose_folder(self, *, reserve: bool) -> Path:
        # Other ranks launched by Lightning get the folder from RunFolder.
        prefix = "version" if self.subcommand in (None, "fit") else self.subcommand
        folder = next_run_folder(self.runs, prefix)
        while reserve and _is_first_process():
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:  # another run has just created it
                folder = next_run_folder(self.runs, prefix)
            except OSError as error:
                raise UserError(
                    f"Cannot create the run folder {folder} ({error.strerror}). Choose another"
                    " location with --trainer.default_root_dir."
                ) from error
        return folder

    def _default_callbacks(
        self, config: Any, given: list[Callback], folder: Path
    ) -> list[Callback]:
        has_logger = config.logger is not False and not config.fast_dev_run
        enabled = {
            "checkpoint": config.enable_checkpointing is not False and not config.fast_dev_run,
            "lr_monitor": has_logger and self.subcommand in (None, "fit"),
            "model_summary": config.enable_model_summary is not False,
        }
        keys = [key for key in _DEFAULT_CALLBACKS if enabled.get(key, True)]
        callbacks = [self._get(self.config_init, key) for key in keys]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        if config.enable_progress_bar is not False and not _any(given, ProgressBar):
            callbacks.append(default_progress())
        seed = self.run_config.seed_everything
        callbacks += [
            EpochSeed(seed if isinstance(seed, int) else 0),
            StepBoundary(),
        ]
        resumed = str(self.checkpoint) if self.checkpoint else None
        callbacks += [RunFolder(folder, self._config_text(), resumed), TimeEstimate()]
        self._unreadable = UnreadableImages()
        callbacks.append(self._unreadable)
        return callbacks

    def _config_text(self) -> str:
        """The complete configuration as YAML, without a checkpoint to resume from."""
        parser = self._parser(self.subcommand)
        config = self.run_config.clone()
        config["name"] = self.run_name
        if "ckpt_path" in config:
            config["ckpt_path"] = None
        return str(parser.dump(config, skip_none=False))

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        self._run("fit", kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Evaluate on the validation split."""
        self._run("validate", kwargs)

    def test(self, **kwargs: Any) -> None:
        """Evaluate on the test split."""
        self._run("test", kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping the outputs in memory; the writer callbacks store them."""
        self._run("predict", kwargs | {"return_predictions": False})
        for others in left_out_files(self.datamodule.predict_source()):
            tell(f"Left out:    {printable(others)}")
        if self._unreadable.paths:
            is_error = self.datamodule.broken_images == "error"
            message = self._unreadable.message(is_error=is_error)
            if is_error:
                raise UserError(message)
            rank_zero_warn(message)

    def _run(self, command: str, kwargs: dict[str, Any]) -> None:
        if self.checkpoint is not None:
            self.model.weights = None  # the checkpoint replaces them
            check_reads_safely(self.trainer)
        elif command != "fit" and self.model.weights is None:
            missing = "neither --ckpt_path nor --model.weights is set"
            rank_zero_warn(f"{command} uses an untrained network, because {missing}.")
        has_ended = False
        try:
            if self.checkpoint is not None and not self.checkpoint.exists():
                raise AbsentCheckpointError(f"The checkpoint {self.checkpoint} has been deleted.")
            getattr(self.trainer, command)(**kwargs)
            has_ended = True
        except MisconfigurationException as error:
            raise UserError(explain_trainer(error)) from error
        except UserError:
            raise
        except Exception as error:
            is_restoring = self.checkpoint is not None and failed_while_restoring(error)
            if not is_restoring or explanation(error) is not None:
                raise
            reason = shown((str(error).strip().splitlines() or [type(error).__name__])[0], 160)
            raise UserError(
                f"The checkpoint {self.checkpoint} does not match this run: {reason}. Use the"
                " config.yaml of the run that wrote it, or another checkpoint."
            ) from error
        # Lightning raises SystemExit after a KeyboardInterrupt, when it has saved and cleaned up.
        except (SystemExit, Interrupted) as stop:
            self._end_other_ranks(stop)
            raise Interrupted(self._how_to_resume(command)) from stop
        finally:
            if self._is_reserved:
                has_failed = command != "fit" and not has_ended
                needs_results = has_failed and not self.trainer.logged_metrics
                _discard_unless_started(self._folder, needs_results)

    @staticmethod
    def _end_other_ranks(stop: BaseException) -> None:
        if (stops := active()) is not None:
            stops.finish()
            stops.end_children(_SHUTDOWN_SECONDS if getattr(stop, "agreed", False) else 0.0)

    def _how_to_resume(self, command: str) -> str:
        """Message after a stop by a signal; requeues the job if SLURM has asked for it."""
        stops = active()
        if stops is not None and stops.requeues and command == "fit" and _is_first_process():
            return requeue()
        if command != "fit":
            return f"Interrupted: {command} has not finished. Run the same command again."
        return after_interrupted_fit(self.trainer, self.model)


def _is_first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _write_enumerations(settings: Any) -> None:
    """Replace string enums, which some of Lightning's callbacks have as defaults, by strings."""
    entries = vars(settings) if isinstance(settings, Namespace) else settings
    pairs = entries.items() if isinstance(entries, dict) else enumerate(entries)
    for key, value in list(pairs):
        if isinstance(value, Enum) and isinstance(value, str):
            entries[key] = str(value.value)
        elif isinstance(value, (Namespace, dict, list)):
            _write_enumerations(value)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _discard_unless_started(folder: Path, needs_results: bool = False) -> None:
    """Delete the folder that this run has reserved if it never started, or lacks needed results."""
    is_started = (folder / CONFIG).exists() or any(folder.rglob("*.ckpt"))
    if not _is_first_process() or (is_started and not (needs_results and not has_results(folder))):
        return
    shutil.rmtree(folder, ignore_errors=True)  # the disk may be read-only
    for path in (folder.parent, folder.parent.parent):
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def _any(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
