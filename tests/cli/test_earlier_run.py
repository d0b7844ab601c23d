"""Run folders and checkpoints of earlier versions can be resumed, evaluated and exported."""

import shutil
from pathlib import Path

import pytest
import yaml

from src.cli import main
from src.models import MaskRCNN
from src.models.building import build_network

ROOT = Path(__file__).parents[2]
EARLIER = ROOT / "tests" / "fixtures" / "earlier_run"


@pytest.fixture
def earlier(tmp_path: Path, images: Path) -> list[str]:
    """Arguments for the earlier run with its own configuration."""
    folder = tmp_path / "runs" / "tiny" / "version_0"
    shutil.copytree(EARLIER, folder)
    return [
        *("--config", str(folder / "config.yaml"), "--data.root", str(images)),
        *("--trainer.default_root_dir", str(tmp_path / "runs"), "--ckpt_path", "last"),
    ]


def test_it_resumes(earlier: list[str], tmp_path: Path) -> None:
    assert main(["fit", *earlier, "--trainer.max_epochs", "3"]) == 0
    assert (tmp_path / "runs" / "tiny" / "version_1" / "checkpoints" / "last.ckpt").is_file()


def test_it_predicts(earlier: list[str], images: Path, tmp_path: Path) -> None:
    options = ["--data.predict_dir", str(images / "val" / "red")]
    with pytest.warns(FutureWarning, match="max_pictures was renamed to max_images"):
        assert main(["predict", *earlier, *options]) == 0
    table = tmp_path / "runs" / "tiny" / "predict_0" / "predictions.csv"
    assert len(table.read_text().splitlines()) == 1 + 4


def test_a_former_option_names_the_present_one(
    earlier: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *earlier, "--predictions.max_pictures", "4"]) == 2
    assert "Did you mean --predictions.max_images?" in capsys.readouterr().err


def test_it_is_exported(earlier: list[str], tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(["export", *earlier, "--out", str(out), "--format", "safetensors"]) == 0
    assert (out / "model.safetensors").is_file()


def with_former_names(arguments: dict) -> dict:
    """Arguments of a detector as an earlier version has named them."""
    former = {new: old for old, new in MaskRCNN.former_arguments.items()}
    return {former.get(name, name): value for name, value in arguments.items()}


def test_former_names_in_a_recipe_and_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / "detection.yaml").read_text())
    network = recipe["model"]["init_args"]["network"]
    arguments = network["init_args"]
    network["init_args"] = with_former_names(arguments)
    assert len(network["init_args"].keys() - arguments.keys()) == 6
    (tmp_path / "earlier.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--model.network.roi_samples", "7", "--print_config"]
    with pytest.warns(FutureWarning) as warned:
        assert main(["fit", "-c", str(tmp_path / "earlier.yaml"), *options]) == 0
    texts = [str(warning.message) for warning in warned]
    assert any("train_proposals was renamed to rpn_post_nms_top_n_train" in t for t in texts)
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["init_args"]
    kept = {name: printed[name] for name in MaskRCNN.former_arguments.values()}
    assert kept == {name: arguments[name] for name in kept} | {"box_batch_size_per_image": 7}
    assert not printed.keys() & MaskRCNN.former_arguments.keys()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_former_names_in_a_description() -> None:
    given = {"rpn_pre_nms_top_n_train": 30, "rpn_post_nms_top_n_test": 20, "channels": 16}
    spec = {"class_path": "CascadeMaskRCNN", "init_args": with_former_names(given)}
    head = build_network(spec, 3).rpn_head
    assert (head.train_limits.pre_nms_top_n, head.test_limits.post_nms_top_n) == (30, 20)
