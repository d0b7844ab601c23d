r"""Speed of the ADE20K data pipeline and of the parts of a training step of UPerNet.

    python benchmarks/segmentation.py --root data/ADEChallengeData2016 \
        --out benchmarks/results/segmentation_cpu.md

Times are the best of several repeats. The parts of a step are measured one after another on the
same batch: forward pass of the backbone, forward pass of the rest with the losses, and the whole
backward pass. Without --root, the toy data are used (python -m src prepare toy).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dense import STEP_HEADER, arguments, backbone, best_of, report, step_row
from torch import Tensor
from torch.utils.data import default_collate

from src.data import ADE20KDataModule
from src.losses.segmentation import SegmentationLoss
from src.models import FCNHead, Segmentor, UPerHead

WIDTHS = {"nano": (64, 32), "t": (512, 256)}  # of UPerHead and FCNHead


def make_data(root: Path, size: int) -> ADE20KDataModule:
    classes = root / "classes.txt"  # else the 150 of ADE20K
    names = {"class_names": str(classes)} if classes.is_file() else {}
    module = ADE20KDataModule(
        root=str(root), image_scale=(4 * size, size), crop_size=(size, size), num_workers=0, **names
    )
    module.setup("fit")
    return module


def pipeline_rows(root: Path, images: int, repeats: int) -> list[str]:
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
            run = partial(lambda get, n: [get(i) for i in range(n)], get, images)
            seconds = best_of(repeats, run) / images
            rows.append(f"| {size} | {name} | {1000 * seconds:.0f} | {1 / seconds:.1f} |")
    return rows


def upernet_row(name: str, root: Path, size: int, batch_size: int, repeats: int) -> str:
    module = make_data(root, size)
    dataset = module._datasets["train"]

    def load() -> dict:
        return default_collate([dataset[i] for i in range(batch_size)])

    batch, seconds = module.normalise(load()), best_of(repeats, load)
    decode, auxiliary = WIDTHS[name]
    heads = partial(UPerHead, channels=decode), partial(FCNHead, channels=auxiliary)
    network = Segmentor(module.num_classes, backbone(name), *heads).train()
    criterion = SegmentationLoss()

    def loss() -> Tensor:
        return sum(criterion(network(batch["image"]), batch["label"]).values())

    return step_row(name, network, batch["image"], loss, seconds, repeats)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], "data/toy/ade20k", 512)
    step = (args.root, args.size, args.batch_size, args.repeats)
    lines = [
        "| crop | sample | ms per image | images per second |",
        "| --- | --- | --- | --- |",
        *pipeline_rows(args.root, args.images, args.repeats),
        "",
        f"| UPerNet | {STEP_HEADER[0]}",
        STEP_HEADER[1],
        *(upernet_row(name, *step) for name in args.models),
    ]
    report("Segmentation", args, lines)


if __name__ == "__main__":
    main()
