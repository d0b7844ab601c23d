"""Image-text pairs in tars: index building, an index of 427 million pairs, loading speed.

    python benchmarks/image_text_data.py --out benchmarks/results/image_text_data_cpu.md

Everything runs in one process with one thread. "scan" reads a tar of 10,000 pairs (jpg, txt, json).
"index" makes up an index of 41,000 tars and 427 million pairs (offsets only, 6.8 GB, deleted at the
end) and opens it in a new process. "loading" reads, decodes, crops and, from tars, tokenises the
same images from tars and from class folders; the two take turns, and the fastest turn of each
counts. With ``--wids FOLDER``, an installation of webdataset 0.2.111, the last version with
``wids``, opening a tar for random access is compared too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import files
from src.data.datamodules.imagenet import IMAGENET_MEAN
from src.data.datasets.image_folder import LabelledImages
from src.data.datasets.image_text import ImageTextPairs
from src.data.datasets.tokenizing import Tokenizer
from src.data.samplers.windowed import SourceOrder, WindowedOrder
from src.data.tars.build import BuildSettings, build
from src.data.tars.files import opened
from src.data.tars.index import PAIRS, TarIndex, read_index
from src.data.tars.reader import PairReader
from src.data.tars.scan import POSITIONS, Fields, scan
from src.data.transforms import TrainTransform

TARS, PAIRS_PER_TAR = 41_000, 10_414  # 427 million pairs
BATCH, RANKS = 512, 64
CAPTION = "a photo of the old red boat on quiet water near some houses with two people and dogs"


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def photo(number: int, size: tuple[int, int]) -> bytes:
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    grain = generator.normal(0, 12, (size[1], size[0], 1))
    buffer = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def caption(number: int) -> str:
    generator = np.random.default_rng(number)
    words = [str(word) for word in generator.choice(CAPTION.split(), generator.integers(5, 20))]
    return " ".join([*words, str(number)])


def write_tar(path: Path, images: list[bytes], count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            key, text = f"{number:09d}", caption(number)
            facts = {"caption": text, "url": f"http://host/{key}", "key": key, "width": 500}
            facts |= {"height": 375, "similarity": 0.3, "sha256": "0" * 64, "exif": "{}"}
            members = (("jpg", images[number % len(images)]), ("txt", text.encode()))
            for extension, content in (*members, ("json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def scan_rows(folder: Path, turns: int, wids: str | None) -> list[str]:
    path = folder / "scan.tar"
    write_tar(path, [photo(number, (256, 192)) for number in range(20)], 10_000)

    def ours() -> None:
        with opened(str(path)) as tar:
            assert len(scan(tar, Fields(score="similarity", unique="url")).rows) == 10_000

    def with_tarfile() -> None:
        with tarfile.open(path) as archive:
            assert sum(1 for _ in archive) == 30_000

    own = min(seconds(ours) for _ in range(turns))
    library = min(seconds(with_tarfile) for _ in range(turns))
    rows = [
        f"| scan a tar of 10,000 pairs with score and identity | {own:.2f} s |",
        f"| list its members only, with Python's `tarfile` | {library:.2f} s |",
        f"| scan {TARS:,} tars: one core | {own * TARS / 3600:.1f} h |",
        f"| scan {TARS:,} tars: 64 cores | {own * TARS / 3600 / 64 * 60:.0f} min |",
    ]
    names = ["scan.tar"]
    index, _ = build(folder / "i", str(folder), names, BuildSettings(), print)
    opening = min(seconds(lambda: PairReader(index, 1).read(0, 5000)) for _ in range(turns))
    rows.append(f"| open a tar and read one pair, with the index | {opening * 1e3:.2f} ms |")
    if wids is not None:
        sys.path.insert(0, wids)
        from wids.wids import IndexedTarSamples

        other = min(seconds(lambda: IndexedTarSamples(path=str(path))[5000]) for _ in range(turns))
        rows.append(f"| the same with `wids` of webdataset 0.2.111 | {other * 1e3:.0f} ms |")
    return rows


def write_index(folder: Path) -> None:
    """An index of made-up offsets."""
    folder.mkdir()
    sizes = np.random.default_rng(0).integers(PAIRS_PER_TAR - 500, PAIRS_PER_TAR + 501, TARS)
    rows = np.zeros(int(sizes.max()), POSITIONS)
    rows["image_block"] = np.arange(len(rows)) * 64
    rows["image_size"] = 20_000
    with (folder / PAIRS).open("wb") as file:
        for size in sizes:
            file.write(rows[:size].tobytes())
    names = [f"{number:05d}.tar" for number in range(TARS)]
    TarIndex(folder, "s3://bucket/laion", names, np.full(TARS, 10**9), sizes).write()


def memory() -> float:
    """Resident memory of this process in MB, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def open_index(folder: Path) -> None:
    """In a new process: open the index, draw batches, read the rows of every drawn pair."""
    before, begin = memory(), time.perf_counter()
    index = read_index(folder)
    order = WindowedOrder([SourceOrder(index.sizes)], 0, 64)
    step = BATCH * RANKS
    order.draw(0, 0, step, 3, RANKS)
    start = time.perf_counter() - begin
    times = [
        seconds(lambda n=n: order.draw(0, n * step, (n + 1) * step, 3, RANKS))
        for n in range(1, 400)
    ]
    alone = [seconds(lambda n=n: order.draw(0, n * 256, (n + 1) * 256)) for n in range(1, 400)]
    kept = {tar: index.rows(tar).copy() for tar in range(64)}
    print(
        json.dumps(
            {
                "pairs": len(index),
                "start": start,
                "median": float(np.median(times)) * 1e3,
                "high": float(np.quantile(times, 0.99)) * 1e3,
                "alone": float(np.median(alone)) * 1e3,
                "before": before,
                "after": memory(),
                "kept": len(kept),
            }
        )
    )


def index_rows(folder: Path) -> list[str]:
    written = seconds(lambda: write_index(folder / "large"))
    command = [sys.executable, __file__, "--open", str(folder / "large")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    size = (folder / "large" / PAIRS).stat().st_size / 1e9
    return [
        f"| write a made-up index of {TARS:,} tars, {found['pairs']:,} pairs ({size:.1f} GB) | "
        f"{written:.0f} s |",
        f"| open it and draw the first batch | {found['start']:.2f} s |",
        f"| ids of the next batch: {BATCH} of one of {RANKS} ranks, median (99 %) | "
        f"{found['median']:.2f} ms ({found['high']:.2f} ms) |",
        f"| ids of the next batch: 256 of a single rank, median | {found['alone']:.2f} ms |",
        f"| memory of the process, with the rows of 64 open tars | {found['after']:.0f} MB |",
        f"| of these before opening the index, for PyTorch and others | {found['before']:.0f} MB |",
    ]


def loading_rows(folder: Path, count: int, turns: int) -> list[str]:
    images = [photo(number, (500, 375)) for number in range(count)]
    paths = [folder / f"{number:09d}.jpg" for number in range(count)]
    for path, content in zip(paths, images, strict=True):
        path.write_bytes(content)
    names = []
    for tar in range(4):
        names.append(f"{tar:05d}.tar")
        write_tar(folder / names[-1], images[tar::4], len(images[tar::4]))
    index, _ = build(folder / "index", str(folder), names, BuildSettings(), print)
    transform = TrainTransform(
        224, mean=IMAGENET_MEAN, crop_scale=(0.9, 1.0), hflip=0.0, color_jitter=0, auto_augment=None
    )
    order = WindowedOrder([SourceOrder(index.sizes)], 0, 64).draw(0, 0, count)
    pairs = ImageTextPairs([PairReader(index, 64)], transform, Tokenizer("clip", 77), train=True)
    folders = LabelledImages([str(path) for path in paths], [0] * count, transform, train=True)
    draws = list(zip(order.ids.tolist(), order.seeds.tolist(), strict=True))
    ways: dict[str, Callable[[], object]] = {
        "folders": lambda: [folders[index] for index in order.ids.tolist()],
        "tars": lambda: [pairs[draw] for draw in draws],
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, action in ways.items():
            best[name] = min(best[name], seconds(action))
    rates = {name: count / best[name] for name in ways}
    return [
        f"| load images of 500x375 from class folders | {rates['folders']:.0f} images/s |",
        f"| load the same images from tars and tokenise their captions | {rates['tars']:.0f} "
        "images/s |",
        f"| ratio | {rates['tars'] / rates['folders']:.2f} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="images to load (%(default)s)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--wids", help="folder with webdataset 0.2.111, for comparison")
    parser.add_argument("--folder", help="folder for 8 GB of files that are deleted at the end")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.open is not None:
        open_index(args.open)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in (
            lambda: scan_rows(Path(folder), args.turns, args.wids),
            lambda: loading_rows(Path(folder), args.images, args.turns),
            lambda: index_rows(Path(folder)),
        ):
            rows += part()
            print("\n".join(rows), flush=True)
    head = [
        f"# Image-text pairs in tars on one CPU core ({os.cpu_count()} cores, 1 thread)",
        "",
        f"`python benchmarks/image_text_data.py`: {args.images} images, best of {args.turns} "
        f"turns. torch {torch.__version__}, NumPy {np.__version__}.",
        "",
        "| what | result |",
        "| --- | --- |",
    ]
    if args.out is not None:
        files.write_text(args.out, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
