"""``python -m src export`` from a training run to files that other programs run."""

import pytest

from src.cli import main
from src.hub import Pretrained


def command(trained, out, *more):
    config = ["--config", str(trained / "tiny.yaml")]
    runs = ["--trainer.default_root_dir", str(trained / "runs")]
    return ["export", *config, *runs, "--out", str(out), *more]


def test_a_run_becomes_files_that_are_checked_on_pictures(trained, pictures, tmp_path, capsys):
    size = ["--data.image_size", "64"]  # larger than in training: the smallest side is 33
    formats = ["--format", "onnx", "pt2", "safetensors", "--ckpt_path", "best"]
    check = ["--check", str(pictures / "val")]
    assert main(command(trained, tmp_path, *size, *formats, *check)) == 0
    text = capsys.readouterr().out
    assert "over 12 pictures" in text
    assert "(within 1e-4)" in text
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"model.onnx", "model.pt2", "model.safetensors", "config.json", "EXPORT.md"}
    assert Pretrained.from_pretrained(tmp_path).class_names == ["blue", "green", "red"]
    card = (tmp_path / "EXPORT.md").read_text()
    assert "| `image` | in | (N, 3, H, W) |" in card
    assert "0 blue" in card


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "export needs weights"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
    ],
)
def test_mistakes_are_one_sentence(more, message, trained, tmp_path, capsys):
    assert main(command(trained, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_recipe_is_needed(capsys):
    assert main(["export", "--ckpt_path", "best"]) == 2
    assert "needs a recipe" in capsys.readouterr().err
