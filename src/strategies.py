"""Lightning strategies for sharded networks: ``fsdp1`` and ``fsdp2``.

Both extend Lightning's strategies (`FSDPStrategy`, `ModelParallelStrategy`): units are the blocks
of the backbone, checkpoint folders are written atomically, and EMA weights are sharded and saved
like the weights. ``ddp`` is Lightning's own. Sharding itself is implemented in ``src.distributed``.

Tensor parallelism is not supported; networks are sharded over data-parallel ranks only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.strategies import (
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from src import files
from src.distributed import fsdp1
from src.distributed.checkpoints import (
    entry_names,
    is_sharded_checkpoint,
    last_line,
    not_saved,
    read_shapes,
    remove,
    replace,
    unreadable,
)
from src.distributed.sharding import as_shards, average_buffers, load_whole, local
from src.errors import UserError
from src.serialization import (
    REST,
    Folder,
    check_finite,
    check_optimizer_groups,
    first_not_finite,
    flat_state,
    read_checkpoint,
    read_rest,
)
from src.serialization.parallel import RestrictedReader
from src.tasks import resume
from src.tasks.base import BaseTask
from src.tasks.building import SHARDED_UNITS

WEIGHTS, RAW_WEIGHTS = "state_dict", "current_model_state"
"""Entries of a checkpoint: the weights for evaluation and, with EMA, the raw weights."""


class FSDP2Strategy(ModelParallelStrategy):
    """Strategy ``fsdp2``: weights, gradients and optimizer state sharded over all ranks.

    Runs on GPUs (NCCL) and on CPUs (gloo).

    Args:
        save_distributed_checkpoint: Write each checkpoint as a folder with one shard per rank;
            ``False`` gathers everything on rank 0 and writes a single file.
        process_group_backend: ``nccl`` or ``gloo``; default depends on the device.
        timeout: Timeout of collective operations.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Shard over all ranks of all machines."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def task(self) -> BaseTask:
        """The task."""
        if not isinstance(self.lightning_module, BaseTask):
            raise UserError(
                f"fsdp2: expected a BaseTask, got {type(self.lightning_module).__name__}."
            )
        return self.lightning_module

    def on_validation_start(self) -> None:
        """Average batch norm statistics, so that all ranks evaluate with the same ones."""
        self._average_buffers()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """State of the task: the shard of each rank, or the full state on rank 0."""
        self._average_buffers()
        return self.module_state_dict(self.task)

    def _average_buffers(self) -> None:
        average_buffers(self.task.training_network)
        if self.task.is_averaging:
            average_buffers(self.task.evaluation_network)

    def module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """State of a module: the shard of each rank, or the full state on rank 0."""
        whole = not self._save_distributed_checkpoint
        return get_model_state_dict(
            module, options=StateDictOptions(full_state_dict=whole, cpu_offload=True)
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint folder (or file), which replaces the previous one when complete."""
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        parts = {k: checkpoint.pop(k) for k in (WEIGHTS, RAW_WEIGHTS) if k in checkpoint}
        states = checkpoint.pop("optimizer_states", [])
        parts |= {f"optimizer_{i}": state for i, state in enumerate(states)}
        checkpoint["group_sizes"] = [_group_sizes(o.param_groups) for o in self.optimizers]

        def write(folder: Path) -> None:
            save(parts, checkpoint_id=folder)
            if self.global_rank == 0:
                files.write_with(folder / REST, lambda file: torch.save(checkpoint, file))

        _save_atomically(self, path, write)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load weights, EMA weights and optimizer state, saved with any number of ranks.

        Raises:
            UserError: If the checkpoint is of another network or has other parameter groups.
        """
        path = Path(self.broadcast(checkpoint_path))
        return (self._load_folder if is_sharded_checkpoint(path) else self._load_file)(path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Do nothing, because `load_checkpoint` has loaded the weights."""

    @property
    def _is_fitting(self) -> bool:
        return self.task.trainer.state.fn == TrainerFn.FITTING

    def _tasks(self, checkpoint: Mapping[str, Any]) -> tuple[str, str]:
        """Task and network of a checkpoint, and those of the recipe."""
        saved = checkpoint.get("hyper_parameters") or {}
        return resume.task_of(saved), resume.task_of(self.task.hparams)

    def _load_folder(self, path: Path) -> dict[str, Any]:
        folder, rest = Folder(path), read_rest(path)
        shapes, names = read_shapes(folder), entry_names(folder)
        tasks = self._tasks(rest)
        if self._is_fitting:
            resume.check_continues(rest | {"optimizer_states": rest.get("group_sizes")})
        for entry, state in self._destinations(RAW_WEIGHTS in shapes):
            expected = {name: value.shape for name, value in state.items()}
            resume.check_weights(shapes.get(entry, {}), expected, tasks=tasks)
            _load_parts({names[entry]: state}, folder)
            _refuse_not_finite(state, path)
        for i, optimizer in enumerate(self.optimizers if self._is_fitting else ()):
            self.task.check_optimizer(rest, rest["group_sizes"][i])
            name = f"optimizer_{i}"
            found = {name: get_optimizer_state_dict(self.task, optimizer)}
            _load_parts(found, folder)
            check_optimizer_groups(found[name], path)
            _refuse_not_finite(flat_state(found[name]), path)
            set_optimizer_state_dict(self.task, optimizer, optim_state_dict=found[name])
        return rest

    def _load_file(self, path: Path) -> dict[str, Any]:
        content = read_checkpoint(path)
        for entry, state in self._destinations(RAW_WEIGHTS in content):
            saved = {name: value.shape for name, value in content[entry].items()}
            expected = {name: value.shape for name, value in state.items()}
            resume.check_weights(saved, expected, tasks=self._tasks(content))
            load_whole(state, content[entry])
            _refuse_not_finite(state, path)
        states = content.pop("optimizer_states", [])
        for entry in (WEIGHTS, RAW_WEIGHTS):
            content.pop(entry, None)
        if self._is_fitting:
            resume.check_continues(content | {"optimizer_states": states})
            resume.check_moments(states, self.task.parameter_groups())
            for optimizer, state in zip(self.optimizers, states, strict=True):
                self.task.check_optimizer(content, _group_sizes(state["param_groups"]))
                split = _split_state(optimizer, state)
                _refuse_not_finite(flat_state(split), path)
                optimizer.load_state_dict(split)
        return content

    def _destinations(self, has_average: bool) -> list[tuple[str, dict[str, Tensor]]]:
        """Pairs of checkpoint entry and state dict to load it into; an entry can occur twice."""
        task = self.task
        if not self._is_fitting:
            return [(WEIGHTS, task.state_dict())]
        destinations = [(RAW_WEIGHTS if has_average else WEIGHTS, task.state_dict())]
        if task.is_averaging:
            average = task.evaluation_network.state_dict()
            averaged = {f"network.{name}": value for name, value in average.items()}
            destinations.append((WEIGHTS, task.state_dict() | averaged))
        elif has_average:
            resume.warn_about_dropped_ema()
        return destinations


class FSDP1Strategy(FSDPStrategy):
    """Strategy ``fsdp1``: PyTorch's FSDP1, on GPUs only.

    Differences from `FSDPStrategy`: the blocks of the backbone are units unless another policy is
    given, checkpoints are folders unless ``state_dict_type`` is ``full``, and a folder replaces the
    previous one only when it is complete.

    Args:
        auto_wrap_policy: Types of the modules that are units.
        activation_checkpointing_policy: Types of the modules with activation checkpointing. The
            argument ``grad_checkpointing`` of networks has the same effect with every strategy.
        sharding_strategy: ``FULL_SHARD`` shards everything, ``SHARD_GRAD_OP`` gradients and
            optimizer state, ``NO_SHARD`` nothing, ``HYBRID_SHARD`` everything within a machine.
        state_dict_type: ``sharded`` writes folders, ``full`` single files.
        cpu_offload: Keep parameters and gradients in CPU memory.
        device_mesh: For ``HYBRID_SHARD``: number of replicas and ranks per replica.
        kwargs: Further arguments of `FSDPStrategy` and ``FullyShardedDataParallel``.
    """

    def __init__(
        self,
        auto_wrap_policy: set[type[nn.Module]] | None = None,
        activation_checkpointing_policy: set[type[nn.Module]] | None = None,
        sharding_strategy: Literal[
            "FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"
        ] = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "sharded",
        cpu_offload: bool = False,
        device_mesh: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            auto_wrap_policy=auto_wrap_policy or set(SHARDED_UNITS),
            activation_checkpointing_policy=activation_checkpointing_policy,
            sharding_strategy=sharding_strategy,
            state_dict_type=state_dict_type,
            cpu_offload=cpu_offload,
            device_mesh=device_mesh,
            **kwargs,
        )

    def _configure_launcher(self) -> None:
        # Lightning checks this only for the name "fsdp" and its own class.
        if self.root_device.type != "cuda":
            raise UserError(
                f"fsdp1 requires a GPU accelerator, got {self.root_device.type}. fsdp2 also runs on"
                " CPUs."
            )
        super()._configure_launcher()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint folder (or file), which replaces the previous one when complete."""
        path = Path(self.broadcast(filepath))
        if self._state_dict_type == "full":
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        checkpoint["group_sizes"] = [_group_sizes(o.param_groups) for o in self.optimizers]
        write = super().save_checkpoint
        _save_atomically(self, path, lambda folder: write(checkpoint, folder, storage_options))

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint file, or a folder written with FSDP1.

        Raises:
            UserError: If it was written with FSDP2, or contains EMA weights when training.
        """
        path = Path(self.broadcast(checkpoint_path))
        content = (self._load_folder if is_sharded_checkpoint(path) else self._load_file)(path)
        assert self.lightning_module is not None
        if RAW_WEIGHTS in content and self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            raise UserError(
                "The checkpoint contains EMA weights, which fsdp1 does not support. Resume with"
                " --trainer.strategy fsdp2 or ddp."
            )
        return content

    @property
    def _optimizers_in_use(self) -> list[Optimizer]:
        task = self.lightning_module
        assert task is not None
        return list(self.optimizers) if task.trainer.state.fn == TrainerFn.FITTING else []

    def _load_folder(self, path: Path) -> dict[str, Any]:
        folder, rest = Folder(path), read_rest(path)
        if entry_names(folder)[WEIGHTS] == WEIGHTS:
            raise UserError(
                f"{path} was written with fsdp2, which fsdp1 cannot read. Resume with"
                " --trainer.strategy fsdp2, or convert it to a file with"
                f" python -m src consolidate {path}"
            )
        assert self.model is not None
        try:
            fsdp1.load_folder(self.model, self._optimizers_in_use, folder)
        except UserError:
            raise
        # A damaged folder can fail anywhere in PyTorch's planners.
        except (Exception, CheckpointException) as error:
            raise UserError(unreadable(path, error)) from error
        return rest

    def _load_file(self, path: Path) -> dict[str, Any]:
        content = read_checkpoint(path)
        check_finite(content, path)
        task, module = self.lightning_module, self.model
        assert task is not None
        assert module is not None
        if RAW_WEIGHTS not in content or task.trainer.state.fn != TrainerFn.FITTING:
            weights = content.pop("state_dict")
            _load_raw_module_state(weights, module, self.world_size, task.strict_loading)
            optimizers = self._optimizers_in_use
            if optimizers and isinstance(task, BaseTask):
                resume.check_continues(content)
                fsdp1.load_optimizers(module, optimizers, content["optimizer_states"])
        return content


def _load_parts(state: dict[str, Any], folder: Folder) -> None:
    """Load a state from a sharded checkpoint; each rank reads its shard."""
    try:
        load(state, storage_reader=RestrictedReader(folder))
    # A damaged folder can fail anywhere in PyTorch's planners.
    except (Exception, CheckpointException) as error:
        raise UserError(unreadable(folder.path, error)) from error


def _refuse_not_finite(tensors: Mapping[str, Any], path: Path) -> None:
    """Raise an error on all ranks if the shard of any rank has NaN or infinite values."""
    shards = ((name, local(value)) for name, value in tensors.items() if isinstance(value, Tensor))
    names = _gather(first_not_finite(shards))
    if names:
        raise UserError(
            f"The checkpoint {path} has NaN or infinite values, first in {names[0]}: training has"
            " diverged, or the file is damaged. Use an older checkpoint."
        )


def _save_atomically(strategy: Any, path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary folder and rename it when all ranks have succeeded."""
    part = path.with_name(path.name + ".part")
    is_first = strategy.global_rank == 0

    def clear() -> None:
        remove(part)
        part.mkdir(parents=True)

    steps: list[Callable[[], None]] = [
        clear if is_first else _nothing,
        lambda: write(part),
        (lambda: replace(part, path)) if is_first else _nothing,
    ]
    for step in steps:
        problems = _gather(_problem_of(step))
        if problems:
            if is_first:
                with suppress(OSError):
                    remove(part)
            raise UserError(not_saved(path, problems[0]))


def _nothing() -> None:
    """Step of the other ranks while rank 0 moves folders."""


def _problem_of(step: Callable[[], None]) -> str | None:
    try:
        step()
    # PyTorch can raise any exception here, and all ranks must stop.
    except (Exception, CheckpointException) as error:
        return last_line(error)
    return None


def _gather(problem: str | None) -> list[str]:
    gathered: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, problem)
    return [text for text in gathered if text is not None]


def _group_sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _split_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Full optimizer state, sharded like the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return state | {
        "state": {
            number: {
                name: as_shards(value, parameters[number])
                if isinstance(value, Tensor) and value.shape == parameters[number].shape
                else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
    }


for _name, _strategy, _text in (
    ("fsdp1", FSDP1Strategy, "Fully sharded data parallel, FSDP1 (GPUs only)"),
    ("fsdp2", FSDP2Strategy, "Fully sharded data parallel, FSDP2"),
):
    StrategyRegistry.register(_name, _strategy, _text, override=True)
