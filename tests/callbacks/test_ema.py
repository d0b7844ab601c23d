import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.utils import ModelEma
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from src.callbacks import EMA
from src.errors import UserError
from src.tasks import BaseTask


class Network(nn.Module):
    """Network with a layer and a buffer, both changed by training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, num_classes)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + x.mean(0)
        return self.layer(x - self.mean)


class Task(BaseTask):
    def __init__(self) -> None:
        super().__init__(
            num_classes=2,
            network=Network,
            optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
            lr_scheduler=None,
            reference_batch_size=None,
        )

    def build_loss(self) -> nn.Module:
        return nn.MSELoss()

    def build_metrics(self) -> MetricCollection:
        return MetricCollection({})

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).square().mean()

    def evaluation_step(self, network: nn.Module, batch: Tensor, stage: str, suffix: str) -> None:
        self.log(f"{stage}/loss{suffix}", network(batch).square().mean())


class TimmTask(Task):
    """Compares the EMA weights with timm's after every step."""

    def on_fit_start(self) -> None:
        self.reference = ModelEma(copy.deepcopy(self.network), decay=0.9)
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, *_: object) -> None:
        # Callbacks run before this hook, so the EMA weights are already updated.
        if self.trainer.global_step > len(self.seen):
            self.reference.update(self.network)
            state = self.evaluation_network.state_dict()
            self.seen.append({name: value.clone() for name, value in state.items()})
            for name, value in self.reference.ema.state_dict().items():
                torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-7)


def loader() -> DataLoader:
    data = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(data, batch_size=2)


def trainer(*callbacks: Callback, **settings: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    base = {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), **(quiet | base | settings))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_equals_timm_after_every_step(accumulate: int) -> None:
    task = TimmTask()
    run = trainer(EMA(decay=0.9), accumulate_grad_batches=accumulate)
    run.fit(task, loader(), loader())
    assert len(task.seen) == 12 // accumulate
    # Afterwards the task contains the EMA weights.
    for name, value in task.seen[-1].items():
        assert torch.equal(task.network.state_dict()[name], value)
    assert task.evaluation_network is task.network


def test_validation_uses_ema_and_raw_weights() -> None:
    run = trainer(EMA(decay=0.9))
    run.fit(Task(), loader(), loader())
    metrics = run.callback_metrics
    assert metrics["val/loss"] > metrics["val/loss_raw"]  # the EMA weights lag behind


def test_warning_if_ema_weights_are_not_used(tmp_path) -> None:
    run = trainer(EMA(decay=0.9))
    task = Task()
    path = tmp_path / "with.ckpt"
    live = {}

    def save(*_: object) -> Iterator[None]:
        run.save_checkpoint(path)
        live.update(copy.deepcopy(task.network.state_dict()))

    task.on_train_epoch_end = save
    run.fit(task, loader(), loader())

    other, restored = Task(), {}
    other.on_train_start = lambda: restored.update(copy.deepcopy(other.network.state_dict()))
    with pytest.warns(UserWarning, match="the EMA weights are dropped"):
        trainer(max_epochs=3).fit(other, loader(), loader(), ckpt_path=path)
    assert restored.keys() == live.keys()
    for name, value in restored.items():
        assert torch.equal(value, live[name])


def test_ema_starts_with_the_weights_of_a_checkpoint_without_ema(tmp_path) -> None:
    plain, path = trainer(max_epochs=1), tmp_path / "without.ckpt"
    plain.fit(Task(), loader(), loader())
    plain.save_checkpoint(path)
    task = Task()
    with pytest.warns(UserWarning, match="written without EMA"):
        trainer(EMA(decay=1.0), max_epochs=2).fit(task, loader(), loader(), ckpt_path=path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    for name, value in task.network.state_dict().items():  # decay 1: the EMA weights never change
        assert torch.equal(value, saved[f"network.{name}"])


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_resumed_ema_equals_that_of_an_uninterrupted_run(tmp_path, warmup_steps: int) -> None:
    def fit(*callbacks: Callback, epochs: int = 4, start: Path | None = None) -> nn.Module:
        torch.manual_seed(0)  # the network is built at the start of fit
        task, average = Task(), EMA(0.9, warmup_steps)
        run = trainer(average, *callbacks, max_epochs=epochs, enable_checkpointing=bool(callbacks))
        run.fit(task, loader(), ckpt_path=start)
        return task.network

    whole = fit()
    fit(ModelCheckpoint(tmp_path, "half"), epochs=2)
    rest = fit(start=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_decay_outside_of_its_range_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=r"EMA.decay: expected a value in \[0, 1\]"):
        EMA(decay=decay)


def test_sharded_weights_are_refused() -> None:
    run = trainer(EMA())  # Lightning creates an FSDPStrategy only on GPUs
    run.strategy.__class__ = type("FSDPStrategy", (type(run.strategy),), {})
    with pytest.raises(UserError, match="sharded by FSDPStrategy"):
        run.fit(Task(), loader(), loader())


def test_low_precision_weights_are_refused() -> None:
    with pytest.raises(UserError, match="EMA needs 32-bit weights"):
        trainer(EMA(), precision="bf16-true").fit(Task(), loader(), loader())


def test_other_modules_are_refused() -> None:
    class Other(LightningModule):
        def training_step(self, batch: Tensor) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(UserError, match="EMA: expected a BaseTask, got Other"):
        trainer(EMA()).fit(Other(), loader())
