"""Speed of the COCO data pipeline and of the parts of a training step of Mask R-CNN.

    python benchmarks/detection.py --root data/coco --out benchmarks/results/detection_cpu.md

Times are the best of several repeats. The parts of a step are measured one after another on the
same batch: forward pass of the backbone, forward pass of the rest with the losses, and the whole
backward pass. Without --root, the toy data are used (python -m src prepare toy).
"""

from __future__ import annotations

from dense import STEP_HEADER, arguments, backbone, best_of, report, step_row
from torch import Tensor

from src.data.datamodules.coco import COCODataModule
from src.data.datasets.coco_detection import collate
from src.models import MaskRCNN

LONG = [(1333, side) for side in range(480, 801, 32)]
PIPELINES = {
    "A (1x)": {"train_scales": [(1333, 800)]},
    "B (3x)": {"train_scales": LONG, "crop_scales": [(1333, 400), (1333, 500), (1333, 600)]},
}


def pipeline_rows(data: dict, images: int, repeats: int) -> list[str]:
    rows = []
    for name, settings in PIPELINES.items():
        module = COCODataModule(**data, **settings, num_workers=0)
        module.setup("fit")
        dataset = module._datasets["train"]
        count = min(images, len(dataset))
        seconds = best_of(repeats, lambda d=dataset, n=count: [d[i] for i in range(n)]) / count
        rows.append(f"| {name} | {1000 * seconds:.0f} | {1 / seconds:.1f} |")
    return rows


def mask_rcnn_row(name: str, data: dict, size: int, batch_size: int, repeats: int) -> str:
    module = COCODataModule(**data, train_scales=[(size * 4 // 3, size)], num_workers=0)
    module.setup("fit")
    dataset = module._datasets["train"]
    load = best_of(repeats, lambda: collate([dataset[i] for i in range(batch_size)]))
    batch = module.normalise(collate([dataset[i] for i in range(batch_size)]))
    narrow = {"channels": 64, "fc_channels": 256} if name == "nano" else {}
    network = MaskRCNN(module.num_classes, backbone=backbone(name), **narrow).train()

    def loss() -> Tensor:
        output = network(batch["image"], batch["size"], targets=batch["target"])
        return sum(value.sum() for value in output.losses.values())

    return step_row(name, network, batch["image"], loss, load, repeats)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], "data/toy/coco", 480)
    data = {"root": str(args.root)}
    step = (data, args.size, args.batch_size, args.repeats)
    lines = [
        "| training pipeline | ms per image | images per second |",
        "| --- | --- | --- |",
        *pipeline_rows(data, args.images, args.repeats),
        "",
        f"| Mask R-CNN | {STEP_HEADER[0]}",
        STEP_HEADER[1],
        *(mask_rcnn_row(name, *step) for name in args.models),
    ]
    report("Detection", args, lines)


if __name__ == "__main__":
    main()
