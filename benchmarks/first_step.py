"""CPU time of the first compiled training step of networks.

Usage: ``python benchmarks/first_step.py [internimage_t internimage_h] [--batch 1 --size 64]``. The
time is that of this process and of the C++ compiler, which does not depend on other programs much.
Nothing is read from the cache of earlier runs. InternImage-H needs 11 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src.models  # noqa: F401  registers the networks
from src.models.layers.compilation import Compilation, compile_parts


def cpu_seconds() -> tuple[float, float]:
    """CPU time so far: of this process, and of the programs that it has run."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, others = (usage.ru_utime + usage.ru_stime for usage in usages)
    return own, others


def step(network: nn.Module, images: Tensor) -> tuple[float, float]:
    """CPU time of a forward and backward pass."""
    start = cpu_seconds()
    network(images).float().square().mean().backward()
    network.zero_grad(set_to_none=True)
    own, others = cpu_seconds()
    return own - start[0], others - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["internimage_t", "internimage_h"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Compiler processes of a pool would not be counted.
    torch._inductor.config.compile_threads = 1
    for name in args.names:
        torch._dynamo.reset()
        images = torch.randn(args.batch, 3, args.size, args.size)
        network = timm.create_model(name, drop_path_rate=0.1).train()
        eager, _ = step(network, images)
        compile_parts(network, Compilation())
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            own, compiler = step(network, images)
            kernels = len(list(Path(cache).rglob("*.cpp")))
        again, _ = step(network, images)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        result = {
            "network": name,
            "eager": round(eager, 1),
            "first": round(own + compiler, 1),
            "C++ compiler": round(compiler, 1),
            "second": round(again, 1),
            "graphs": graphs,
            "kernels": kernels,
        }
        print(json.dumps(result), flush=True)
        del network


if __name__ == "__main__":
    main()
