"""Pictures that do not divide evenly among processes are predicted once each, and none waits."""

import shutil
from pathlib import Path

import pytest

from tests.distributed.conftest import TASKS, Launcher

WRITTEN = {
    "classification": "pictures/*.png",
    "detection": "overlays/*.png",
    "segmentation": "label_maps/*.png",
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("task", TASKS)
def test_every_picture_is_predicted(
    launch: Launcher, pictures: Path, tmp_path: Path, task: str, strategy: str, count: int
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, path in enumerate(sorted((pictures / "val").rglob("*.png"))[:count]):
        shutil.copy(path, folder / f"{number}.png")
    flags = ("--data.predict_dir", str(folder), "--data.eval_batch_size", "1")
    flags += ("--trainer.strategy", strategy)
    run = launch(tmp_path, task, *flags, ranks=2, command="predict", timeout=120)
    assert len(list((run.folder / "predict_0").glob(WRITTEN[task]))) == count
