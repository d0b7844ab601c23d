"""Arguments, timing and training steps shared by the detection and segmentation benchmarks."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from src import files
from src.models import ARCHITECTURES, InternImageBackbone

STEP_HEADER = (
    "batch | s per step | data | backbone forward | rest of forward, losses | backward |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def arguments(description: str, root: str, size: int) -> argparse.Namespace:
    """Command-line arguments with defaults for ``root`` and ``size``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", type=Path, default=Path(root))
    parser.add_argument(
        "--images", type=int, default=32, help="images per repeat for the data pipeline"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["nano", "t"], choices=["nano", "t"])
    parser.add_argument(
        "--size", type=int, default=size, help="short side of the images in the training step"
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


def backbone(name: str) -> partial[InternImageBackbone]:
    """Factory for the backbone ``nano`` or ``t``."""
    settings = ARCHITECTURES[f"internimage_{name}"]
    return partial(InternImageBackbone, **{k: v for k, v in settings.items() if k != "num_classes"})


def best_of(repeats: int, action: Callable[[], object]) -> float:
    """Minimum time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def step_row(
    name: str,
    network: nn.Module,
    image: Tensor,
    loss: Callable[[], Tensor],
    load: float,
    repeats: int,
) -> str:
    """Table row with the time of the parts of a training step; ``load`` is in seconds."""

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        with torch.no_grad():
            network.backbone(image)
        middle = time.perf_counter()
        total = loss()
        end = time.perf_counter()
        total.backward()
        backward = time.perf_counter() - end
        return middle - start, max(end - middle - (middle - start), 0.0), backward

    step()
    parts = (load, *min((step() for _ in range(repeats)), key=sum))
    shares = " | ".join(f"{part / sum(parts):.0%}" for part in parts)
    shape = "x".join(map(str, image.shape[-2:]))
    return f"| {name} | {len(image)} x {shape} | {sum(parts):.2f} | {shares} |"


def report(title: str, args: argparse.Namespace, lines: Iterable[str]) -> None:
    """Print the tables, and write them to ``args.out`` if it is given."""
    text = "\n".join(
        [
            f"# {title} on CPU ({os.cpu_count()} cores, {torch.get_num_threads()} threads)",
            "",
            f"Data: `{args.root.name}`, float32. One process loads images; times are the best of"
            f" {args.repeats}. torch {torch.__version__}.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(args.out, text)
