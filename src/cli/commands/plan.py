"""``python -m src plan``: what a recipe needs on each GPU under each strategy, and what to change.

Sizes of parameters, optimizer state and EMA weights follow from the recipe; gradients and
activations are measured on fake tensors (``src.profiling.memory``). No data and no GPU are needed.
What is added up, and how it compares with measured peaks, is in ``docs/scaling.md``.
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
from src.errors import UserError
from src.profiling.memory import PRECISIONS, StepMemory, extrapolate, measure_step, omitted_part
from src.tasks.base import BaseTask
from src.tasks.building import SHARDED_UNITS

STRATEGIES = ("ddp", "fsdp1 SHARD_GRAD_OP", "fsdp2")
_CLASSES = {"ClassificationTask": 1000, "DetectionTask": 80, "SegmentationTask": 150}
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_RESERVE = 0.1  # CUDA context, fragmentation, workspace of the libraries
_GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a training keeps from step to step, unsplit.

    Attributes:
        parameters: Weights and buffers.
        gradients: Gradients of the trainable weights.
        optimizer: State of the optimizer.
        average: Moving average; 0 without one.
        largest_unit: Weights of the largest block.
        rest: Weights outside of the blocks, which sharding strategies keep gathered in a step.
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
        """Everything."""
        return self.parameters + self.optimizer + self.average + self.step


class Recipe(TrainingCLI):
    """A recipe that is read but not built: neither data nor weights are touched."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

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
        """Whether the recipe keeps a moving average."""
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

    def task(self, num_classes: int | None) -> BaseTask:
        """The task, without its network."""
        from lightning.pytorch.cli import instantiate_module

        path = self.config.model.class_path
        classes = num_classes or _CLASSES.get(path.rpartition(".")[2], 1000)
        settings = self.config.model.init_args.as_dict()
        settings |= {"_class_path": path, "num_classes": classes, "weights": None}
        task = instantiate_module(BaseTask, settings)
        assert isinstance(task, BaseTask)
        return task


class Plan:
    """Memory of a recipe on a number of GPUs.

    Args:
        recipe: What to train.
        gpus: Number of processes.
        num_classes: Number of classes; default is that of the task's public dataset.
    """

    def __init__(self, recipe: Recipe, gpus: int, num_classes: int | None = None) -> None:
        self.recipe, self.gpus, self.task = recipe, gpus, recipe.task(num_classes)
        self.precision = str(recipe.config.trainer.precision or "32-true")
        if self.precision not in PRECISIONS:
            raise UserError(f"plan knows the precisions {', '.join(PRECISIONS)}.")
        with torch.device("meta"):
            self.network = self.task.make_network()
        self.checkpointing = any(
            getattr(m, "grad_checkpointing", 0) for m in self.network.modules()
        )
        self.sizes = sizes_of(self.task, self.network, self.precision, recipe.has_average)
        self.measure = cache(self._measure)

    def _measure(self, batch: int, checkpointing: bool) -> StepMemory:
        return measure_step(
            self.task.make_network,
            self.recipe.image_size(),
            batch,
            precision=self.precision,
            checkpointing=checkpointing,
        )

    def step(self, batch: int, share: float, checkpointing: bool, accumulates: bool) -> int:
        """Most bytes of gradients and activations, from the measurements of two small batches."""
        two, three = (self.measure(b, checkpointing) for b in (2, 3))
        return extrapolate(two, three, batch).peak(share, accumulates=accumulates)

    def need(
        self, strategy: str, batch: int, checkpointing: bool, *, accumulates: bool = False
    ) -> Need:
        """Bytes on one GPU.

        Args:
            strategy: One of `STRATEGIES`.
            batch: Images per GPU and step.
            checkpointing: Whether blocks are recomputed.
            accumulates: Whether batches are accumulated.
        """
        sizes, gpus = self.sizes, self.gpus
        step = partial(self.step, batch, checkpointing=checkpointing, accumulates=accumulates)
        if strategy == "ddp":
            buckets = sizes.gradients if gpus > 1 else 0  # that gradients are summed in
            own = Need(sizes.parameters, sizes.optimizer, sizes.average, step(share=1.0))
            return Need(own.parameters, own.optimizer, own.average, own.step + buckets)
        passing = sizes.rest + 2 * sizes.largest_unit  # gathered weights, gradients not yet split
        split = step(share=1 / gpus) + sizes.rest + sizes.largest_unit
        kept = sizes.parameters // gpus + passing if strategy == "fsdp2" else sizes.parameters
        return Need(kept, sizes.optimizer // gpus, sizes.average // gpus, split)

    def largest_batch(self, strategy: str, limit: int, checkpointing: bool, most: int) -> int:
        """Largest batch up to ``most`` that fits, or 0."""
        batch = most
        while batch and self.need(strategy, batch, checkpointing, accumulates=True).total > limit:
            batch //= 2
        return batch


def sizes_of(task: BaseTask, network: nn.Module, precision: str, has_average: bool) -> Sizes:
    """Sizes of a network and what a training keeps beside it."""
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
    """Number of values that the optimizer keeps for each weight: 2 for AdamW."""
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = task.optimization.make_optimizer([weight])
    weight.grad = torch.zeros(8, 8)
    optimizer.step()
    values = (v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    return sum(value.numel() for value in values) // weight.numel()


def read_bytes(text: str) -> int:
    """Bytes of a text such as ``80GB``, ``24GiB``, ``500M`` or ``80`` (GB); powers of 1024."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UserError(f"--memory accepts a size such as 80GB or 24GB, got {text!r}.")
    return int(float(match[1]) * 2 ** _UNITS[match[2].upper() or "G"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan.

    Args:
        argv: Arguments without the program name; default is the command line.

    Returns:
        0.

    Raises:
        UserError: If an argument is wrong.
    """
    args, settings = _parser().parse_known_args(argv)
    if args.gpus < 1:
        raise UserError(f"--gpus accepts a positive number, got {args.gpus}.")
    memory = read_bytes(args.memory)
    recipe = Recipe.create(settings, run=False)
    plan = Plan(recipe, args.gpus, args.num_classes)
    batch = args.batch_size or int(recipe.data["batch_size"])
    print(describe(plan, batch))
    print(table(plan, batch, memory))
    print(proposal(plan, memory, args.global_batch or batch * args.gpus))
    if args.tflops and args.images:
        print(duration(plan, args.tflops, args.images))
    return 0


def describe(plan: Plan, batch: int) -> str:
    """What is planned."""
    weights = sum(parameter.numel() for parameter in plan.network.parameters())
    height, width = plan.recipe.image_size()
    one = plan.measure(2, plan.checkpointing).operations / 2
    return (
        f"{plan.recipe.name}: {type(plan.network).__name__}, {weights / 1e6:,.1f} M parameters\n"
        f"{plan.gpus} GPUs, {batch} images of {height} x {width} on each, {plan.precision},"
        f" checkpointing {'on' if plan.checkpointing else 'off'},"
        f" {one / 1e12:.2f} TFLOP an image forward and backward"
    )


def table(plan: Plan, batch: int, memory: int) -> str:
    """Needs of the recipe as it is, under each strategy."""
    names = ("parameters", "optimizer", "average", "step", "total")
    lines = ["", f"{'GiB on each GPU':22}" + "".join(f"{name:>12}" for name in names)]
    for strategy in STRATEGIES:
        need = plan.need(strategy, batch, plan.checkpointing)
        values = "".join(f"{getattr(need, name) / _GIB:12.2f}" for name in names)
        verdict = "fits" if need.total <= (1 - _RESERVE) * memory else "does not fit"
        lines.append(f"{strategy:22}{values}   {verdict}")
    lines.append(
        f"step: gradients and activations at their peak. Fits: within {1 - _RESERVE:.0%} of"
        f" {memory / _GIB:.1f} GiB."
    )
    if part := omitted_part(plan.network):
        lines.append(
            f"The activations of the {part} of {type(plan.network).__name__} are not included."
        )
    return "\n".join(lines)


def proposal(plan: Plan, memory: int, global_batch: int) -> str:
    """Strategy, batch, accumulation and checkpointing that fit."""
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
        return "\nNothing fits: use more GPUs, smaller images, or fsdp1 with cpu_offload."
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
        f"\nProposal for a global batch of {batch * plan.gpus * accumulate}"
        f" ({total / _GIB:.1f} GiB on each GPU):\n  {' '.join(flags)}"
    )


def duration(plan: Plan, tflops: float, images: int) -> str:
    """Time of an epoch at a given speed."""
    operations = plan.measure(2, plan.checkpointing).operations / 2 * images
    hours = operations / (tflops * 1e12 * plan.gpus) / 3600
    return f"\nAn epoch of {images:,} images takes {hours:.2f} h at {tflops:g} TFLOP/s per GPU."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src plan",
        allow_abbrev=False,
        description="Memory of a recipe on each GPU under each strategy. Further arguments are"
        " those of fit: --config, --data.batch_size, --trainer.precision, ...",
    )
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs, on all machines")
    parser.add_argument("--memory", default="80GB", help="memory of each GPU")
    parser.add_argument("--batch_size", type=int, help="images per GPU; default: the recipe's")
    parser.add_argument("--global_batch", type=int, help="images per step to propose for")
    parser.add_argument("--num_classes", type=int, help="default: those of the public dataset")
    parser.add_argument("--tflops", type=float, help="speed of a GPU that you have measured")
    parser.add_argument("--images", type=int, help="images of an epoch, for its duration")
    return parser
