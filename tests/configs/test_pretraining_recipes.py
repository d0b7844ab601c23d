"""Recipes of joint image-text pre-training are built, sharded and planned without their data."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from src.cli import build, main
from src.data.prepare.index_tars import index
from src.data.toy.image_text import write_toy_image_text
from src.data.toy.layout import ToySettings
from src.distributed import shard
from src.models import ImageTextModel
from src.models.internimage.blocks import Block

CONFIGS = Path(__file__).parents[2] / "configs" / "pretraining"
RECIPES = [*sorted(CONFIGS.glob("*clip*.yaml")), CONFIGS / "toy.yaml"]
PARAMETERS = {  # millions
    "toy": 5.2,
    "internimage_t_clip_15m_224": 93.0,
    "internimage_h_clip_427m_224": 1213.1,
    "internimage_g_clip_427m_224": 3199.8,
}
RANKS = 8


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy pairs in indexed tars."""
    root = tmp_path_factory.mktemp("pairs")
    write_toy_image_text(root / "toy", ToySettings(train=1, val=1, predict=1, size=32))
    index(root / "index", [str(root / "toy" / "train")])
    return root


def on_meta(path: Path, pairs: Path) -> ImageTextModel:
    sources = f"[{{index: {pairs / 'index'}}}]"
    settings = ["--data.sources", sources, "--data.val_sources", sources, "--data.class_names=null"]
    settings += ["--data.zero_shot_root", str(pairs / "toy" / "zero_shot")]
    settings += ["--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.num_nodes", "1"]
    settings += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    with torch.device("meta"):
        cli = build(["--config", str(path), *settings])
    assert cli.model.num_classes == 10
    return cli.model.network


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(path: Path, pairs: Path) -> None:
    network = on_meta(path, pairs)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[path.stem], abs=0.06)
    tokens = torch.zeros(2, network.text.context_length, dtype=torch.long, device="meta")
    found = network(torch.zeros(2, 3, 64, 64, device="meta"), tokens)
    assert found.image.shape == found.text.shape == (2, network.text.output_dim)


@pytest.fixture
def ranks() -> Iterator[int]:
    """A process group of which only rank 0 exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield RANKS
    distributed.destroy_process_group()


def test_h_and_its_text_tower_are_sharded_on_the_meta_device(pairs: Path, ranks: int) -> None:
    network = on_meta(CONFIGS / "internimage_h_clip_427m_224.yaml", pairs)
    shard(network, init_device_mesh("cpu", (ranks,)), (Block,))
    whole = sum(p.numel() for p in network.parameters())
    own = sum(p.to_local().numel() for p in network.parameters())
    assert own == pytest.approx(whole / ranks, rel=0.01)


@pytest.mark.slow
def test_h_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "internimage_h_clip_427m_224.yaml")
    flags = ["--gpus", "256", "--memory", "80GB", "--pairs", "427M"]
    assert main(["plan", "--config", recipe, *flags]) == 0
    output = capsys.readouterr().out
    print(output)
    (operations,) = re.findall(r"30 epochs: (\S+) FLOP", output)
    assert float(operations) == pytest.approx(1.44e22, rel=0.02)
    assert "1,213.1 M parameters" in output
    assert "10.68 TB" in output


def test_the_toy_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "toy.yaml")
    assert main(["plan", "--config", recipe]) == 0
    assert "give --pairs" in capsys.readouterr().out
    flags = ["--pairs", "2.56K", "--epochs", "2", "--utilisation", "0.5", "--peak_tflops", "1"]
    assert main(["plan", "--config", recipe, *flags]) == 0
    output = capsys.readouterr().out
    assert "2,560 pairs x 2 epochs" in output
    assert "50% of 1 TFLOP/s" in output
    assert main(["plan", "--config", recipe, "--pairs", "1M", "--utilisation", "40"]) == 2
    assert "--utilisation: expected a share up to 1, got 40" in capsys.readouterr().err
