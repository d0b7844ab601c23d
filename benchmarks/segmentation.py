"""Speed of the segmentation data pipeline and of a training step.

``python benchmarks/segmentation.py data --root data/ADEChallengeData2016`` reads and augments
pictures in one process; ``... step`` runs forward, loss and backward on random pictures. Both print
a table; times are the best of several repeats.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from src.data import ADE20KDataModule
from src.losses.segmentation import SegmentationLoss
from src.models import ARCHITECTURES, FCNHead, InternImageBackbone, Segmentor, UPerHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="pictures per second of one process")
    data.add_argument("--root", type=Path, required=True)
    data.add_argument("--size", type=int, default=512, help="crop and short side in pixels")
    data.add_argument("--pictures", type=int, default=28, help="per repeat")
    step = commands.add_parser("step", help="training steps per second")
    step.add_argument("--variant", default="internimage_nano", choices=sorted(ARCHITECTURES))
    step.add_argument("--head", type=int, default=64, help="width of UPerHead")
    step.add_argument("--size", type=int, default=256, help="side of the pictures")
    step.add_argument("--batch", type=int, default=4)
    step.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for command in (data, step):
        command.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    (measure_data if args.command == "data" else measure_step)(args)


def measure_data(args: argparse.Namespace) -> None:
    scale, crop = (4 * args.size, args.size), (args.size, args.size)
    module = ADE20KDataModule(root=str(args.root), image_scale=scale, crop_size=crop, num_workers=0)
    module.setup("fit")
    train, val = module._datasets["train"], module._datasets["val"]
    work = {
        "decode picture and labels": lambda i: train.read(i % len(train)),
        "training sample": lambda i: train[i % len(train)],
        "evaluation sample": lambda i: val[i % len(val)],
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(args.repeats):  # interleaved, so that a slow moment hits all alike
        for name, get in work.items():
            start = time.perf_counter()
            for index in range(args.pictures):
                get(index)
            best[name] = min(best[name], (time.perf_counter() - start) / args.pictures)
    print("| one process | ms per picture | pictures/s |\n| --- | --- | --- |")
    for name, seconds in best.items():
        print(f"| {name} | {1e3 * seconds:.1f} | {1 / seconds:.1f} |")


def measure_step(args: argparse.Namespace) -> None:
    arch = {k: v for k, v in ARCHITECTURES[args.variant].items() if k != "use_clip_projector"}
    network = Segmentor(
        150,
        partial(InternImageBackbone, **arch),
        partial(UPerHead, channels=args.head),
        partial(FCNHead, channels=args.head // 2),
    ).to(args.device)
    image = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    label = torch.randint(0, 150, (args.batch, args.size, args.size), device=args.device)
    loss = SegmentationLoss()

    def train() -> None:
        network.train()
        sum(loss(network(image), label).values()).backward()
        network.zero_grad()

    @torch.no_grad()
    def evaluate() -> None:
        network.eval()(image)

    work = {"forward and backward": train, "forward": evaluate}
    best = dict.fromkeys(work, float("inf"))
    for repeat in range(args.repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if image.is_cuda:
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                best[name] = min(best[name], time.perf_counter() - start)
    where = f"{args.variant}, {args.batch} x {args.size} px, {args.device}"
    print(f"| {where} | s per step | pictures/s |\n| --- | --- | --- |")
    for name, seconds in best.items():
        print(f"| {name} | {seconds:.3f} | {args.batch / seconds:.1f} |")


if __name__ == "__main__":
    main()
