"""Part of ``python -m src plan``: compute, time and data of joint image-text pre-training."""

from __future__ import annotations

import argparse
import math

from src.errors import UserError, counted
from src.models.image_text import ImageTextModel
from src.profiling.compute import Run, pair_compute

_PEAK = 990.0
_KILOBYTES = 25.0
_MISSING = "\nFor operations, GPU-hours and data volume, give --pairs (and --epochs)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a pre-training."""
    group = parser.add_argument_group("joint image-text pre-training")
    group.add_argument("--pairs", type=_count, help="number of pairs, for example 427M or 15e6")
    group.add_argument("--epochs", type=float, help="passes over them; default: trainer.max_epochs")
    group.add_argument(
        "--peak_tflops",
        type=float,
        default=_PEAK,
        help="peak of a GPU in TFLOP/s (%(default)g: dense bfloat16 of an H100)",
    )
    group.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        help="share of the peak that training reaches (%(default)g: an assumption)",
    )
    group.add_argument(
        "--kilobytes",
        type=float,
        default=_KILOBYTES,
        help="size of a pair in the tars, 1000 bytes (%(default)g: LAION-400M at 256 px)",
    )
    group.add_argument(
        "--gpus_per_node", type=int, default=8, help="GPUs of a machine (%(default)d)"
    )


def _count(text: str) -> int:
    """A number such as ``427M``, ``15e6`` or ``1000000``."""
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1.0)
    value = float(text[:-1] if factor > 1 else text) * factor
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number of pairs")
    return round(value)


def describe_training(
    network: ImageTextModel,
    size: tuple[int, int],
    args: argparse.Namespace,
    batch: int,
    max_epochs: int | None,
) -> str:
    """Operations, GPU-hours, data volume and read rate.

    Args:
        network: The towers, on the meta device.
        size: Height and width of the images.
        args: Arguments of `add_arguments`, and ``gpus``.
        batch: Pairs per GPU.
        max_epochs: Epochs of the recipe.

    Raises:
        UserError: If an argument is out of range.
    """
    epochs = args.epochs or max_epochs
    for name in ("pairs", "epochs", "peak_tflops", "utilisation", "kilobytes", "gpus_per_node"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name}: expected a positive number, got {value:g}.")
    if args.utilisation > 1:
        raise UserError(f"--utilisation: expected a share up to 1, got {args.utilisation:g}.")
    compute = pair_compute(network, size)
    lines = [
        f"\nA pair takes {compute.total / 1e9:,.1f} GFLOP to train on (image tower"
        f" {compute.image / 1e9:,.1f}, text tower {compute.text / 1e9:,.1f};"
        " without what activation checkpointing computes again).",
        f"Contrastive loss: a global batch of {batch * args.gpus:,} pairs; features of all of them"
        f" take {_features(network, batch * args.gpus):,.0f} MB on each GPU, not in the table.",
    ]
    if args.pairs is None or epochs is None or epochs < 0:
        return "\n".join(lines) + _MISSING
    run = Run(
        pairs=args.pairs,
        epochs=epochs,
        gpus=args.gpus,
        gpus_per_node=args.gpus_per_node,
        peak=args.peak_tflops * 1e12,
        utilisation=args.utilisation,
        bytes_per_pair=args.kilobytes * 1e3,
    )
    hours = run.gpu_hours(compute)
    lines += [
        f"{run.pairs:,} pairs x {epochs:g} epochs: {run.operations(compute):.3g} FLOP,"
        f" {hours:,.1f} GPU-hours at {args.utilisation:.0%} of {args.peak_tflops:g} TFLOP/s"
        f" ({hours / run.gpus:,.1f} h on {counted(run.gpus, 'GPU')},"
        f" {run.pairs_per_second(compute):,.0f} pairs/s each).",
        f"Data: {run.volume / 1e12:,.2f} TB at {args.kilobytes:g} kB per pair; a node of"
        f" {counted(min(run.gpus, run.gpus_per_node), 'GPU')} reads"
        f" {run.read_rate(compute) / 1e6:,.0f} MB/s.",
    ]
    return "\n".join(lines)


def _features(network: ImageTextModel, pairs: int) -> float:
    """MB of the gathered image and text features and their gradients, float32."""
    return 2 * 2 * 4 * pairs * network.text.output_dim / 1e6
