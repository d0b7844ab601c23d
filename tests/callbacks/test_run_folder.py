from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from src.callbacks import RunFolder, Throughput
from src.callbacks.progress import LogProgress, NotebookProgress, TerminalProgress, default_progress
from src.callbacks.run_folder import (
    _describe_data,
    describe_operators,
    next_run_folder,
    run_folder,
)
from src.models import InternImage


def test_the_next_version_number_follows_the_highest(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    assert next_run_folder(parent, "version") == parent / "version_0"
    for name in ("version_0", "version_9", "version_10", "predict_30", "version_x"):
        (parent / name).mkdir(parents=True)
    assert next_run_folder(parent, "version") == parent / "version_11"
    assert next_run_folder(parent, "predict") == parent / "predict_31"


def test_results_go_to_the_run_folder_or_the_default_root_dir(tmp_path: Path) -> None:
    trainer = SimpleNamespace(callbacks=[], log_dir=str(tmp_path / "logs"), default_root_dir=".")
    assert run_folder(trainer) == tmp_path / "logs"
    trainer.callbacks.append(RunFolder(tmp_path / "run", ""))
    assert run_folder(trainer) == tmp_path / "run"


@pytest.mark.parametrize(
    ("modules", "is_terminal", "kind"),
    [
        ({}, True, TerminalProgress),
        ({}, False, LogProgress),
        ({"ipykernel": None}, False, NotebookProgress),
    ],
)
def test_progress_display_depends_on_the_output(
    monkeypatch: pytest.MonkeyPatch, modules: dict, is_terminal: bool, kind: type
) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal, raising=False)
    assert type(default_progress()) is kind


@pytest.mark.parametrize(
    ("command", "root", "shown"),
    [
        ("fit", ".", "photos/a"),
        ("validate", ".", "photos/b"),
        ("fit", "data/coco", "data/coco"),
        ("predict", ".", "new"),
    ],
)
def test_the_data_are_described_by_a_folder(command: str, root: str, shown: str) -> None:
    splits = {"train": ("photos/a", "a.json"), "val": ("photos/b", "b.json")}
    data = SimpleNamespace(root=Path(root), splits=splits, predict_dir="new")
    trainer = SimpleNamespace(
        datamodule=data,
        predicting=command == "predict",
        state=SimpleNamespace(fn=TrainerFn(command)),
    )
    assert _describe_data(trainer) == shown


def test_throughput_counts_the_images_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 13.0])  # end of the warm-up, of a measurement, of the epoch
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    logged: list[float] = []
    task = SimpleNamespace(
        device=torch.device("cpu"), log=lambda name, value, **_: logged.append(value)
    )
    trainer = SimpleNamespace(world_size=2, is_last_batch=False)
    batch = {"image": torch.zeros(8, 3, 1, 1)}
    speed = Throughput(every_n_steps=2, warmup_steps=1)
    for index in range(3):
        speed.on_train_batch_end(trainer, task, None, batch, index)
    assert logged == [16.0]  # 2 batches of 8 on 2 devices in 2 seconds
    trainer.is_last_batch = True
    speed.on_train_batch_end(trainer, task, None, batch, 3)
    assert logged == [16.0, 16.0]


@pytest.mark.parametrize("operator", ["DCNv3", "DCNv4"])
def test_the_operators_and_what_computes_them_are_named(operator: str) -> None:
    shape = {"channels": 32, "depths": [1, 1, 1, 1], "groups": [2, 4, 8, 16]}
    network = InternImage(num_classes=2, core_op=operator, **shape)
    assert describe_operators(network, "meta") == f"{operator} reference (no kernel for meta)"
    assert describe_operators(network, "cpu").startswith(f"{operator} ")
    assert describe_operators(torch.nn.Linear(1, 1), "cpu") == ""
