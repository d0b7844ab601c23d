"""``python -m src profile``: parameters, MACs and activation memory of a variant."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import timm
import torch

import src.models  # noqa: F401  registers the variants with timm
from src.cli.suggestions import suggest
from src.cli.tool_parser import ToolParser
from src.errors import UserError
from src.file_names import quoted
from src.profiling.profile import (
    PUBLISHED_MACS,
    PUBLISHED_PARAMETERS,
    Activations,
    Macs,
    count_macs,
    count_parameters,
    measure_activations,
)
from src.runs import CONFIG, read_settings

if TYPE_CHECKING:
    from src.models import InternImage


def main(argv: Sequence[str] | None = None) -> int:
    """Print parameters, MACs and activation memory of a variant.

    Args:
        argv: Arguments without the program name; default is the command line.

    Returns:
        0.

    Raises:
        UserError: If the variant is unknown or a size is invalid.
    """
    args = _parser().parse_args(argv)
    names = timm.list_models(["internimage*", "flash_internimage*"])
    if args.model not in names:
        _refuse_run_or_recipe(args.model)
        raise UserError(
            f"Unknown model {args.model!r}; expected one of {', '.join(names)}."
            f"{suggest(args.model, names)}"
        )
    if args.batch < 1 or min(args.size) < 1:
        raise UserError("--batch and --size must be at least 1.")
    with torch.device("meta"):
        network = cast("InternImage", timm.create_model(args.model, num_classes=args.num_classes))
    print(f"{args.model}, {args.num_classes} classes")
    published = PUBLISHED_PARAMETERS.get(args.model)
    count = f"{count_parameters(network):,}"
    print(f"  parameters  {count}" + (f"  (published: {published})" if published else ""))
    for size in args.size:
        image = torch.empty(args.batch, 3, size, size, device="meta")
        _print_macs(args.model, size, args.batch, count_macs(network, image))
        _print_activations(measure_activations(network, image))
    return 0


def _refuse_run_or_recipe(given: str) -> None:
    """Name the variant of a run or a recipe, which is what this command takes.

    Raises:
        UserError: If there is a file or folder of this name.
    """
    path = Path(given)
    if not path.exists():
        return
    file = path
    if path.is_dir():
        file = max(path.rglob(CONFIG), key=lambda found: found.stat().st_mtime, default=path)
    is_settings = file.is_file() and file.suffix in (".yaml", ".yml")
    variant = _variant_in(read_settings(file)) if is_settings else None
    kind = "--config" if path.is_file() else "--ckpt_path"
    use = f"--model {variant}" if variant else "the name of a variant, such as internimage_t"
    whole = (
        f" The memory of the whole network is computed by plan {kind} {quoted(given)}, and its"
        " speed is measured by benchmark, with the same option."
    )
    raise UserError(
        f"--model {given}: profile takes the name of a variant, not a"
        f" {'file' if path.is_file() else 'folder'}. Use {use}.{whole if is_settings else ''}"
    )


def _variant_in(settings: object) -> str | None:
    """The first ``variant`` of a network in the settings of a recipe."""
    if not isinstance(settings, Mapping):
        return None
    if isinstance(variant := settings.get("variant"), str):
        return variant
    found = (_variant_in(value) for value in settings.values())
    return next((variant for variant in found if variant is not None), None)


def _print_macs(model: str, size: int, batch: int, macs: Macs) -> None:
    print(f"\n{size} x {size}, batch {batch}")
    rows = {
        "convolutions": macs.conv,
        "linear layers": macs.linear,
        "other products": macs.products,
        "DCNv3 sampling": macs.sampling,
        "total": macs.total,
    }
    for name, value in rows.items():
        print(f"  {name:15s}{value / 1e9:12.3f} GMACs")
    published = PUBLISHED_MACS.get((model, size))
    if published is not None and batch == 1:
        rule = "not reproduced, see docs/model_zoo.md"
        if published.compute is not None:
            rule = f"{published.rule}: {published.compute(macs)}G"
        print(f"  {'published':15s}{published.text:>12s}        ({rule})")


def _print_activations(memory: Activations) -> None:
    print("  activations saved for the backward pass, float32")
    print(f"    without checkpointing  {_human(memory.plain)}")
    print(
        f"    with checkpointing     {_human(memory.checkpointed)}, plus"
        f" {_human(memory.recomputed)} to recompute the largest block"
    )


def _human(size: int) -> str:
    power = min(3, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src profile",
        description="Parameters, MACs and activation memory of an InternImage variant.",
    )
    parser.add_argument("--model", required=True, help="variant, for example internimage_t")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224], help="image sizes in pixels (square images)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images per forward pass")
    parser.add_argument("--num-classes", type=int, default=1000, help="number of classes")
    return parser
