"""``python -m src consolidate``: convert a sharded checkpoint to a single file.

By default the file is an ordinary checkpoint, which can be resumed on any number of devices and
with any strategy. ``--official`` writes only the network, with the official parameter names, for
``--model.init_args.weights`` and the official code.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src import files
from src.cli.tool_parser import ToolParser
from src.distributed.checkpoints import (
    consolidate,
    describe_mismatch,
    is_sharded_checkpoint,
    shapes_of,
)
from src.errors import UserError
from src.models.building import build_network
from src.serialization import check_finite, read_checkpoint

_PREFIX = "network."


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file.

    Args:
        argv: Arguments without the program name; default is the command line.

    Returns:
        0.

    Raises:
        UserError: If the checkpoint cannot be read, or the file exists or cannot be written.
    """
    args = _parser().parse_args(argv)
    suffix = ".pth" if args.official else ".ckpt"
    output = args.output or args.checkpoint.with_name(f"{args.checkpoint.stem}_whole{suffix}")
    if output.exists() and not args.force:
        raise UserError(f"{output} exists. Use another --output, or --force to replace it.")
    content = read(args.checkpoint, weights_only=args.official or args.weights_only)
    if args.official:
        content = official(content, raw=args.raw)
    files.write_with(output, lambda file: torch.save(content, file))
    print(f"{output}  {files.readable_size(output.stat().st_size)}")
    return 0


def read(path: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Content of a checkpoint folder or file."""
    if is_sharded_checkpoint(path) or not path.is_file():
        return consolidate(path, weights_only=weights_only)
    content = read_checkpoint(path)
    if weights_only:
        content.pop("optimizer_states", None)
    check_finite(content, path)
    return content


def official(content: dict[str, Any], *, raw: bool = False) -> dict[str, dict[str, Tensor]]:
    """State dict of the network in a checkpoint, with the official parameter names.

    Low-rank updates (``model.lora``) are merged.

    Args:
        content: Content of a checkpoint written by the command line, which contains its settings.
        raw: Use the raw weights instead of the EMA weights.

    Returns:
        State dict in the container that the official code expects: ``model`` for a classifier,
        ``state_dict`` for detectors and segmentors.
    """
    from src.models import InternImage
    from src.models.weights.merging import merged_state
    from src.models.weights.names import official_names

    entry = "current_model_state" if raw and "current_model_state" in content else "state_dict"
    network = _network_of(content)
    names = official_names(network)
    state = merged_state(
        {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in content[entry].items()
            if name.startswith(_PREFIX)
        }
    )
    mismatch = describe_mismatch(shapes_of(state), shapes_of(network.state_dict()))
    if mismatch:
        raise UserError(
            f"The weights of the checkpoint do not match the network that it describes: {mismatch}."
        )
    tensors = {names[name]: tensor for name, tensor in state.items()}
    return {"model" if isinstance(network, InternImage) else "state_dict": tensors}


def _network_of(content: dict[str, Any]) -> nn.Module:
    """The network described by a checkpoint, on the meta device."""
    settings = content.get("hyper_parameters") or {}
    if not settings.get("network") or not settings.get("num_classes"):
        raise UserError(
            "The checkpoint does not contain the settings of its network, which are only saved by"
            " the command line. Load it into your network and use"
            " src.models.weights.to_official."
        )
    with torch.device("meta"):
        return build_network(
            settings["network"], settings["num_classes"], "hyper_parameters.network"
        )


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src consolidate",
        description="Convert a checkpoint folder of several ranks to a single file.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder (or file)")
    parser.add_argument(
        "--output", type=Path, help="file to write; default: <checkpoint>_whole.ckpt or .pth"
    )
    parser.add_argument(
        "--official", action="store_true", help="only the network, with official parameter names"
    )
    parser.add_argument(
        "--raw", action="store_true", help="with --official: raw weights instead of EMA weights"
    )
    parser.add_argument("--weights_only", action="store_true", help="omit the optimizer state")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    return parser
