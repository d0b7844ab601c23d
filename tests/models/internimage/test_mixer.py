"""Another operator in place of DCNv3, from Python and from a recipe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.cli import build, main
from src.errors import UserError
from src.models import DCNv3, DCNv4, InternImage, InternImageBackbone
from tests.models.internimage.depthwise_mixer import DepthwiseMixer

SMALL = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
CLASS_PATH = "tests.models.internimage.depthwise_mixer.DepthwiseMixer"


def mixers_of(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for name, module in network.named_modules() if name.endswith(".dcn")]


def test_from_python() -> None:
    network = InternImage(3, **SMALL, mixer=partial(DepthwiseMixer, kernel_size=5))
    assert [type(mixer) for mixer in mixers_of(network)] == [DepthwiseMixer] * 4
    assert network.state_dict()["levels.1.blocks.0.dcn.conv.weight"].shape == (16, 1, 5, 5)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_mixer_is_made_for_each_block_from_channels_and_groups() -> None:
    made = []

    def make(channels: int, groups: int) -> DepthwiseMixer:
        made.append((channels, groups))
        return DepthwiseMixer(channels, groups)

    InternImageBackbone(**SMALL | {"depths": (1, 2, 1, 1)}, mixer=make)
    assert made == [(8, 1), (16, 2), (16, 2), (32, 4), (64, 8)]


def test_with_a_named_variant() -> None:
    """Options of DCNv3 that belong to a variant do not concern another mixer."""
    with torch.device("meta"):
        backbone = InternImageBackbone("internimage_h", mixer=DepthwiseMixer)
    assert not any(isinstance(module, DCNv3) for module in backbone.modules())
    assert backbone.depths == (6, 6, 32, 6)


def test_options_of_dcnv3_beside_another_mixer_are_refused() -> None:
    with pytest.raises(UserError, match=r"options of its own mixers \(offset_scale\)"):
        InternImageBackbone(**SMALL, mixer=DepthwiseMixer, offset_scale=2.0)


def test_dcnv3_by_name_is_the_same_network() -> None:
    torch.manual_seed(0)
    expected = InternImageBackbone(**SMALL, offset_scale=2.0)
    torch.manual_seed(0)
    network = InternImageBackbone(**SMALL, mixer=partial(DCNv3, offset_scale=2.0))
    image = torch.randn(1, 3, 32, 32)
    for value, wanted in zip(network(image), expected(image), strict=True):
        assert torch.equal(value, wanted)


@pytest.fixture
def recipe_with_mixer(
    recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> Callable[[Any], str]:
    """Write the tiny recipe with a mixer and give its path."""

    def write(mixer: Any) -> str:
        model = yaml.safe_load(yaml.safe_dump(recipe["model"]))
        model["init_args"]["network"]["init_args"]["mixer"] = mixer
        return str(write_recipe(tmp_path, "mixer", model=model))

    return write


def test_from_a_recipe(
    recipe_with_mixer: Callable[[Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe_with_mixer({"class_path": CLASS_PATH, "init_args": {"kernel_size": 5}})
    network = build(["--config", path]).model.network
    assert [mixer.conv.kernel_size for mixer in mixers_of(network)] == [(5, 5)] * 4

    assert main(["fit", "--config", path, "--trainer.max_epochs", "1"]) == 0
    saved = tmp_path / "runs" / "mixer" / "version_0"
    again = ["--config", str(saved / "config.yaml"), "--ckpt_path", "last"]
    assert main(["fit", *again, "--trainer.max_epochs", "2"]) == 0


def test_by_short_name_on_the_command_line(recipe_with_mixer: Callable[[Any], str]) -> None:
    path = recipe_with_mixer(None)
    assert isinstance(mixers_of(build(["--config", path]).model.network)[0], DCNv3)
    given = ["--model.network.mixer", "DepthwiseMixer", "--model.network.mixer.kernel_size", "3"]
    network = build(["--config", path, *given]).model.network
    assert [mixer.conv.kernel_size for mixer in mixers_of(network)] == [(3, 3)] * 4


def test_dcnv4_by_its_name(
    recipe_with_mixer: Callable[[Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe_with_mixer(None)
    given = ["--model.network.core_op", "DCNv4", "--model.network.dcn_output_bias", "false"]
    layer = mixers_of(build(["--config", path, *given]).model.network)[0]
    assert isinstance(layer, DCNv4)
    assert layer.output_proj.bias is None
    assert main(["fit", "--config", path, "--trainer.max_epochs", "1", *given]) == 0
    saved = tmp_path / "runs" / "mixer" / "version_0"
    again = ["--config", str(saved / "config.yaml"), "--ckpt_path", "last"]
    assert main(["fit", *again, "--trainer.max_epochs", "2"]) == 0


def test_wrong_options_of_the_operators() -> None:
    with pytest.raises(UserError, match="core_op must be 'DCNv3' or 'DCNv4', got 'DCNv5'"):
        InternImageBackbone(**SMALL, core_op="DCNv5")
    with pytest.raises(UserError, match="dcn_output_bias=false is for core_op='DCNv4'"):
        InternImageBackbone(**SMALL, dcn_output_bias=False)
    with pytest.raises(UserError, match="DCNv4 needs an odd positive kernel_size, got 4"):
        DCNv4(8, 2, kernel_size=4)
    with pytest.raises(UserError, match="channels=8 and groups=3"):
        DCNv4(8, 3)


def test_a_layer_that_is_no_mixer_is_refused(recipe_with_mixer: Callable[[Any], str]) -> None:
    with pytest.raises(UserError, match=r"must be SpatialMixer or null, got 'torch.nn.Linear'"):
        build(["--config", recipe_with_mixer("torch.nn.Linear")])
    with pytest.raises(UserError, match=r"Did you mean 'DepthwiseMixer'"):
        build(["--config", recipe_with_mixer("DepthwiseMixr")])
