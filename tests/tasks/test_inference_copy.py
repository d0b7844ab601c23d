"""Evaluation on a CPU with a faster copy of the network."""

import copy
import csv
import shutil

import pytest
import torch
from torch import nn

from src.cli import main
from src.hub import Pretrained
from src.models import InternImage
from src.models.internimage.fused_block import FusedBlock
from src.models.layers.compilation import Compilation, compile_parts
from src.ops.cpu_block import is_available
from src.tasks.evaluation import MANY_IMAGES
from src.tasks.inference_copy import InferenceCopy

SMALL = {"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}

needs_kernel = pytest.mark.skipif(
    not is_available(torch.float32), reason="this CPU or build has no kernel of a block"
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return InternImage(10, **SMALL).eval()


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the feature maps that fused blocks got."""
    sizes = []
    run = FusedBlock.__call__

    def spy(self, x):
        sizes.append(tuple(x.shape))
        return run(self, x)

    monkeypatch.setattr(FusedBlock, "__call__", spy)
    return sizes


@needs_kernel
@torch.no_grad()
def test_made_once_and_forgotten(network):
    copies = InferenceCopy()
    copy = copies.of(network)
    assert copy is not network
    assert copies.of(network) is copy
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(copy(x), network(x), rtol=1e-4, atol=1e-4)
    copies.forget()
    assert copies.of(network) is not copy


@needs_kernel
@torch.no_grad()
def test_weights_are_packed_once(network, monkeypatch):
    """Neither the network of a copy packs weights, nor the copy of a network that does."""
    packed = []
    init = FusedBlock.__init__
    monkeypatch.setattr(FusedBlock, "__init__", lambda *args: packed.append(args) or init(*args))
    copies, x = InferenceCopy(), torch.randn(2, 3, 64, 64)
    for _ in range(2):
        copies.of(network)(x)
        network(x)
    assert len(packed) == len(SMALL["depths"])
    compile_parts(network, Compilation())
    for _ in range(2):
        network(x)
    assert len(packed) == 2 * len(SMALL["depths"])


@torch.no_grad()
def test_not_made_where_results_or_hooks_would_change(network):
    copies = InferenceCopy()
    with torch.autocast("cpu", torch.bfloat16):
        assert copies.of(network) is network
    with torch.enable_grad():
        assert copies.of(network) is network
    assert copies.of(plain := nn.Linear(2, 2)) is plain
    handle = network.levels[0].blocks[0].register_forward_hook(lambda *args: None)
    assert copies.of(network) is network
    handle.remove()
    assert copies.of(network.train()) is network
    assert copies.of(network.eval().double()) is network


@needs_kernel
@pytest.mark.parametrize(("count", "is_fused"), [(1, False), (MANY_IMAGES, True)])
def test_pretrained(network, count, is_fused, calls):
    model = Pretrained(network, {}, [f"class {i}" for i in range(10)], "classification")
    images = list(torch.rand(count, 3, 64, 64))
    results = model.predict(images, batch_size=8)
    assert bool(calls) == is_fused
    for image, result in zip(images, results, strict=True):
        one = model.predict(image)
        torch.testing.assert_close(result.scores, one.scores, rtol=1e-4, atol=1e-5)


def last_value(path, name):
    with path.open() as file:
        return float([row[name] for row in csv.DictReader(file) if row.get(name)][-1])


@needs_kernel
def test_commands(recipe, write_recipe, images, tmp_path, calls):
    model = copy.deepcopy(recipe["model"])
    model["init_args"]["network"]["init_args"]["channels"] = 16
    config = write_recipe(tmp_path, model=model)
    where = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "-c", str(config), *where, "--trainer.max_epochs", "1"]) == 0
    assert not calls  # weights change between two validations
    runs = tmp_path / "runs" / "tiny"
    given = ["-c", str(runs / "version_0" / "config.yaml"), "--ckpt_path", "last", *where]
    assert main(["validate", *given]) == 0
    assert calls
    expected = last_value(runs / "version_0" / "metrics.csv", "val/loss")
    found = last_value(runs / "validate_0" / "metrics.csv", "val/loss")
    assert found == pytest.approx(expected, rel=1e-4)
    for count in (MANY_IMAGES - 1, MANY_IMAGES):
        calls.clear()
        folder = tmp_path / f"{count} images"
        folder.mkdir()
        source = next((images / "val").rglob("*.png"))
        for i in range(count):
            shutil.copy(source, folder / f"{i}.png")
        assert main(["predict", *given, "--data.predict_dir", str(folder)]) == 0
        assert bool(calls) == (count == MANY_IMAGES)
