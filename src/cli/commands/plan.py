"""``python -m src plan``: memory per GPU of a recipe under each strategy, and suggested settings.

The sizes of parameters, optimizer state and EMA weights follow from the recipe; gradients and
activations are measured on fake tensors (``src.profiling.memory``). Neither data nor a GPU is
needed. ``docs/scaling.md`` describes the estimate and compares it with measured peaks.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from src.cli.app import TrainingCLI
from src.cli.class_count import ClassCount, class_count
from src.cli.run_settings import with_settings_of_run
from src.cli.tool_parser import ToolParser, add_recipe_options
from src.cli.training_plan import add_arguments, describe_training
from src.errors import UserError, counted
from src.models.image_text import ImageTextModel
from src.profiling.memory import PRECISIONS, StepMemory, extrapolate, measure_step, omitted_part
from src.tasks.base import BaseTask
from src.tasks.building import SHARDED_UNITS
from src.tasks.partial_training import adapt

STRATEGIES = ("ddp", "fsdp1 SHARD_GRAD_OP", "fsdp2")
_POWERS = {"M": 2, "G": 3, "T": 4}
_RESERVE = 0.1  # fraction of memory for CUDA context, fragmentation and library workspaces
_GIB = 2**30
_MEMORY = "80GB"  # of a GPU, unless --memory is given
_ASSUMED = (
    f",\nthe memory of a GPU with {_MEMORY} such as the A100 or H100; give that of yours with"
    " --memory"
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of persistent training state, before sharding.

    Attributes:
        parameters: Weights and buffers.
        gradients: Gradients of the trainable weights.
        optimizer: State of the optimizer.
        average: EMA weights; 0 without EMA.
        largest_unit: Weights of the largest block.
        rest: Weights outside the blocks, which sharding strategies keep gathered during a step.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    largest_unit: int
    rest: int


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU."""

    parameters: int
    optimizer: int
    average: int
    step: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.parameters + self.optimizer + self.average + self.step


class Recipe(TrainingCLI):
    """A recipe that is parsed but not built: neither data nor weights are read."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    @property
    def data(self) -> dict[str, Any]:
        """Settings of the data module."""
        return dict(self.config.data.init_args.as_dict())

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return self.run_name

    @property
    def has_average(self) -> bool:
        """Whether the recipe uses EMA."""
        return any("EMA" in call.class_path for call in self.config.trainer.callbacks or ())

    def image_size(self) -> tuple[int, int]:
        """Height and width of the largest training image, rounded up to multiples of 32."""
        data = self.data
        if "image_size" in data:
            size: Sequence[int] = (data["image_size"],) * 2
        elif "crop_size" in data:
            size = data["crop_size"]
        else:
            size = max(data["train_scales"], key=lambda scale: scale[0] * scale[1])[::-1]
        height, width = (-(-int(side) // 32) * 32 for side in size)
        return height, width

    def task(self, num_classes: int) -> BaseTask:
        """The task, without its network."""
        from lightning.pytorch.cli import instantiate_module

        settings = self.config.model.init_args.as_dict()
        settings |= {"_class_path": self.config.model.class_path}
        settings |= {"num_classes": num_classes, "weights": None}
        task = instantiate_module(BaseTask, settings)
        assert isinstance(task, BaseTask)
        return task


class Plan:
    """Memory estimate of a recipe for a number of GPUs.

    Args:
        recipe: The recipe.
        gpus: Number of GPUs.
        classes: Number of classes.
    """

    def __init__(self, recipe: Recipe, gpus: int, classes: ClassCount) -> None:
        self.recipe, self.gpus, self.task = recipe, gpus, recipe.task(classes.number)
        self.classes = classes
        self.precision = str(recipe.config.trainer.precision or "32-true")
        if self.precision not in PRECISIONS:
            raise UserError(
                f"plan supports the precisions {', '.join(PRECISIONS)}, got {self.precision}."
            )
        self.task.compilation = None  # the meta device computes nothing
        with torch.device("meta"):
            self.network = self._make_network()
        self.checkpointing = any(
            getattr(m, "grad_checkpointing", 0) for m in self.network.modules()
        )
        self.sizes = sizes_of(self.task, self.network, self.precision, recipe.has_average)
        self.measure = cache(self._measure)

    def _make_network(self) -> nn.Module:
        """The network as it is trained, with low-rank updates if the recipe has them."""
        network = self.task.make_network()
        if self.task.lora is not None:
            adapt(network, self.task.lora)
        return network

    def _measure(self, batch: int, checkpointing: bool) -> StepMemory:
        return measure_step(
            self._make_network,
            self.recipe.image_size(),
            batch,
            precision=self.precision,
            checkpointing=checkpointing,
        )

    def step(self, batch: int, share: float, checkpointing: bool, accumulates: bool) -> int:
        """Peak bytes of gradients and activations, extrapolated from two small batches."""
        two, three = (self.measure(b, checkpointing) for b in (2, 3))
        return extrapolate(two, three, batch).peak(share, accumulates=accumulates)

    def need(
        self, strategy: str, batch: int, checkpointing: bool, *, accumulates: bool = False
    ) -> Need:
        """Bytes on one GPU.

        Args:
            strategy: One of `STRATEGIES`.
            batch: Images per GPU and step.
            checkpointing: Whether activation checkpointing is on.
            accumulates: Whether gradients are accumulated over batches.
        """
        sizes, gpus = self.sizes, self.gpus
        step = partial(self.step, batch, checkpointing=checkpointing, accumulates=accumulates)
        if strategy == "ddp":
            buckets = sizes.gradients if gpus > 1 else 0  # buckets of the all-reduce
            step_bytes = step(share=1.0) + buckets
            return Need(sizes.parameters, sizes.optimizer, sizes.average, step_bytes)
        gathered = sizes.rest + 2 * sizes.largest_unit  # gathered weights, unsharded gradients
        step_bytes = step(share=1 / gpus) + sizes.rest + sizes.largest_unit
        sharded = sizes.parameters // gpus + gathered
        parameters = sharded if strategy == "fsdp2" else sizes.parameters
        return Need(parameters, sizes.optimizer // gpus, sizes.average // gpus, step_bytes)

    def largest_batch(self, strategy: str, limit: int, checkpointing: bool, most: int) -> int:
        """Largest batch up to ``most`` that fits, or 0."""
        batch = most
        while batch and self.need(strategy, batch, checkpointing, accumulates=True).total > limit:
            batch //= 2
        return batch


def sizes_of(task: BaseTask, network: nn.Module, precision: str, has_average: bool) -> Sizes:
    """Sizes of a network, its gradients, optimizer state and EMA weights."""
    width = 2 if precision.endswith("16-true") else 4
    units = [module for module in network.modules() if isinstance(module, SHARDED_UNITS)]
    per_unit = [sum(p.numel() for p in unit.parameters()) for unit in units]
    weights = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    buffers = sum(b.numel() for b in network.buffers())
    return Sizes(
        parameters=(weights + buffers) * width,
        gradients=trained * width,
        optimizer=trained * width * optimizer_states(task),
        average=(weights + buffers) * width * has_average,
        largest_unit=max(per_unit, default=0) * width,
        rest=(weights - sum(per_unit)) * width,
    )


def optimizer_states(task: BaseTask) -> int:
    """Number of optimizer state values per weight, for example 2 for AdamW."""
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = task.optimization.make_optimizer([weight])
    weight.grad = torch.zeros(8, 8)
    optimizer.step()
    values = (v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    return sum(value.numel() for value in values) // weight.numel()


def read_bytes(text: str) -> int:
    """Bytes of a size: ``80GB`` or ``80`` is 80 * 1000^3, ``80GiB`` is 80 * 1024^3."""
    match = re.fullmatch(r"(\d+\.?\d*)\s*([MGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise UserError(f"--memory: expected a size such as 80GB or 79GiB, got {text!r}.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].upper() or "G"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan.

    Args:
        argv: Arguments without the program name; default is the command line.

    Returns:
        0.

    Raises:
        UserError: If an argument is invalid.
    """
    args, given = _parser().parse_known_args(argv)
    settings = with_settings_of_run(["plan", *given])[1:]
    if args.gpus < 1:
        raise UserError(f"--gpus: expected a positive number, got {args.gpus}.")
    memory = read_bytes(args.memory or _MEMORY)
    recipe = Recipe.create(settings, run=False)
    plan = Plan(recipe, args.gpus, class_count(recipe.config, settings, args.num_classes))
    batch = args.batch_size or int(recipe.data["batch_size"])
    print(describe(plan, batch))
    print(table(plan, batch, memory, is_given=args.memory is not None))
    print(proposal(plan, memory, args.global_batch or batch * args.gpus))
    if isinstance(plan.network, ImageTextModel):
        epochs = recipe.config.trainer.max_epochs
        print(describe_training(plan.network, recipe.image_size(), args, batch, epochs))
        return 0
    if args.tflops and args.images:
        print(duration(plan, args.tflops, args.images))
    return 0


def describe(plan: Plan, batch: int) -> str:
    """Header with network, GPUs, batch size, precision and FLOPs."""
    weights = sum(parameter.numel() for parameter in plan.network.parameters())
    height, width = plan.recipe.image_size()
    per_image = plan.measure(2, plan.checkpointing).operations / 2
    classes = "" if isinstance(plan.network, ImageTextModel) else f", {plan.classes}"
    return (
        f"{plan.recipe.name}: {type(plan.network).__name__}, {weights / 1e6:,.1f} M parameters"
        f"{classes}\n"
        f"{counted(plan.gpus, 'GPU')}, {counted(batch, 'image')} of {height} x {width} on each,"
        f" {plan.precision},"
        f" checkpointing {'on' if plan.checkpointing else 'off'},"
        f" {per_image / 1e12:.2f} TFLOP per image forward and backward"
    )


def table(plan: Plan, batch: int, memory: int, *, is_given: bool) -> str:
    """Memory of the recipe as given, under each strategy.

    Args:
        plan: The estimate.
        batch: Images per GPU and step.
        memory: Bytes of each GPU.
        is_given: Whether the user has given them, or they are `_MEMORY`.
    """
    names = {"parameters": "parameters", "optimizer": "optimizer", "average": "EMA weights"}
    names |= {"step": "step", "total": "total"}
    lines = ["", f"{'GiB per GPU':22}" + "".join(f"{name:>12}" for name in names.values())]
    for strategy in STRATEGIES:
        need = plan.need(strategy, batch, plan.checkpointing)
        values = "".join(f"{getattr(need, name) / _GIB:12.2f}" for name in names)
        verdict = "fits" if need.total <= (1 - _RESERVE) * memory else "does not fit"
        lines.append(f"{strategy:22}{values}   {verdict}")
    lines.append(
        f"step: peak of gradients and activations. fits: total is within {1 - _RESERVE:.0%} of"
        f" {memory / _GIB:.1f} GiB{'' if is_given else _ASSUMED}."
    )
    if part := omitted_part(plan.network):
        lines.append(
            f"The activations of the {part} of {type(plan.network).__name__} are not included."
        )
    return "\n".join(lines)


def proposal(plan: Plan, memory: int, global_batch: int) -> str:
    """Suggested strategy, batch size, gradient accumulation and activation checkpointing."""
    limit, most = int((1 - _RESERVE) * memory), max(1, global_batch // plan.gpus)
    found = []
    for checkpointing in sorted({plan.checkpointing, True}):
        for strategy in ("ddp", "fsdp2"):
            batch = plan.largest_batch(strategy, limit, checkpointing, most)
            if batch == most:
                return _proposed(plan, strategy, batch, checkpointing, global_batch)
            found.append((batch, strategy, checkpointing))
    batch, strategy, checkpointing = max(found, key=lambda option: option[0])
    if not batch:
        return "\nNo setting fits. Use more GPUs, smaller images, or fsdp1 with cpu_offload."
    return _proposed(plan, strategy, batch, checkpointing, global_batch)


def _proposed(plan: Plan, strategy: str, batch: int, checkpointing: bool, global_batch: int) -> str:
    accumulate = max(1, -(-global_batch // (batch * plan.gpus)))
    flags = [
        f"--trainer.strategy {strategy if plan.gpus > 1 else 'auto'}",
        f"--trainer.devices {plan.gpus}",
        f"--data.batch_size {batch}",
        f"--trainer.accumulate_grad_batches {accumulate}",
    ]
    if checkpointing != plan.checkpointing:
        flags.append("and grad_checkpointing: true for the backbone")
    total = plan.need(strategy, batch, checkpointing, accumulates=accumulate > 1).total
    return (
        f"\nSuggested settings for a global batch size of {batch * plan.gpus * accumulate}"
        f" ({total / _GIB:.1f} GiB per GPU):\n  {' '.join(flags)}"
    )


def duration(plan: Plan, tflops: float, images: int) -> str:
    """Duration of an epoch at a given throughput."""
    operations = plan.measure(2, plan.checkpointing).operations / 2 * images
    hours = operations / (tflops * 1e12 * plan.gpus) / 3600
    return f"\nAn epoch of {images:,} images takes {hours:.2f} h at {tflops:g} TFLOP/s per GPU."


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src plan",
        usage="python -m src plan (--config FILE | --name RUN | --ckpt_path FILE) [options]",
        description="Estimate the memory per GPU of training a recipe, under each strategy.\n"
        "Also accepts the settings of fit: --data.batch_size, --trainer.precision, ...",
    )
    add_recipe_options(parser, "plan the training of a run again, with its recipe and its classes")
    parser.add_argument("--gpus", type=int, default=1, help="total number of GPUs")
    parser.add_argument(
        "--memory",
        help=f"memory of each GPU: {_MEMORY} (default), or 79GiB as nvidia-smi reports it",
    )
    parser.add_argument(
        "--batch_size", type=int, help="images per GPU; default: that of the recipe"
    )
    parser.add_argument("--global_batch", type=int, help="desired images per optimizer step")
    parser.add_argument("--num_classes", type=int, help="default: that of the dataset or the run")
    parser.add_argument("--tflops", type=float, help="measured throughput of a GPU")
    parser.add_argument("--images", type=int, help="images per epoch, to estimate its duration")
    add_arguments(parser)
    return parser
