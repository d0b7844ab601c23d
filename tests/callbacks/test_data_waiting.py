"""One warning, with advice, if training waits for its data."""

import time

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from src.callbacks import DataWaiting
from src.callbacks.data_waiting import advice
from src.cli import main

MESSAGE = r"Training waited for data for \d+% of the time of 4 steps\. Raise --data\.num_workers"


def test_a_slow_dataset_is_reported_in_fit(tmp_path, monkeypatch, write_recipe):
    """On by default; two epochs of three steps make one measurement of four."""
    from src.data.datasets.image_folder import LabelledImages

    load = LabelledImages.__getitem__

    def slowly(dataset, index):
        time.sleep(0.02)
        return load(dataset, index)

    monkeypatch.setattr(LabelledImages, "__getitem__", slowly)
    monkeypatch.chdir(tmp_path)
    flags = ["--data_waiting.every_n_steps", "4", "--data_waiting.warmup_steps", "1"]
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        assert main(["fit", "-c", str(write_recipe(tmp_path)), *flags]) == 0
    assert len([w for w in caught if "waited for data" in str(w.message)]) == 1


class Sleeper(LightningModule):
    """A step that takes long."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        time.sleep(0.02)
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("profiler", "seconds"), [(None, 0.0), ("simple", 0.02)])
def test_no_report_without_waiting_or_with_a_profiler(tmp_path, recwarn, profiler, seconds):
    def collate(samples):
        time.sleep(seconds)
        return samples

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        enable_model_summary=False,
        profiler=profiler,
        callbacks=[DataWaiting(every_n_steps=5, warmup_steps=1, threshold=0.3)],
        **quiet,
    )
    trainer.fit(Sleeper(), DataLoader(range(12), collate_fn=collate))
    assert not [w for w in recwarn if "waited for data" in str(w.message)]


def test_more_workers_are_advised_only_where_cores_are_left():
    assert "Raise --data.num_workers (now 2); there are 8 CPU cores" in advice(2, 8)
    assert advice(8, 8).startswith(
        "There are 8 data loader workers for 8 CPU cores per device, so "
    )
    assert "smaller images" in advice(8, 8)
