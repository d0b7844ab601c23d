"""Each image is predicted once if their number is not divisible by the number of ranks."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.distributed.conftest import TASKS, Launcher

WRITTEN = {
    "classification": "images/*.png",
    "detection": "overlays/*.png",
    "segmentation": "label_maps/*.png",
}

# Pairs of task, strategy and number of images.
CASES = [
    (task, strategy, (1, 3)[(i + j) % 2])
    for i, task in enumerate(TASKS)
    for j, strategy in enumerate(("ddp", "fsdp2"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "strategy", "count"), CASES)
def test_every_image_is_predicted(
    launch: Launcher, images: Path, tmp_path: Path, task: str, strategy: str, count: int
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, path in enumerate(sorted((images / "val").rglob("*.png"))[:count]):
        shutil.copy(path, folder / f"{number}.png")
    flags = ("--data.predict_dir", str(folder), "--data.eval_batch_size", "1")
    flags += ("--trainer.strategy", strategy)
    run = launch(tmp_path, task, *flags, ranks=2, command="predict", timeout=120)
    assert len(list((run.folder / "predict_0").glob(WRITTEN[task]))) == count


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_with_fewer_windows_do_not_block_the_others(
    launch: Launcher, tmp_path: Path, strategy: str
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, size in enumerate([(64, 64), (250, 64), (64, 64), (64, 128)]):
        Image.new("RGB", size).save(folder / f"{number}.png")
    flags = ("--data.predict_dir", str(folder), "--data.eval_batch_size", "2")
    flags += ("--model.window_size", "[48, 48]", "--trainer.strategy", strategy)
    run = launch(tmp_path, "segmentation", *flags, ranks=2, command="predict", timeout=120)
    assert len(list((run.folder / "predict_0").glob("label_maps/*.png"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("task", TASKS)
def test_unreadable_images_of_all_ranks_are_reported(
    launch: Launcher, images: Path, tmp_path: Path, task: str, strategy: str
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, path in enumerate(sorted((images / "val").rglob("*.png"))[:5]):
        shutil.copy(path, folder / f"{number}.png")
    for number in (0, 3):
        (folder / f"{number}.png").write_bytes(b"")
    flags = ("--data.predict_dir", str(folder), "--data.eval_batch_size", "1")
    flags += ("--trainer.strategy", strategy)
    run = launch(tmp_path, task, *flags, ranks=2, command="predict", timeout=120, succeeds=False)
    assert run.codes == [2, 2]
    assert all("error: 2 images could not be read" in text for text in run.output)
    assert len(list((run.folder / "predict_0").glob(WRITTEN[task]))) == 3
