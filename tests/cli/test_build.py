"""`build` returns objects for notebooks instead of running a command."""

from pathlib import Path

import pytest
import torch

from src.cli import build
from src.errors import UserError
from src.models import InternImage


def test_build_returns_task_data_and_trainer(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["kernel.py", "-f", "connection.json"])  # as in Jupyter
    cli = build(["-c", str(trained / "tiny.yaml"), "--data.batch_size", "6"])
    assert isinstance(cli.model.network, InternImage)
    assert cli.model.num_classes == 3
    assert cli.datamodule.batch_size == 6
    assert list(tmp_path.iterdir()) == []
    assert not [w for w in recwarn if "args parameter" in str(w.message)]

    images = torch.zeros(2, 3, 32, 32)
    assert cli.model.network(images).shape == (2, 3)


def test_built_objects_train_and_predict(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = build(["-c", str(trained / "tiny.yaml"), "--trainer.max_epochs", "1"])
    cli.trainer.fit(cli.model, cli.datamodule)
    assert (tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert "val/top1_raw" in cli.trainer.callback_metrics
    metrics = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    assert metrics[0]["val/loss"] == pytest.approx(cli.trainer.callback_metrics["val/loss"].item())


def test_a_task_is_loaded_from_its_checkpoint(trained: Path) -> None:
    from src.tasks import ClassificationTask

    checkpoint = trained / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    task = ClassificationTask.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in task.state_dict().items())


def test_build_raises_user_errors(trained: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'model\.label_smoothing'"):
        build(["-c", str(trained / "tiny.yaml"), "--model.label_smothing", "1"])
