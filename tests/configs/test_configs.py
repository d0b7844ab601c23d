"""Every YAML under configs/ is parsed and built, and says what it is in its first comment."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from src.cli import build

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
RECIPES = [
    path
    for path in sorted((CONFIGS / "classification").glob("*.yaml"))
    if "class_path: ImageNetDataModule" in path.read_text()
]
NETWORKS = sorted((CONFIGS / "model").glob("internimage_*.yaml"))
EVERY = sorted(CONFIGS.rglob("*.yaml"))
# FACTS of the published models: parameters with 1000 classes.
PARAMETERS = {
    "t": 29_918_424,
    "s": 50_079_880,
    "b": 97_461_832,
    "l": 223_334_810,
    "xl": 334_819_780,
    "h": 1_089_636_760,
    "g": 3_076_373_352,
}
PUBLISHED = {
    "internimage_t_1k_224": {"epochs": 300, "size": 224, "lr": 4e-3, "batch": 4096},
    "internimage_s_1k_224": {"epochs": 300, "size": 224, "lr": 4e-3, "batch": 4096},
    "internimage_b_1k_224": {"epochs": 300, "size": 224, "lr": 4e-3, "batch": 4096},
    "internimage_l_22kto1k_384": {"epochs": 20, "size": 384, "lr": 2e-5, "batch": 512},
    "internimage_xl_22kto1k_384": {"epochs": 20, "size": 384, "lr": 2e-5, "batch": 512},
    "internimage_h_22kto1k_640": {"epochs": 20, "size": 640, "lr": 2e-5, "batch": 512},
    "internimage_g_22kto1k_512": {"epochs": 20, "size": 512, "lr": 2e-5, "batch": 512},
}


def named(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of ImageNet; with the official class list the network has 1000 classes."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "val" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "val" / "n01440764" / "tench.png")
    return root


def build_on_meta(config: Path, *args: str) -> Any:
    """The instantiated recipe; no memory is taken for weights and nothing is downloaded."""
    with torch.device("meta"):
        return build(["--config", str(config), "--model.weights", "null", *args])


@pytest.mark.parametrize("path", EVERY, ids=named)
def test_first_comment_says_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_classification_recipe_builds(path: Path, images: Path) -> None:
    cli = build_on_meta(path, "--data.root", str(images))
    assert cli.model.num_classes == cli.datamodule.num_classes == 3
    logits = cli.model.network(torch.zeros(2, 3, 64, 64, device="meta"))
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_the_published_one(name: str, imagenet: Path) -> None:
    path = CONFIGS / "classification" / f"{name}.yaml"
    args = ("--data.root", str(imagenet), "--data.class_names", "imagenet-1k")
    cli = build_on_meta(path, *args)
    published, task = PUBLISHED[name], cli.model
    variant = name.split("_")[1]
    assert sum(p.numel() for p in task.network.parameters()) == PARAMETERS[variant]
    assert cli.trainer.max_epochs == published["epochs"]
    assert cli.trainer.gradient_clip_val == 5.0
    assert cli.datamodule.image_size == published["size"]
    optimizer = task.optimization.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    scaled = optimizer.defaults["lr"] * published["batch"] / task.optimization.reference_batch_size
    assert scaled == pytest.approx(published["lr"])
    assert optimizer.defaults["weight_decay"] == 0.05
    assert task.layer_decay is None


@pytest.mark.parametrize("path", NETWORKS, ids=named)
def test_network_component_replaces_the_network(path: Path, imagenet: Path) -> None:
    recipe = CONFIGS / "classification" / "internimage_t_1k_224.yaml"
    args = ["--data.root", str(imagenet), "--data.class_names", "imagenet-1k"]
    cli = build_on_meta(recipe, *args, "--model.network", str(path))
    parameters = sum(p.numel() for p in cli.model.network.parameters())
    variant = path.stem.removeprefix("internimage_")
    if variant == "nano":
        assert parameters < 5_000_000
    else:
        assert parameters == PARAMETERS[variant]
