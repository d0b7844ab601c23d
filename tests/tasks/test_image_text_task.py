"""Joint image-text pre-training from the command line, on squares of four colours."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from src.cli import main
from src.errors import UserError
from src.hub import Pretrained
from src.models import TextTower
from src.tasks import ImageTextTask
from src.tasks.zero_shot import check_templates, prompts
from tests.pairs import BACKBONE, image_text_recipe


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``pairs.yaml`` and its finished run."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "pairs.yaml").write_text(yaml.safe_dump(image_text_recipe()))
    assert main(["fit", "-c", str(folder / "pairs.yaml"), *runs(folder)]) == 0
    return folder


def runs(folder: Path) -> list[str]:
    return ["--trainer.default_root_dir", str(folder / "runs")]


def logged(run: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    found.setdefault(name, []).append(float(value))
    return found


def test_training_finds_the_classes_without_labels(pretrained: Path) -> None:
    metrics = logged(pretrained / "runs" / "pairs" / "version_0")
    assert metrics["train/loss_epoch"][-1] < metrics["train/loss_epoch"][0]
    assert metrics["val/zero_shot_top1"][-1] == 1.0
    assert (
        metrics["val/image_to_text_recall1"][-1] == metrics["val/text_to_image_recall1"][-1] == 1.0
    )
    assert metrics["val/loss"][-1] < metrics["val/loss"][0]


def test_a_run_is_evaluated(pretrained: Path, capsys) -> None:
    assert main(["validate", "--name", "pairs", *runs(pretrained)]) == 0
    shown = capsys.readouterr().out
    assert "zero_shot_top1" in shown
    assert "image_to_text_recall5" in shown


def test_a_run_is_resumed(pretrained: Path) -> None:
    config = str(pretrained / "pairs.yaml")
    last = ["--ckpt_path", "last", "--trainer.max_epochs", "7"]
    assert main(["fit", "-c", config, *runs(pretrained), *last]) == 0
    newest = max((pretrained / "runs" / "pairs").glob("version_*"))
    assert len(logged(newest)["val/loss"]) == 1


def test_callbacks_and_benchmark_do_without_predictions(pretrained: Path, capsys) -> None:
    config = str(pretrained / "pairs.yaml")
    one = ["--trainer.max_epochs", "1", *runs(pretrained)]
    assert main(["fit", "-c", config, "-c", "configs/callbacks/images.yaml", *one]) == 0
    capsys.readouterr()
    assert main(["benchmark", "-c", config, "--warmup", "1", "--steps", "1", *one]) == 0
    table = capsys.readouterr().out
    assert "| training |" in table
    assert "| inference |" not in table


@pytest.mark.parametrize("loss", ["CLIPLoss", "SigLIPLoss"])
def test_pairs_without_classes_suffice(loss: str, tmp_path: Path) -> None:
    recipe = image_text_recipe()
    recipe["data"]["init_args"] = {"labelled": False}
    arguments = recipe["model"]["init_args"]
    arguments["loss"] = {"class_path": loss}
    arguments["network"]["init_args"]["logit_bias"] = -10.0 if loss == "SigLIPLoss" else None
    recipe["trainer"] |= {"max_epochs": 1, "callbacks": [{"class_path": "EMA"}]}
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", "-c", str(tmp_path / "pairs.yaml"), *runs(tmp_path)]) == 0
    metrics = logged(tmp_path / "runs" / "pairs" / "version_0")
    assert "val/image_to_text_recall1_raw" in metrics
    assert "val/zero_shot_top1" not in metrics


def test_predict_is_refused_with_the_way_on(pretrained: Path, images: Path, capsys) -> None:
    assert main(["predict", "--name", "pairs", *runs(pretrained)]) == 2
    assert "--model.weights" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "consolidate", "from_pretrained"])
def test_commands_that_need_classes_say_so(command: str, pretrained: Path, capsys) -> None:
    checkpoint = next((pretrained / "runs" / "pairs" / "version_0").rglob("last.ckpt"))
    if command == "from_pretrained":
        with pytest.raises(UserError, match="no classes before it is fine-tuned"):
            Pretrained.from_pretrained(checkpoint)
        return
    if command == "export":
        arguments = ["export", "--name", "pairs", "--format", "safetensors", *runs(pretrained)]
    else:
        arguments = ["consolidate", str(checkpoint), "--official"]
    assert main(arguments) == 2
    assert "--model.weights set to the checkpoint" in capsys.readouterr().err


def test_the_image_tower_is_fine_tuned_as_a_classifier(
    pretrained: Path, write_recipe, images: Path, tmp_path: Path, recipe
) -> None:
    weights = next((pretrained / "runs" / "pairs" / "version_0").rglob("last.ckpt"))
    config = write_recipe(tmp_path)
    settings = ["--model.weights", str(weights), "--trainer.max_steps", "1", *runs(tmp_path)]
    assert main(["fit", "-c", str(config), *settings]) == 0


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_the_image_tower_loads_into_every_task(task: str, pretrained: Path) -> None:
    from src.models import InternImage, InternImageBackbone, MaskRCNN, Segmentor
    from src.models.weights import load_official

    weights = next((pretrained / "runs" / "pairs" / "version_0").rglob("last.ckpt"))
    saved = torch.load(weights, weights_only=False)["state_dict"]
    backbone = {k: tuple(v) if isinstance(v, list) else v for k, v in BACKBONE.items()}
    make = {
        "classification": lambda: InternImage(5, **backbone),
        "detection": lambda: MaskRCNN(3, lambda: InternImageBackbone(**backbone), channels=16),
        "segmentation": lambda: Segmentor(3, lambda: InternImageBackbone(**backbone)),
    }[task]
    network = make()
    report = load_official(network, weights)
    assert report.class_names == ()
    inner = getattr(network, "backbone", network)
    for name, value in inner.state_dict().items():
        if name.startswith(("patch_embed.", "levels.", "conv_head.")):
            assert torch.equal(value, saved[f"network.backbone.{name}"])


def test_templates() -> None:
    assert prompts(["a {} square", "{}."], "red") == ["a red square", "red."]
    assert len(prompts("openai", "red")) == 80
    for wrong in ("a photo", [], ["a photo of a dog"]):
        with pytest.raises(UserError, match="templates"):
            check_templates(wrong)


def test_a_checkpoint_describes_its_task(pretrained: Path) -> None:
    path = next((pretrained / "runs" / "pairs" / "version_0").rglob("last.ckpt"))
    task = ImageTextTask.load_from_checkpoint(path)
    assert task.templates == ["a {} square", "a photo of a {}."]
    saved = torch.load(path, weights_only=False)["state_dict"]
    assert torch.equal(task.network.logit_scale, saved["network.logit_scale"])


def test_a_frozen_text_tower_needs_weights(tmp_path: Path, recwarn) -> None:
    recipe = image_text_recipe()
    text = recipe["model"]["init_args"]["network"]["init_args"]["text"]
    text["init_args"] = {**text["init_args"], "frozen": True}
    recipe["trainer"] |= {"max_steps": 1, "limit_val_batches": 0}
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["fit", "-c", str(tmp_path / "pairs.yaml"), *runs(tmp_path)]
    assert main(arguments) == 0
    assert any("frozen text tower is randomly" in str(w.message) for w in recwarn)
    torch.save(TextTower(**text["init_args"]).encoder.state_dict(), tmp_path / "text.pt")
    recwarn.clear()
    assert main([*arguments, "--model.text_weights", str(tmp_path / "text.pt")]) == 0
    assert not any("frozen text tower is randomly" in str(w.message) for w in recwarn)
