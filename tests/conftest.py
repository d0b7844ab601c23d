"""Tiny images, a tiny recipe and a run of it, shared by the tests of tasks, callbacks and CLI."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

CLASSES = ("blue", "green", "red")
pytest_plugins = ["tests.plugins.workers", "tests.plugins.ports", "tests.plugins.leftovers"]


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> None:
    """Hear the signals that ``nohup`` and background jobs of a script ignore, for all tests."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in the ImageNet layout: 3 classes, 8 training and 4 validation images of each."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in enumerate(reversed(CLASSES)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 100, (36, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{split}_{name}_{index}.png")
    return root


@pytest.fixture(scope="session")
def recipe(images: Path) -> dict[str, Any]:
    """Smallest useful recipe: all parts of the real ones, trains in a second or two."""
    return {
        "model": {
            "class_path": "ClassificationTask",
            "init_args": {
                "network": {
                    "class_path": "InternImage",
                    "init_args": {
                        "channels": 8,
                        "depths": [1, 1, 1, 1],
                        "groups": [1, 2, 4, 8],
                        "drop_path_rate": 0.1,
                    },
                },
                "mixup_alpha": 0.8,
                "cutmix_alpha": 1.0,
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": 0.05, "weight_decay": 0.05},
                },
                "lr_scheduler": {
                    "class_path": "WarmupCosine",
                    "init_args": {"warmup_epochs": 1, "warmup_lr": 0.005, "min_lr": 0.001},
                },
            },
        },
        "data": {
            "class_path": "ImageNetDataModule",
            "init_args": {
                "root": str(images),
                "image_size": 32,
                "batch_size": 8,
                "num_workers": 0,
            },
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "gradient_clip_val": 5.0,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": [{"class_path": "EMA", "init_args": {"decay": 0.8}}],
        },
    }


@pytest.fixture(scope="session")
def write_recipe(recipe: dict[str, Any]) -> Callable[..., Path]:
    """Write the recipe to ``<folder>/<name>.yaml``; further values replace whole sections."""

    def write(folder: Path, name: str = "tiny", **sections: Any) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | sections))
        return path

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    """Working directory with ``tiny.yaml`` and its finished run ``runs/tiny/version_0``."""
    from src.cli import main

    folder = tmp_path_factory.mktemp("trained")
    config = write_recipe(folder)
    arguments = ["fit", "-c", str(config), "--trainer.default_root_dir", str(folder / "runs")]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def truncate() -> Callable[[Path], Path]:
    """Cut an image file in the middle of its data."""

    def cut(path: Path) -> Path:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    return cut


@pytest.fixture
def deep_image(tmp_path: Path) -> Path:
    """16-bit grey PNG, 60 pixels wide and 20 high, that its EXIF block turns by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 60), 80 * 256, dtype=np.uint16)).save(path, exif=exif)
    return path


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """End the process group that a trainer of several devices has started in this process."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """Let the system refuse files above a size in bytes, as a full disk does; needs no root."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with the numbers of the official code."""
    return Path(__file__).parent / "fixtures"
