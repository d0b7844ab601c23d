"""``python -m src export`` for a trained run."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from src.cli import build, main
from src.hub import Pretrained
from src.models import InternImage
from src.models.weights import to_official
from src.models.weights.names import official_names

RECIPES = Path(__file__).parents[2] / "configs"


def command(trained, out, *more):
    config = ["--config", str(trained / "tiny.yaml")]
    runs = ["--trainer.default_root_dir", str(trained / "runs")]
    return ["export", *config, *runs, "--out", str(out), *more]


def test_a_run_is_exported_and_checked_on_images(trained, images, tmp_path, capsys, monkeypatch):
    size = ["--data.image_size", "64"]  # larger than in training: the smallest side is 33
    formats = ["--format", "onnx", "pt2", "safetensors", "--ckpt_path", "best"]
    check = ["--check", str(images / "val")]
    assert main(command(trained, tmp_path, *size, *formats, *check)) == 0
    text = capsys.readouterr().out
    assert "over 12 images" in text
    assert "Check:   passed" in text
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"model.onnx", "model.pt2", "model.safetensors", "config.json", "EXPORT.md"}
    assert Pretrained.from_pretrained(tmp_path).class_names == ["blue", "green", "red"]
    card = (tmp_path / "EXPORT.md").read_text()
    assert "| `image` | in | (batch, height, width, 3) uint8 |" in card  # model.onnx
    assert "| `image` | in | (N, 3, H, W) |" in card  # model.pt2
    assert card.count("0 blue") == 1  # one description
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    Image.open(next((images / "val").rglob("*.png"))).resize((90, 70)).save("photo.jpg")
    printed = {}
    for script, suffix in {"predict.py": "", "predict_pt2.py": "_pt2"}.items():
        assert f"python {script} photo.jpg" in card
        monkeypatch.setattr("sys.argv", [script, "photo.jpg"])
        found = runpy.run_path(str(tmp_path / script))
        printed[script] = capsys.readouterr().out
        classes, written = printed[script].split("Wrote ")
        assert re.fullmatch(r"(\w+ \d+\.\d%\n){3}", classes)
        assert written == f"results/photo_result{suffix}.png\n"
        assert Path(f"results/photo_result{suffix}.png").is_file()
    assert "crop 64 x 64 pixels at the centre" in card
    result = Pretrained.from_pretrained(tmp_path).predict("photo.jpg")
    probabilities = found["found"]["probabilities"][0, result.labels.numpy()]
    torch.testing.assert_close(torch.from_numpy(probabilities), result.scores, rtol=0, atol=1e-5)


def test_a_check_names_images_that_cannot_be_read(trained, images, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "empty.jpg").touch()
    given = ["--data.image_size", "64", "--data.eval_batch_size", "1", "--ckpt_path", "best"]
    check = command(trained, tmp_path / "exported", *given, "--check", str(photos))
    assert main(check) == 2
    printed = capsys.readouterr()
    assert "Check:" not in printed.out
    assert "Wrote:" in printed.out
    assert "error: Nothing was checked: no image could be read:\n  " in printed.err

    Image.new("RGB", (80, 70)).save(photos / "good.png")
    assert main(check) == 2
    printed = capsys.readouterr()
    assert "over 1 image:" in printed.out
    assert "Check:   passed" in printed.out
    assert "error: 1 image could not be read and is not checked." in printed.err
    assert f"{photos}/empty.jpg cannot be read: the file is empty" in printed.err

    assert main([*check, "--data.broken_images", "skip"]) == 0
    note = capsys.readouterr().out.partition("note: 1 image could not be read")[2]
    assert f"{photos}/empty.jpg" in note


def test_a_failed_check_is_told_beside_the_files(trained, images, tmp_path, capsys):
    # A program of torch.export takes images of more than 32 pixels.
    given = ["--format", "pt2", "--ckpt_path", "best", "--data.image_size"]
    check = ["--check", str(images / "val")]
    card = tmp_path / "EXPORT.md"
    assert main(command(trained, tmp_path, *given, "32", *check)) == 1
    printed = capsys.readouterr()
    reason = "FAILED: model.pt2 does not accept inputs of the size (8, 3, 32, 32): "
    assert f"Wrote:   {tmp_path / 'model.pt2'}" in printed.out
    assert f"Check:   {reason}" in printed.out
    assert f"\nCheck: {reason}" in card.read_text()
    assert main(command(trained, tmp_path, *given, "64")) == 0
    assert "\nCheck: not done; " in card.read_text()
    assert main(command(trained, tmp_path, *given, "64", *check)) == 0
    assert "\nCheck: passed, on 12 images\n" in card.read_text()


def test_a_check_reads_images_as_predict_does(trained, images, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(next((images / "val").rglob("*.png")), photos / "a.png")
    (photos / "animated.gif").touch()
    given = ["--data.image_size", "64", "--ckpt_path", "best", "--check", str(photos)]
    assert main(command(trained, tmp_path / "out", *given)) == 0
    printed = capsys.readouterr().out
    assert "Left out: 1 image file with other extensions than .jpg, " in printed
    assert ": animated.gif\n" in printed
    assert main(command(trained, tmp_path / "out", *given, "--data.max_pixels", "10")) == 2
    assert "and the limit is 10" in capsys.readouterr().err


def test_a_check_shows_its_progress_and_what_is_written_if_it_is_stopped(
    trained, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("src.export.check._SECONDS", 0.0)
    compared = []

    def compare(*_):
        compared.append(0)
        if len(compared) == 3:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr("src.export.check.compare_result", compare)
    check = ["--data.image_size", "64", "--ckpt_path", "best", "--check", str(images / "val")]
    assert main(command(trained, tmp_path, *check)) == 130
    printed = capsys.readouterr()
    assert "Checked 1 of 12 images\nChecked 2 of 12 images\n" in printed.out
    assert f"Interrupted. The files in {tmp_path} are written, but not checked." in printed.err
    assert (tmp_path / "model.onnx").exists()
    assert "\nCheck: not finished\n" in (tmp_path / "EXPORT.md").read_text()


def test_raw_outputs(trained, tmp_path, capsys):
    stale = ["model.onnx.data", "model.fp16.onnx", "model.int8.onnx", "boxes_3.onnx"]
    kept = ["photo.onnx"]  # another name
    for name in stale + kept:
        (tmp_path / name).touch()
    size = ["--data.image_size", "64", "--ckpt_path", "best"]
    assert main(command(trained, tmp_path, *size, "--outputs", "raw", "--dcn", "gather")) == 0
    card = (tmp_path / "EXPORT.md").read_text()
    assert "| `logits` | out |" in card
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", "predict.py", "EXPORT.md", *kept}
    assert "Deleted: model.onnx.data, " in capsys.readouterr().out


def test_the_checkpoint_is_named_and_formats_of_other_weights_are_not_mixed(
    trained, tmp_path, capsys
):
    out = tmp_path / "exported"
    given = command(trained, out, "--ckpt_path", "best", "--format")
    assert main([*given, "safetensors"]) == 0
    text = capsys.readouterr().out
    assert f"Weights: {trained}/runs/tiny/version_0/checkpoints/best-epoch=" in text
    written = {path.name for path in out.iterdir()}
    assert {line.split()[1] for line in text.splitlines() if line.startswith("Wrote:")} == {
        str(out / name) for name in written
    }
    assert main([*given, "pt2"]) == 2
    error = capsys.readouterr().err
    assert "other formats (model.safetensors)" in error
    assert "Repeat the command with --format pt2 safetensors to replace all of them, " in error
    assert f"or with --out {out}_2 to keep them" in error
    assert {path.name for path in out.iterdir()} == written
    assert main([*given, "pt2", "safetensors"]) == 0
    assert "Deleted" not in capsys.readouterr().out
    assert main([*given, "safetensors"]) == 2
    assert "other formats (model.pt2)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_of_mask2former(images, tmp_path, capsys):
    config = ["--config", str(RECIPES / "toy/mask2former.yaml"), "--trainer.accelerator", "cpu"]
    network = build(config).model.training_network
    names, weights = official_names(network), tmp_path / "start.pth"
    torch.save({names.get(k, k): x for k, x in network.state_dict().items()}, weights)
    more = ["--model.weights", str(weights), "--check", str(images / "val"), "--out"]
    assert main(["export", *config, *more, str(tmp_path / "exported")]) == 0
    assert "label_map" in capsys.readouterr().out
    card = (tmp_path / "exported" / "EXPORT.md").read_text()
    assert "| `label_map` | out | (batch, height, width) int64 |" in card


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "export needs weights"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (
            ["--ckpt_path", "last", "--data.class_names=[blue,green,red,violet]"],
            "it has 3 classes (blue, green, red), but the data have 4 (blue, green, red, violet)",
        ),
        (["--ckpt_path", "last", "--check", "nowhere"], "for --check does not exist"),
        (["--check", ".", "--format", "safetensors"], "--check needs onnx, pt2 or aoti"),
    ],
)
def test_user_errors_are_one_line(more, message, trained, tmp_path, capsys):
    assert main(command(trained, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_random_weights_are_not_exported(trained, tmp_path, capsys):
    sizes = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
    torch.save({"model": to_official(InternImage(7, **sizes))}, tmp_path / "seven.pth")
    given = [f"--model.network.{name}={json.dumps(value)}" for name, value in sizes.items()]
    weights = ["--model.weights", str(tmp_path / "seven.pth")]
    assert main(command(trained, tmp_path, *given, *weights)) == 2
    assert "head.weight would be randomly initialised" in capsys.readouterr().err


def test_a_recipe_is_needed(capsys):
    assert main(["export", "--ckpt_path", "best"]) == 2
    assert "--ckpt_path best needs the name of the run, --name RUN" in capsys.readouterr().err
    assert main(["export", "--format", "onnx"]) == 2
    assert "export needs --name RUN, --ckpt_path FILE, or --config" in capsys.readouterr().err
