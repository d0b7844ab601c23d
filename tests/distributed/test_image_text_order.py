"""The samples of a step of image-text pre-training survive kills and changes of the ranks."""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import main
from src.data.samplers.windowed import SourceOrder, WindowedOrder
from src.data.tars.index import read_index
from tests.distributed.conftest import Launcher

GLOBAL_BATCH = 6
SOURCES = {"a": (90, 130, 150), "b": (60, 90), "c": (80,)}
"""Pairs of each tar."""
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 1.2}


def write_source(folder: Path, sizes: tuple[int, ...]) -> None:
    folder.mkdir()
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image, "PNG")
    for number, size in enumerate(sizes):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for index in range(size):
                for extension, content in (("png", image.getvalue()), ("txt", b"a square")):
                    info = tarfile.TarInfo(f"{number:05d}{index:04d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def order(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> WindowedOrder:
    """Order of the recipe ``order``, which is written here."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, sizes in SOURCES.items():
        write_source(folder / name, sizes)
        command = ["prepare", "index-tars", str(folder / name), "--out", str(folder / f"{name}_i")]
        assert main([*command, "--workers", "1"]) == 0
    recipe = {
        "seed_everything": 7,
        "model": {
            "class_path": "ImageTextTask",
            "init_args": {"network": network(), "loss": {"class_path": "CLIPLoss"}},
        },
        "data": {
            "class_path": "ImageTextDataModule",
            "init_args": {
                "sources": [{"index": f"{folder}/{n}_i", "weight": w} for n, w in WEIGHTS.items()],
                "image_size": 32,
                "num_workers": 0,
                "context_length": 8,
                "shuffle_tars": 2,
            },
        },
        "checkpoint": {"every_n_train_steps": 2},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False},
    }
    (launch.recipes / "order.yaml").write_text(yaml.safe_dump(recipe))
    indices = [read_index(folder / f"{name}_i") for name in SOURCES]
    sources = [SourceOrder(i.sizes, w) for i, w in zip(indices, WEIGHTS.values(), strict=True)]
    return WindowedOrder(sources, 7, 2)


def network() -> dict[str, Any]:
    shape = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
    text = {"width": 16, "heads": 2, "layers": 1, "output_dim": 8, "context_length": 8}
    return {
        "class_path": "ImageTextModel",
        "init_args": {
            "backbone": {"class_path": "InternImage", "init_args": shape},
            "text": {"class_path": "TextTower", "init_args": text},
        },
    }


def train(launch: Launcher, runs: Path, ranks: int, *more: str, first: bool, **kill: float) -> bool:
    """Continue the run; whether it came to its end."""
    flags = ["--data.batch_size", str(GLOBAL_BATCH // ranks), *more]
    flags += [] if first else ["--ckpt_path", "last"]
    flags += ["--trainer.strategy", "ddp"] if ranks > 1 else []
    flags += ["--trainer.callbacks+=tests.distributed.callbacks.RecordIds"]
    ids = runs / "ids" / f"{len(list(runs.glob('ids/*'))):02d}"
    ids.mkdir(parents=True)
    flags += ["--trainer.callbacks.folder", str(ids)]
    for name, value in kill.items():
        flags += [f"--trainer.callbacks.{name}", str(value)]
    run = launch(runs, "order", *flags, ranks=ranks, succeeds=False, timeout=200)
    codes = set(run.codes)
    assert codes == {0} or -9 in codes, "\n".join(run.output)
    return codes == {0}


def recorded(runs: Path) -> Iterator[tuple[int, list[int]]]:
    """Step and ids, in the order in which they were used; only steps that all ranks began."""
    for folder in sorted(runs.glob("ids/*")):
        ranks = [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(folder.glob("*.jsonl"))
        ]
        for parts in zip(*ranks, strict=False):
            assert len({step for step, _ in parts}) == 1
            yield parts[0][0], [index for _, ids in parts for index in ids]


def check(runs: Path, order: WindowedOrder) -> int:
    """Compare every recorded step with the computed order, and return the number of steps."""
    found = list(recorded(runs))
    for step, ids in found:
        epoch, start = divmod(step * GLOBAL_BATCH, len(order) // GLOBAL_BATCH * GLOBAL_BATCH)
        assert ids == order.draw(epoch, start, start + GLOBAL_BATCH).ids.tolist(), f"step {step}"
    steps = {step for step, _ in found}
    assert steps == set(range(len(steps)))
    return len(steps)


@pytest.mark.slow
def test_ids_do_not_depend_on_kills_and_ranks(
    launch: Launcher, order: WindowedOrder, tmp_path: Path
) -> None:
    for number, (ranks, step) in enumerate(((1, 37), (2, 95), (1, 150))):
        assert not train(launch, tmp_path, ranks, first=number == 0, kill_before=step)
    assert train(launch, tmp_path, 3, first=False)
    assert check(tmp_path, order) == len(order) // GLOBAL_BATCH * 2 >= 200


@pytest.mark.slow
def test_twenty_kills_at_any_moment_lose_and_repeat_nothing(
    launch: Launcher, order: WindowedOrder, tmp_path: Path
) -> None:
    chance = random.Random(0)
    endless = ("--trainer.max_epochs", "10000")
    first = True
    for _ in range(20):
        ranks, moment = chance.choice([1, 1, 2, 3]), chance.uniform(0.1, 1.0)
        assert not train(launch, tmp_path, ranks, *endless, first=first, kill_after=moment)
        first = not list(tmp_path.glob("order/*/checkpoints/last.ckpt"))
    assert check(tmp_path, order) > 50
