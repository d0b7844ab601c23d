r"""Speed of the ADE20K data pipeline and of a training step of UPerNet, and where the time goes.

    python benchmarks/segmentation.py --root data/ADEChallengeData2016 \
        --out benchmarks/results/segmentation_cpu.md

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
from torch.utils.data import default_collate

from src.data import ADE20KDataModule
from src.losses.segmentation import SegmentationLoss
from src.models import ARCHITECTURES, FCNHead, InternImageBackbone, Segmentor, UPerHead

WIDTHS = {"nano": (64, 32), "t": (512, 256)}  # of UPerHead and FCNHead


def best_of(repeats: int, action: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def make_data(root: Path, size: int) -> ADE20KDataModule:
    classes = root / "classes.txt"  # else the 150 of ADE20K
    names = {"class_names": str(classes)} if classes.is_file() else {}
    module = ADE20KDataModule(
        root=str(root), image_scale=(4 * size, size), crop_size=(size, size), num_workers=0, **names
    )
    module.setup("fit")
    return module


def pipeline_rows(root: Path, pictures: int, repeats: int) -> list[str]:
    rows = []
    for size in (512, 640, 896):
        module = make_data(root, size)
        train, val = module._datasets["train"], module._datasets["val"]
        work = {
            "decode": lambda i, d=train: d.read(i % len(d)),
            "training": lambda i, d=train: d[i % len(d)],
            "evaluation": lambda i, d=val: d[i % len(d)],
        }
        for name, get in work.items():
            run = partial(lambda get, n: [get(i) for i in range(n)], get, pictures)
            seconds = best_of(repeats, run) / pictures
            rows.append(f"| {size} | {name} | {1000 * seconds:.0f} | {1 / seconds:.1f} |")
    return rows


def step_row(name: str, root: Path, size: int, batch_size: int, repeats: int) -> str:
    module = make_data(root, size)
    dataset = module._datasets["train"]

    def load() -> dict:
        return default_collate([dataset[i] for i in range(batch_size)])

    data, batch = best_of(repeats, load), load()
    network, loss = make(name, module.num_classes), SegmentationLoss()

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        with torch.no_grad():
            network.backbone(batch["image"])
        middle = time.perf_counter()
        total = sum(loss(network(batch["image"]), batch["label"]).values())
        end = time.perf_counter()
        total.backward()
        backward = time.perf_counter() - end
        backbone = middle - start
        return backbone, max(end - middle - backbone, 0.0), backward

    step()
    backbone, heads, backward = min((step() for _ in range(repeats)), key=sum)
    total = data + backbone + heads + backward
    shares = (f"{part / total:.0%}" for part in (data, backbone, heads, backward))
    return f"| {name} | {batch_size} x {size}x{size} | {total:.2f} | {' | '.join(shares)} |"


def make(name: str, num_classes: int) -> Segmentor:
    arguments = {
        k: v for k, v in ARCHITECTURES[f"internimage_{name}"].items() if k != "num_classes"
    }
    decode, auxiliary = WIDTHS[name]
    return Segmentor(
        num_classes,
        partial(InternImageBackbone, **arguments),
        partial(UPerHead, channels=decode),
        partial(FCNHead, channels=auxiliary),
    ).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/toy/ade20k"))
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--size", type=int, default=512, help="crop of the training step")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        f"# Segmentation on CPU ({os.cpu_count()} cores, {torch.get_num_threads()} threads)",
        "",
        f"Data: `{args.root.name}`, float32. One process loads; times are the best of"
        f" {args.repeats}. torch {torch.__version__}.",
        "",
        "| crop | sample | ms per picture | pictures per second |",
        "| --- | --- | --- | --- |",
        *pipeline_rows(args.root, args.pictures, args.repeats),
        "",
        "| UPerNet | batch | s per step | data | backbone forward | heads and loss forward |"
        " backward |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(step_row(m, args.root, args.size, args.batch_size, args.repeats) for m in args.models),
        "",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
