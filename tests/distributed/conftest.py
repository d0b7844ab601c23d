"""Deterministic recipes of the three tasks, and runs with one or several ranks.

Without augmentation and drop path, a step depends only on its global batch. Every rank uses one
thread.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.data.toy.ade20k import write_toy_ade20k
from src.data.toy.coco import write_toy_coco
from src.data.toy.layout import ToySettings
from tests.pairs import image_text_recipe

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = {"channels": 8, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8], "drop_path_rate": 0.0}
TASKS = ("classification", "detection", "segmentation")


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Folder with ``<task>.yaml`` for the three tasks, and ``pairs.yaml``."""
    folder = tmp_path_factory.mktemp("recipes")
    settings = ToySettings(train=2, val=2, predict=1, size=64)
    write_toy_coco(folder / "coco", settings)
    _keep_whole_steps(folder / "coco" / "annotations" / "instances_train2017.json")
    write_toy_ade20k(folder / "ade20k", settings)
    changes = {
        "classification": _classification(images),
        "detection": _detection(folder / "coco"),
        "segmentation": _segmentation(folder / "ade20k"),
    }
    for task, (network, data) in changes.items():
        recipe = yaml.safe_load((ROOT / "configs" / "toy" / f"{task}.yaml").read_text())
        recipe["model"]["init_args"]["network"]["init_args"] |= network
        recipe["data"]["init_args"] |= {"batch_size": 2, "num_workers": 0} | data
        recipe["trainer"] |= {"check_val_every_n_epoch": 100, "num_sanity_val_steps": 0}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(recipe))
    pairs = image_text_recipe()
    pairs["data"]["init_args"] = {"batch_size": 4}
    # The CLIP projector has no batch norm, whose statistics would differ with the batch of a rank.
    network = pairs["model"]["init_args"]["network"]["init_args"]
    network["backbone"]["init_args"] = BACKBONE | {"use_clip_projector": True}
    pairs["trainer"] |= {"check_val_every_n_epoch": 100, "num_sanity_val_steps": 0}
    (folder / "pairs.yaml").write_text(yaml.safe_dump(pairs))
    return folder


def _keep_whole_steps(path: Path) -> None:
    """Keep a multiple of four images of each orientation."""
    content = json.loads(path.read_text())
    wide = [image for image in content["images"] if image["width"] >= image["height"]]
    high = [image for image in content["images"] if image["width"] < image["height"]]
    content["images"] = [p for group in (wide, high) for p in group[: len(group) // 4 * 4]]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(content))


def _classification(images: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    data = {"root": str(images), "image_size": 32, "hflip": 0.0, "color_jitter": 0.0}
    return BACKBONE, data | {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}


def _detection(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    # Enough samples that there is no random sampling.
    network = {"channels": 16, "fc_channels": 32, "rpn_batch_size_per_image": 100_000}
    network |= {"box_batch_size_per_image": 100_000}
    network |= {"rpn_post_nms_top_n_train": 40, "rpn_pre_nms_top_n_train": 40}
    network["backbone"] = {"class_path": "InternImageBackbone", "init_args": BACKBONE}
    return network, {
        "root": str(root),
        "train_scales": [[64, 48]],
        "eval_scale": [64, 48],
        "hflip": 0.0,
    }


def _segmentation(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    network = {
        "backbone": {"class_path": "InternImageBackbone", "init_args": BACKBONE},
        "decode_head": {"class_path": "UPerHead", "init_args": {"channels": 16, "dropout": 0.0}},
        "auxiliary_head": {"class_path": "FCNHead", "init_args": {"channels": 8, "dropout": 0.0}},
    }
    return network, {
        "root": str(root),
        "image_scale": [256, 64],
        "crop_size": [64, 64],
        "ratio_range": [1.0, 1.0],
        "cat_max_ratio": 1.0,
        "hflip": 0.0,
        "photometric": False,
    }


@dataclass
class Run:
    """A finished run.

    Attributes:
        codes: Exit code of each rank, negative for a signal, ``None`` if it had to be killed.
        seconds: Time until each rank ended, from the start of the run.
        output: Output of each rank.
        folder: Folder of all runs of the recipe.
        losses: Loss by step.
    """

    codes: list[int | None]
    seconds: list[float | None]
    output: list[str]
    folder: Path
    losses: dict[int, float]


class Launcher:
    """Run ``python -m src`` with several ranks; see ``launcher.py``."""

    def __init__(self, recipes: Path, ports: Iterator[int]) -> None:
        self.recipes, self.ports = recipes, ports
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.launcher"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def __call__(
        self,
        runs: Path,
        recipe: str,
        *arguments: str,
        ranks: int = 1,
        command: str = "fit",
        timeout: float = 500,
        succeeds: bool = True,
    ) -> Run:
        runs.mkdir(exist_ok=True)
        number = len(list(runs.glob("log_*.0")))
        curve, log = runs / f"curve_{number}.json", runs / f"log_{number}"
        given = [command, "-c", str(self.recipes / f"{recipe}.yaml"), *arguments]
        given += ["--trainer.default_root_dir", str(runs), "--trainer.devices", str(ranks)]
        if command == "fit":
            given += ["--trainer.callbacks+=tests.distributed.callbacks.LossCurve"]
            given += ["--trainer.callbacks.path", str(curve)]
        job = {"ranks": ranks, "port": next(self.ports), "arguments": given}
        job |= {"log": str(log), "timeout": timeout}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        output = [Path(f"{log}.{rank}").read_text() for rank in range(ranks)]
        losses = json.loads(curve.read_text()) if curve.exists() else {}
        if succeeds:
            assert answer["codes"] == [0] * ranks, "\n".join(output)
        return Run(
            output=output,
            folder=runs / recipe,
            losses={int(step): loss for step, loss in losses.items()},
            **answer,
        )

    def stop(self) -> None:
        """Stop the launcher and any ranks that are still running."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


def fit(recipe: Path, runs: Path, *arguments: str, timeout: float) -> tuple[int, str]:
    """Exit code and output of ``fit``; Lightning launches the other ranks."""
    where = ["--trainer.default_root_dir", str(runs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "src", "fit", "-c", str(recipe), *where, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(
            timeout=timeout
        )  # waits until the last rank closes the pipe
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


@pytest.fixture(scope="session")
def launch(recipes: Path, ports: Iterator[int]) -> Iterator[Launcher]:
    launcher = Launcher(recipes, ports)
    yield launcher
    launcher.stop()
