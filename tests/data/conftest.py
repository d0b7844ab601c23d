import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.cli.commands.prepare import main as prepare


@pytest.fixture(scope="session")
def toy_imagenet(tmp_path_factory) -> Path:
    """A small toy set, shared: tests that change files copy it first."""
    root = tmp_path_factory.mktemp("toy")
    prepare(
        ["toy", "--root", str(root), "--train", "6", "--val", "3", "--predict", "4", "--size", "48"]
    )
    return root / "imagenet"


@pytest.fixture
def make_tree(tmp_path):
    """Write images of one colour each: ``make_tree({"train": {"cat": 3, "dog": 2}})``."""

    def make(splits: dict[str, dict[str, int]], name: str = "set") -> Path:
        root = tmp_path / name
        for split, classes in splits.items():
            for folder, count in classes.items():
                (root / split / folder).mkdir(parents=True)
                for number in range(count):
                    save_image(root / split / folder / f"{number}.png", shade=number)
        return root

    return make


def save_image(path: Path, size=(20, 16), shade: int = 0) -> Path:
    rng = np.random.default_rng(shade)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Write a tar of the given members, name by content."""

    def write(path: Path, members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=format) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return write
