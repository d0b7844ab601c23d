import shutil
from pathlib import Path
from typing import IO

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from src.callbacks import AtomicCheckpointIO, Checkpoint
from src.cli.checkpoints import resolve_checkpoint
from src.errors import UserError
from src.tasks import BaseTask


class Task(BaseTask):
    """Task that logs given scores, one per validation."""

    monitor = "val/score"
    monitor_mode = "max"

    def __init__(self, *scores: float) -> None:
        network = lambda num_classes: nn.Linear(2, num_classes)  # noqa: E731
        super().__init__(1, network, lr_scheduler=None, reference_batch_size=None)
        self.scores = list(scores)

    def build_loss(self) -> nn.Module:
        return nn.MSELoss()

    def build_metrics(self) -> MetricCollection:
        return MetricCollection({})

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).square().mean()

    def evaluation_step(self, network: nn.Module, batch: Tensor, stage: str, suffix: str) -> None:
        self.log(f"{stage}/score", self.scores.pop(0))
        self.log(f"{stage}/loss", 0.5)


def fit(folder: Path, callback: Checkpoint, *scores: float, **settings: object) -> list[str]:
    """Train one epoch per score and return the names of the checkpoints."""
    callback.dirpath = str(folder)
    defaults = {"max_epochs": len(scores), "logger": False, "enable_progress_bar": False}
    defaults |= {"accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(callbacks=[callback], plugins=[AtomicCheckpointIO()], **(defaults | settings))
    trainer.fit(Task(*scores), DataLoader(torch.zeros(4, 2)), DataLoader(torch.zeros(1, 2)))
    return sorted(path.name for path in folder.iterdir())


def epoch_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def test_best_by_the_metric_of_the_task_and_last_of_every_epoch(tmp_path: Path) -> None:
    callback = Checkpoint()
    assert fit(tmp_path, callback, 0.1, 0.9, 0.3) == ["best-epoch=1.ckpt", "last.ckpt"]
    assert epoch_of(tmp_path / "last.ckpt") == 2
    assert callback.best_model_score == pytest.approx(0.9)


def test_monitor_and_mode_can_be_chosen(tmp_path: Path) -> None:
    callback = Checkpoint(monitor="val/score", mode="min", save_top_k=2)
    names = fit(tmp_path, callback, 0.3, 0.1, 0.2)
    assert names == ["best-epoch=1.ckpt", "best-epoch=2.ckpt", "last.ckpt"]


def test_epochs_without_validation_are_not_the_best(tmp_path: Path) -> None:
    callback = Checkpoint(save_top_k=3)
    names = fit(tmp_path, callback, 0.1, 0.2, max_epochs=4, check_val_every_n_epoch=2)
    assert names == ["best-epoch=1.ckpt", "best-epoch=3.ckpt", "last.ckpt"]


def test_validations_within_an_epoch_have_their_own_files(tmp_path: Path) -> None:
    callback = Checkpoint(save_top_k=-1)
    names = fit(tmp_path, callback, 0.8, 0.7, max_epochs=1, val_check_interval=0.5)
    assert names == ["best-epoch=0-step=2.ckpt", "best-epoch=0-step=4.ckpt", "last.ckpt"]
    assert callback.best_model_path.endswith("best-epoch=0-step=2.ckpt")


def test_best_of_several_best_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    fit(folder, Checkpoint(save_top_k=3), 0.1, 0.9, 0.3, 0.4)
    assert resolve_checkpoint("best", tmp_path).name == "best-epoch=1.ckpt"
    shutil.copy(folder / "last.ckpt", folder / "last_whole.ckpt")  # written by consolidate
    assert resolve_checkpoint("last", tmp_path).name == "last.ckpt"
    (tmp_path / "version_0").rename(tmp_path / "version_1")  # the recorded paths no longer exist
    assert resolve_checkpoint("best", tmp_path).name == "best-epoch=1.ckpt"


def test_the_best_checkpoint_within_an_epoch_has_the_validated_weights(tmp_path: Path) -> None:
    callback = Checkpoint(every_n_train_steps=3)
    settings = {"max_epochs": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}
    assert fit(tmp_path, callback, 0.9, 0.5, **settings) == ["best-step=3.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "best-step=3.ckpt", weights_only=True)["global_step"] == 3
    assert callback.best_model_score == pytest.approx(0.9)


def test_last_within_an_epoch(tmp_path: Path) -> None:
    callback = Checkpoint(save_top_k=0, every_n_train_steps=3)
    assert fit(tmp_path, callback, 0.1, max_steps=3, max_epochs=-1) == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def broken(_: object, target: IO[bytes]) -> None:
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(UserError, match=r"\(disk full\).* The previous last.ckpt is intact"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert epoch_of(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]  # no partial file


@pytest.mark.parametrize(
    "record",
    [
        {"best_k_models": ["a"]},
        {"best_k_models": {1: torch.tensor(1.0)}},
        {"best_k_models": {"a": torch.zeros(2)}},
        {"best_k_models": {"a": torch.zeros(1, device="meta")}},
        {"best_model_path": 7},
    ],
)
def test_a_damaged_record_of_the_best_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(UserError, match="its record of the best checkpoints is damaged"):
        Checkpoint().load_state_dict({"best_model_score": None, "best_model_path": ""} | record)
