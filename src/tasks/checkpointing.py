"""Checkpoint hooks of a task: additional entries, and validation before loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from src.distributed import shapes_of
from src.errors import UserError
from src.serialization import check_finite, read_checkpoint
from src.tasks import resume
from src.tasks.class_names import class_names_of
from src.tasks.evaluation import EvaluationHooks
from src.tasks.saved import check_progress, make_task
from src.tasks.training import TrainingHooks


class CheckpointHooks(TrainingHooks, EvaluationHooks):
    """Part of `BaseTask` that saves and resumes."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the class names of the weights, and a description of their optimizer."""
        if class_names := class_names_of(self._trainer):
            checkpoint["class_names"] = class_names
        if len(self.trainer.optimizers) == 1 and self.optimization.current:
            checkpoint[resume.KEY] = resume.describe(
                self.trainer, self.optimization, self.training_network
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another network; drop EMA weights if the EMA callback is not used.

        Raises:
            UserError: If names or shapes of the weights differ, or the optimizer cannot resume.
        """
        self.compare_classes(checkpoint.get("class_names", []))
        if self._trainer is not None:
            check_progress(checkpoint, self.trainer)
        if "state_dict" in checkpoint:  # otherwise a sharding strategy has checked and loaded it
            self._check_file(checkpoint)
        if self._is_fitting:
            if self.trainer.ckpt_path is not None:  # not a checkpoint of a finder
                resume.check_is_unfinished(checkpoint, self.trainer)
            resume.keep_settings_of_callbacks(checkpoint, self.trainer.callbacks)  # type: ignore[attr-defined]
            self._resumed = resume.Resumed(checkpoint)
            for state in checkpoint.get("optimizer_states", []):
                resume.settings_into(state, self.optimization.make_optimizer)

    def _check_file(self, checkpoint: dict[str, Any]) -> None:
        if "current_model_state" in checkpoint and self._is_fitting and not self.is_averaging:
            resume.warn_about_dropped_ema()
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        resume.check_weights(
            shapes_of(checkpoint["state_dict"]),
            shapes_of(self.state_dict()),
            checkpoint.get("class_names", []),
            class_names_of(self._trainer),
            (
                resume.task_of(checkpoint.get("hyper_parameters") or {}),
                resume.task_of(self.hparams),
            ),
        )
        if self._is_fitting:
            resume.check_continues(checkpoint)
            state, groups = checkpoint["optimizer_states"][0], self.parameter_groups()
            self.check_optimizer(checkpoint, [len(g["params"]) for g in state["param_groups"]])
            resume.check_moments(checkpoint["optimizer_states"], groups)
            resume.check_states(state, self.optimization.make_optimizer)

    def check_optimizer(self, checkpoint: Mapping[str, Any], sizes: list[int]) -> None:
        """Refuse optimizer state of another optimizer or of other parameter groups.

        Args:
            checkpoint: Content of the checkpoint.
            sizes: Number of parameters in each of its groups.

        Raises:
            UserError: If the optimizer or its groups differ.
        """
        groups = self.parameter_groups()
        now = [len(group["params"]) for group in groups]
        if sizes != now:
            raise UserError(
                f"The checkpoint groups the parameters for the optimizer as {sizes}, the current"
                f" settings as {now}. Keep layer_decay, dcn_lr_scale and freeze as they were, or"
                " start a new run from the weights with --model.weights."
            )
        described = checkpoint.get(resume.KEY, {})
        make_optimizer = self.optimization.make_optimizer
        resume.check_optimizer(described, groups, make_optimizer, self.training_network)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, **settings: Any
    ) -> Self:
        """Build the task described by a checkpoint, with its weights.

        Networks, losses, optimizers and schedules must be classes of this project or of
        ``torch.optim``; a checkpoint cannot refer to other classes.

        Args:
            checkpoint_path: File written by a run of the command line; convert a folder with
                ``consolidate``.
            settings: Arguments that override those of the file. Factories that were passed from
                Python are not saved and must be given.

        Raises:
            UserError: If the file cannot be read, or refers to classes of other packages.
        """
        path = Path(checkpoint_path)
        content = read_checkpoint(path)
        check_finite(content, path)
        task = make_task(cls, content.get("hyper_parameters") or {}, settings, path)
        task.configure_model()
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"])
        return task
