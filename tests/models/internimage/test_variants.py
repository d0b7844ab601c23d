"""Named architectures: the argument ``variant``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.cli import build, main
from src.errors import UserError
from src.hub import Pretrained
from src.models import ARCHITECTURES, InternImage, InternImageBackbone
from src.models.building import build_network


def shapes_of(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_a_variant_is_the_written_out_network(variant: str) -> None:
    with torch.device("meta"):
        named = InternImage(10, variant)
        written = InternImage(10, **ARCHITECTURES[variant])
        backbone = InternImageBackbone(variant)
    assert shapes_of(named) == shapes_of(written)
    assert repr(named) == repr(written)
    assert shapes_of(backbone).items() <= shapes_of(named).items()


def test_given_arguments_override_the_variant() -> None:
    with torch.device("meta"):
        backbone = InternImageBackbone("internimage_s", drop_path_rate=0.2, layer_scale=None)
        blocks = [block for stage in backbone.levels for block in stage.blocks]
        assert blocks[-1].drop_path.drop_prob == 0.2
        assert blocks[0].gamma1 is None  # null is a value too
        assert blocks[0].post_norm
        head = InternImage(10, "internimage_h", channels=80, use_clip_projector=False)
    assert head.conv_head is not None


def test_unknown_variant() -> None:
    with pytest.raises(
        UserError, match="no InternImage variant 'q'; expected one of internimage_n"
    ):
        InternImageBackbone("q")


def test_unknown_arguments_are_an_error_as_in_any_function() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'chanels'"):
        InternImageBackbone(chanels=8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_clip_projector'"):
        InternImageBackbone(use_clip_projector=True)


@pytest.fixture
def nano_recipe(
    recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The tiny recipe with the named variant nano, made narrower."""
    monkeypatch.chdir(tmp_path)
    model = yaml.safe_load(yaml.safe_dump(recipe["model"]))
    narrower = {"variant": "internimage_nano", "channels": 8, "groups": [1, 2, 4, 8]}
    model["init_args"]["network"]["init_args"] = narrower
    return str(write_recipe(tmp_path, "nano", model=model))


def test_a_run_of_a_variant_is_resumed_and_exported(nano_recipe: str, tmp_path: Path) -> None:
    assert main(["fit", "--config", nano_recipe, "--trainer.max_epochs", "1"]) == 0
    run = tmp_path / "runs" / "nano" / "version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    arguments = saved["model"]["init_args"]["network"]["init_args"]
    assert arguments["variant"] == "internimage_nano"
    assert arguments["channels"] == 8
    assert "depths" not in arguments  # the variant's

    again = ["--config", str(run / "config.yaml"), "--ckpt_path", "last"]
    assert main(["fit", *again, "--trainer.max_epochs", "2"]) == 0
    folder = tmp_path / "exported"
    assert main(["export", *again, "--out", str(folder), "--format", "safetensors"]) == 0
    assert Pretrained.from_pretrained(folder).network.depths == (1, 1, 3, 1)


def test_another_variant_on_the_command_line(nano_recipe: str) -> None:
    with torch.device("meta"):
        cli = build(["--config", nano_recipe, "--model.network.variant", "internimage_t"])
    assert cli.model.network.depths == (4, 4, 18, 4)
    assert cli.model.network.stage_channels[0] == 8  # given in the recipe


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("variant", "t", "There is no InternImage variant 't'; expected one of internimage_nano"),
        ("variant", "nano", "written out. Did you mean 'internimage_nano'?"),
        ("chanels", "8", "Did you mean 'model.network.channels'?"),
        ("channels", "x", "model.network.channels must be an integer, got 'x'."),
        ("layer_scale", "x", "model.network.layer_scale must be a number or null, got 'x'."),
    ],
)
def test_mistakes(nano_recipe: str, setting: str, value: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build(["--config", nano_recipe, f"--model.network.{setting}", value])
    assert sentence in str(error.value)


def test_a_file_may_name_a_variant_and_nothing_unknown() -> None:
    spec = {"class_path": "InternImage", "init_args": {"variant": "internimage_t", "channels": 8}}
    with torch.device("meta"):
        assert build_network(spec, 3).depths == (4, 4, 18, 4)
    for wrong in ({"speed": 9}, {"channels": "many"}, {"mixer": "os.system"}):
        with pytest.raises(UserError):
            build_network({"class_path": "InternImage", "init_args": wrong}, 3)
