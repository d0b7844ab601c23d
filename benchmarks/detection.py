"""Speed of the COCO data pipeline and of a training step of Mask R-CNN, and where the time goes.

    python benchmarks/detection.py --root data/coco --out benchmarks/results/detection_cpu.md

Times are the best of several repeats. The parts of a step are measured one after the other on the
same batch: forward pass of the backbone, forward pass of the rest with the losses, backward pass of
everything. Without --root the toy data are used (python -m src prepare toy).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from src.data.coco import COCODataModule
from src.data.datasets.coco_detection import collate
from src.models import ARCHITECTURES, InternImageBackbone, MaskRCNN

LONG = [(1333, side) for side in range(480, 801, 32)]
PIPELINES = {
    "A (1x)": {"train_scales": [(1333, 800)]},
    "B (3x)": {"train_scales": LONG, "crop_scales": [(1333, 400), (1333, 500), (1333, 600)]},
}


def best_of(repeats: int, action: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def pipeline_rows(data: dict, pictures: int, repeats: int) -> list[str]:
    rows = []
    for name, settings in PIPELINES.items():
        module = COCODataModule(**data, **settings, num_workers=0)
        module.setup("fit")
        dataset = module._datasets["train"]
        count = min(pictures, len(dataset))
        seconds = best_of(repeats, lambda d=dataset, n=count: [d[i] for i in range(n)]) / count
        rows.append(f"| {name} | {1000 * seconds:.0f} | {1 / seconds:.1f} |")
    return rows


def step_row(name: str, data: dict, size: int, batch_size: int, repeats: int) -> str:
    long = size * 4 // 3
    module = COCODataModule(**data, train_scales=[(long, size)], num_workers=0)
    module.setup("fit")
    dataset = module._datasets["train"]
    load = best_of(repeats, lambda: collate([dataset[i] for i in range(batch_size)]))
    batch = collate([dataset[i] for i in range(batch_size)])
    network = make(name, module.num_classes)
    image, sizes, targets = batch["image"], batch["size"], batch["target"]

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        with torch.no_grad():
            network.backbone(image)
        middle = time.perf_counter()
        losses = network(image, sizes, targets=targets)
        end = time.perf_counter()
        sum(value.sum() for key, value in losses.items() if "loss" in key).backward()
        backward = time.perf_counter() - end
        backbone = middle - start
        return backbone, max(end - middle - backbone, 0.0), backward

    step()
    backbone, heads, backward = min((step() for _ in range(repeats)), key=sum)
    total = load + backbone + heads + backward
    shares = (f"{part / total:.0%}" for part in (load, backbone, heads, backward))
    shape = "x".join(map(str, image.shape[-2:]))
    return f"| {name} | {batch_size} x {shape} | {total:.2f} | {' | '.join(shares)} |"


def make(name: str, num_classes: int) -> MaskRCNN:
    arguments = {
        k: v for k, v in ARCHITECTURES[f"internimage_{name}"].items() if k != "num_classes"
    }
    narrow = {"channels": 64, "fc_channels": 256} if name == "nano" else {}
    backbone = partial(InternImageBackbone, **arguments)
    return MaskRCNN(num_classes, backbone=backbone, **narrow).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/toy/coco"))
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["nano", "t"])
    parser.add_argument("--size", type=int, default=480, help="short side of the training step")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = {"root": str(args.root)}
    lines = [
        f"# Detection on CPU ({os.cpu_count()} cores, {torch.get_num_threads()} threads)",
        "",
        f"Data: `{args.root.name}`, float32. One process loads; times are the best of"
        f" {args.repeats}. torch {torch.__version__}.",
        "",
        "| training pipeline | ms per picture | pictures per second |",
        "| --- | --- | --- |",
        *pipeline_rows(data, args.pictures, args.repeats),
        "",
        "| Mask R-CNN | batch | s per step | data | backbone forward | neck and heads forward |"
        " backward |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(step_row(m, data, args.size, args.batch_size, args.repeats) for m in args.models),
        "",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
