"""Images per second of InternImage-T over those of timm's ConvNeXt-T on one CPU thread.

Usage: ``python benchmarks/against_convnext.py [--rows fp32-1,bf16-8,train-fp32-4] [--compile]
[--prepare]``. Both networks get the same images and take turns; the least CPU time of all turns
counts, since other programs only ever make a turn slower. ``--compile`` compiles the blocks of
InternImage and the stages of ConvNeXt. ``--prepare`` measures the copy of InternImage that
`prepare_for_inference` makes, with ``--compile`` against the compiled ConvNeXt. Each row is printed
as a JSON line when it is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.models import prepare_for_inference
from src.models.layers.compilation import Compilation, compile_parts

NAMES = ("internimage_t", "convnext_tiny")
ROWS = ("fp32-1", "fp32-8", "bf16-1", "bf16-8", "train-fp32-4", "train-bf16-4")


def seconds(network: nn.Module, images: Tensor, precision: str, training: bool) -> float:
    """CPU time of one forward pass, or of a forward and backward pass."""
    network.train(training)
    start = time.process_time()
    with (
        torch.set_grad_enabled(training),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        out = network(images)
    if training:
        out.float().square().mean().backward()
        network.zero_grad(set_to_none=True)
    return time.process_time() - start


def compiled(name: str) -> nn.Module:
    """A network whose repeated parts are compiled."""
    network = timm.create_model(name)
    if name.startswith("internimage"):
        compile_parts(network, Compilation())
    else:
        for stage in network.stages:
            stage.compile(dynamic=False)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="precision-batch, comma-separated")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="pack the weights of InternImage")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    make = compiled if args.compile else timm.create_model
    networks = {name: make(name) for name in NAMES}
    for row in args.rows.split(","):
        *training, precision, batch = row.split("-")
        images = torch.randn(int(batch), 3, 224, 224)
        taking_part = dict(networks)
        if args.prepare and not training:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            network = networks[NAMES[0]].eval()
            taking_part[NAMES[0]] = prepare_for_inference(network, dtype)
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        for _ in range(args.turns + 1):
            for name, network in taking_part.items():
                times[name].append(seconds(network, images, precision, bool(training)))
        speed = {name: int(batch) / min(taken[1:]) for name, taken in times.items()}
        ratio = speed[NAMES[0]] / speed[NAMES[1]]
        shown = {name: round(value, 2) for name, value in speed.items()}
        result = {
            "row": row,
            "compiled": args.compile,
            "prepared": args.prepare,
            **shown,
            "ratio": round(ratio, 2),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
