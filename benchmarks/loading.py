"""Images per second and core of the ImageNet training pipeline, compared with float32 in workers.

    python benchmarks/loading.py --out benchmarks/results/loading_cpu.md

"before" decodes every image at full size, and normalises and erases it in the loader process, as
``timm.data.create_transform`` does. "after" is what `ImageNetDataModule` does: it decodes large
images at a reduced size, and hands over 8-bit batches, which the device normalises and erases. Both
read the same JPEG files, made on the fly with about as many bytes as those of ImageNet, in batches
of 32, in one process with one thread. They take turns, and the fastest turn counts, because other
programs only ever make a turn slower. The last column is the cost of normalisation and erasing
where the device is a single core of this CPU.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import files
from src.data.datamodules.imagenet import IMAGENET_MEAN, IMAGENET_STD
from src.data.datasets.image_folder import LabelledImages
from src.data.transforms import Erasing, Normalization, TrainTransform

BATCH = 32
CASES = [((500, 375), 224), ((500, 375), 96), ((1024, 768), 224), ((2048, 1536), 224)]
HEADER = (
    "| file | input | bytes | before [images/s] | after [images/s] | ratio | on the device [ms] |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def write_photos(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """JPEG files of quality 90 with coarse shapes, edges and grain."""
    width, height = size
    generator = np.random.default_rng(width)
    paths = []
    for number in range(count):
        coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        grain = generator.normal(0, 12, (height, width, 1))
        image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        paths.append(str(folder / f"{width}x{height}_{number:03}.jpg"))
        image.save(paths[-1], quality=90)
    return paths


def before(paths: list[str], side: int) -> LabelledImages:
    transform = create_transform(
        side,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return LabelledImages(paths, [0] * len(paths), transform, train=True)


def after(paths: list[str], side: int) -> LabelledImages:
    transform = TrainTransform(side, mean=IMAGENET_MEAN)
    return LabelledImages(paths, [0] * len(paths), transform, train=True)


def batches(dataset: LabelledImages) -> list[torch.Tensor]:
    """An epoch with the same seed at each call, so that each turn does the same work."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002  timm draws from it
    starts = range(0, len(dataset), BATCH)
    return [default_collate([dataset[i + j] for j in range(BATCH)])["image"] for i in starts]


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def row(folder: Path, size: tuple[int, int], side: int, count: int, turns: int) -> str:
    paths = write_photos(folder, size, count)
    ways = {"before": before(paths, side), "after": after(paths, side)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, dataset in ways.items():
            best[name] = min(best[name], seconds(lambda dataset=dataset: batches(dataset)))
    normalise, erase, image = (
        Normalization(IMAGENET_MEAN, IMAGENET_STD),
        Erasing(0.25),
        batches(ways["after"])[0],
    )
    device = min(seconds(lambda: erase(normalise(image))) for _ in range(10)) / len(image)
    size_in_bytes = sum(Path(path).stat().st_size for path in paths) // count
    rates = [count / best[name] for name in ways]
    cells = [f"{size[0]}x{size[1]}", str(side), str(size_in_bytes)]
    cells += [f"{rate:.0f}" for rate in rates]
    cells += [f"{rates[1] / rates[0]:.2f}x", f"{device * 1e3:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="files of a size (%(default)s)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = -(-args.images // BATCH) * BATCH
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for size, side in CASES:
            rows.append(row(Path(folder), size, side, count, args.turns))
            print(rows[-1], flush=True)
    head = [
        f"# Loading training images on one CPU core ({os.cpu_count()} cores, 1 thread)",
        "",
        f"`python benchmarks/loading.py`: {count} files a size, best of {args.turns} turns. "
        f"torch {torch.__version__}, Pillow {PIL.__version__}.",
        "",
    ]
    if args.out is not None:
        files.write_text(args.out, "\n".join([*head, *HEADER, *rows]) + "\n")


if __name__ == "__main__":
    main()
