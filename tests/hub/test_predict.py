"""Predictions from Python equal those of ``python -m src predict``, for the three tasks."""

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps

from src.cli import main
from src.data.classes.cityscapes import CITYSCAPES_NAMES, CITYSCAPES_PALETTE
from src.errors import UserError
from src.hub import Pretrained
from src.hub.runs import official_palette
from src.inference.images import load_image
from src.metrics.coco_results import decode_masks
from tests.cli.tiny import TASKS, save_image, write_data, write_recipe

# Settings that change predictions.
SETTINGS = {
    "classification": ["--data.upright", "true", "--data.crop_pct", "0.9"],
    "detection": ["--model.network.score_threshold", "0.0"],
    "segmentation": [
        *("--data.tta", "true", "--data.tta_ratios", "[0.5,1.0]"),
        *("--model.window_size", "[48,48]", "--model.window_stride", "[32,32]"),
        *("--data.palette", "[[250,10,10],[10,10,250]]"),
    ],
}


@pytest.fixture(scope="module", params=TASKS)
def run(request, tmp_path_factory):
    """Task, folder of a finished run and a photo that ``predict`` has processed."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = write_recipe(folder, request.param, write_data(folder / "data", request.param))
    where = ["--trainer.default_root_dir", str(folder / "runs")]
    assert main(["fit", "-c", str(recipe), *where, *SETTINGS[request.param]]) == 0
    more = ["--detections.score", "0.0", "--data.predict_dir", str(photo(folder))]
    assert main(["predict", "--name", request.param, *where, *more]) == 0
    return request.param, folder / "runs" / request.param, photo(folder)


def photo(folder: Path) -> Path:
    """A photo with an EXIF orientation, as phones save them."""
    path = folder / "photo.png"
    if not path.is_file():
        save_image(path, 7, (100, 70))
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)
    return path


def read(folder: Path) -> Image.Image:
    (path,) = folder.rglob("photo.png")
    return Image.open(path)


def test_predictions_are_those_of_the_command_line(run):
    task, runs, path = run
    model = Pretrained.from_pretrained(runs / "version_0")
    assert f"for {task}" in repr(model)
    assert len(repr(model).splitlines()) == 1
    result = model.predict(path)
    written = runs / "predict_0"
    if task == "classification":
        with (written / "predictions.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert result.names == [row["class_1"], row["class_2"]]
        expected = [float(row["prob_1"]), float(row["prob_2"])]
        assert result.scores.tolist() == pytest.approx(expected, abs=1e-6)
        drawn, same = read(written / "images"), result.plot()
    elif task == "detection":
        found = json.loads((written / "detections.json").read_text())["annotations"]
        assert len(found) == len(result.labels) > 0
        assert result.scores.tolist() == pytest.approx([f["score"] for f in found], abs=1e-6)
        boxes = np.array([f["bbox"] for f in found])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(result.boxes.numpy(), boxes, atol=1e-6)
        assert [result.class_names.index(n) + 1 for n in result.names] == [
            f["category_id"] for f in found
        ]
        np.testing.assert_array_equal(result.masks.numpy(), np.stack(decode_masks(found)))
        assert result.masks.shape[1:] == (100, 70)  # turned upright
        drawn, same = read(written / "overlays"), result.plot(score=0.0)
    else:
        np.testing.assert_array_equal(result.label_map, read(written / "label_maps"))
        assert set(result.names) <= {"a", "b"}
        assert result.mask("a").sum() + result.mask("b").sum() == 7000
        with pytest.raises(UserError, match=r"There is no class 'c'\. The classes are a, b"):
            result.mask("c")
        drawn, same = read(written / "overlays"), result.plot()
    np.testing.assert_array_equal(np.asarray(same), np.asarray(drawn.convert("RGB")))


@pytest.mark.parametrize("upright", [False, True])
def test_images_are_drawn_as_the_network_sees_them(
    run: tuple[str, Path, Path], tmp_path: Path, upright: bool
) -> None:
    task, runs, path = run
    model = Pretrained.from_pretrained(runs)
    command = ["predict", "--name", task, "--trainer.default_root_dir", str(tmp_path / "runs")]
    command += ["--data.predict_dir", str(path), "--detections.score", "0.0"]
    if task == "detection":
        seen = ImageOps.exif_transpose(Image.open(path))  # in any case
    else:
        model.preprocessing["upright"] = upright
        command += ["--data.upright", str(upright).lower()]
        seen = ImageOps.exif_transpose(Image.open(path)) if upright else Image.open(path)
    result = model.predict(path)
    np.testing.assert_array_equal(np.asarray(result.image()), np.asarray(seen.convert("RGB")))
    assert str(model.predict(np.asarray(seen.convert("RGB")))) == str(result)
    shutil.copytree(runs / "version_0", tmp_path / "runs" / task / "version_0")
    assert main(command) == 0
    folder = "images" if task == "classification" else "overlays"
    drawn = read(tmp_path / "runs" / task / "predict_0" / folder).convert("RGB")
    plotted = result.plot(score=0.0) if task == "detection" else result.plot()
    np.testing.assert_array_equal(np.asarray(plotted), np.asarray(drawn))


def test_16_bits_of_a_recipe_are_not_for_predictions_on_a_cpu(
    run: tuple[str, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, runs, path = run
    shutil.copytree(runs / "version_0", tmp_path / "half" / "version_0")
    config = tmp_path / "half" / "version_0" / "config.yaml"
    text = config.read_text()
    for setting in (f"default_root_dir: {tmp_path}", "precision: 16-mixed", "name: half"):
        key = setting.split()[0]
        text, count = re.subn(rf"^(  )?{key} .*", rf"\1{setting}", text, flags=re.MULTILINE)
        assert count == 1
    config.write_text(text)
    command = ["predict", "--ckpt_path", str(tmp_path / "half"), "--data.predict_dir", str(path)]
    command += ["--detections.score", "0.0"]
    assert main(command) == 0
    printed = "".join(capfd.readouterr())
    assert "precision 32-true" in printed
    assert printed.count("add --trainer.precision bf16-mixed") == 1
    assert "AMP" not in printed
    assert "warning" not in printed.lower()
    for expected in runs.rglob("predict_0/**/*.*"):
        found = tmp_path / "half" / "predict_0" / expected.relative_to(runs / "predict_0")
        if expected.suffix in (".csv", ".json", ".png"):
            assert found.read_bytes() == expected.read_bytes()
    assert main([*command, "--trainer.precision", "bf16-mixed"]) == 0
    printed = "".join(capfd.readouterr())
    assert "precision bf16-mixed" in printed
    assert "note: " not in printed


def test_runs_checkpoints_and_saved_folders_are_the_same_model(run, tmp_path):
    _, runs, path = run
    best = next((runs / "version_0" / "checkpoints").glob("best*.ckpt"))
    model = Pretrained.from_pretrained(best)
    model.save_pretrained(tmp_path / "saved")
    expected = str(model.predict(path))
    for source in (str(runs), runs / "version_0", tmp_path / "saved"):
        assert str(Pretrained.from_pretrained(source).predict(path)) == expected


def test_an_image_may_be_a_file_or_in_memory(run):
    task, runs, path = run
    model = Pretrained.from_pretrained(runs)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    images = [Image.fromarray(pixels), pixels, pixels / 255, tensor, tensor / 255]
    together = model.predict(images, batch_size=2)
    assert len({str(result) for result in together}) == 1
    assert str(model.predict(tensor[None])[0]) == str(together[0])
    assert together[0].plot().mode == "RGB"
    assert str(model.predict(iter([pixels]))[0]) == str(together[0])
    if task != "segmentation":
        assert together[0].scores.dtype == torch.float32
    turned = model.predict([path, str(path), Image.open(path)])  # with the EXIF orientation
    assert len({str(result) for result in turned}) == 1


def test_grey_images_are_read_as_grey_files(run):
    _, runs, path = run
    pixels = np.asarray(Image.open(path).convert("L"))
    tensor = torch.from_numpy(pixels.copy())[None]
    expected = np.stack([pixels] * 3, axis=2)
    images = [Image.fromarray(pixels), pixels, pixels[..., None], pixels / 255, tensor, expected]
    for image in images:
        np.testing.assert_array_equal(np.asarray(load_image(image)), expected)
    results = Pretrained.from_pretrained(runs).predict(images)
    assert len({str(result) for result in results}) == 1


def test_mistakes_are_one_line(run, tmp_path):
    _, runs, path = run
    model = Pretrained.from_pretrained(runs)
    for image, message in (
        ("https://example.org/a.jpg", r"https://example\.org/a\.jpg is a URL"),
        (tmp_path / "missing.jpg", "there is no such file"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(H, W, 3\), RGBA.*got \(3, 8, 8\)"),
        (np.zeros((8, 8, 5), np.uint8), r"RGBA \(H, W, 4\) or grey.*got \(8, 8, 5\)"),
        (np.full((8, 8, 3), 2.0), "values from 0 to 1"),
        (torch.zeros(8, 8, 3), r"shape \(3, H, W\)"),
        (np.zeros((8, 8), np.int64), "uint8 or floating-point, got int64"),
        (5, "got int"),
        ("", "The path of the image is empty"),
        ({"a": path}, "got dict"),
        (path.read_bytes(), r"got bytes\. Open it with Pillow: Image\.open\(io\.BytesIO"),
        (io.BytesIO(), r"got BytesIO\. Open it with Pillow: Image\.open\(file\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            model.predict(image)
        assert "\n" not in str(caught.value)
    for batch_size in (0, 2.5, "a", None, True):
        with pytest.raises(UserError, match="batch_size must be an integer from 1, got "):
            model.predict([path], batch_size=batch_size)
    with pytest.raises(UserError, match="The device 'gpu' cannot be used: use 'cuda' or 'cpu'"):
        model.predict(path, device="gpu")
    with pytest.raises(UserError, match="lpu"):
        model.predict(path, device="lpu")
    assert model.predict([]) == []


def test_absurd_sizes_are_one_line(run):
    task, runs, path = run
    model = Pretrained.from_pretrained(runs)
    settings = {
        "classification": [
            ({"image_size": 2**20}, r"data\.image_size accepts 1 to 8192 pixels, got 1048576"),
            ({"crop_pct": 1e-6}, r"data\.crop_pct accepts a ratio from 0\.1 to 1"),
        ],
        "detection": [
            ({"eval_scale": [2**20, 2**20]}, r"to fit 1048576 x 1048576; expected at most 2684"),
            ({"tta": True, "tta_ratios": [1e6]}, "expected at most 268435456 pixels"),
        ],
        "segmentation": [
            ({"image_scale": [2**20, 2**20]}, "expected at most 268435456 pixels"),
            ({"tta": True, "tta_ratios": [1e6]}, "expected at most 268435456 pixels"),
            ({"size_divisor": 2**20}, r"data\.size_divisor accepts an integer from 1 to 1024"),
        ],
    }
    given = dict(model.preprocessing)
    for change, message in settings[task]:
        model.preprocessing = given | change
        with pytest.raises(UserError, match=message):
            model.predict(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_floating_point_type_are_images(dtype):
    levels = torch.tensor([0.0, 0.25, 1.0], dtype=dtype).view(3, 1, 1).expand(3, 2, 2)
    assert load_image(levels).getpixel((1, 1)) == (0, 64, 255)


def test_an_image_that_pillow_cannot_decode_is_refused(tmp_path):
    save_image(tmp_path / "whole.jpg", 7, (100, 70))
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with pytest.raises(UserError, match="The image cannot be decoded"):
        load_image(Image.open(tmp_path / "half.jpg"))


def test_images_of_other_types_lead_to_their_conversion():
    for image, got, conversion in (
        (np.ones((2, 2, 3), np.int64), "int64", "image.astype(np.uint8)"),
        (np.ones((2, 2), bool), "bool", "image.astype(np.uint8) * 255"),
        (np.full((2, 2), 65535, np.uint16), "uint16", "image.astype(np.float32) / 65535"),
        (torch.ones(3, 2, 2, dtype=torch.int64), "int64", "image.to(torch.uint8)"),
        (torch.ones(1, 2, 2, dtype=torch.bool), "bool", "image.to(torch.uint8) * 255"),
        (torch.ones(1, 2, 2).mul(65535).to(torch.uint16), "uint16", "image.float() / 65535"),
    ):
        with pytest.raises(UserError, match=f"be uint8 or floating-point, got {got}\\.") as caught:
            load_image(image)
        assert f"with {conversion}" in str(caught.value)
        value = 1 if got == "int64" else 255
        converted = eval(conversion, {"image": image, "np": np, "torch": torch})
        assert load_image(converted).getpixel((0, 0)) == (value,) * 3


def test_values_a_hair_beyond_0_and_1_are_clamped():
    for image in (np.full((2, 2, 3), 1.0001), torch.full((3, 2, 2), 1.0009, dtype=torch.float64)):
        assert load_image(image).getpixel((0, 0)) == (255, 255, 255)
        assert load_image(1 - image).getpixel((0, 0)) == (0, 0, 0)
        for wrong in (image + 0.001, -image * 0.0011, image * math.nan):
            with pytest.raises(UserError, match="values from 0 to 1"):
                load_image(wrong)


def test_transparent_arrays_are_read_as_such_files_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    expected = np.asarray(load_image(tmp_path / "clear.png"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (pixels, pixels / 255, tensor, tensor / 255):
        np.testing.assert_array_equal(np.asarray(load_image(image)), expected)


def test_a_missing_run_is_not_searched_on_the_hub(run, monkeypatch):
    _, runs, _ = run
    monkeypatch.chdir(runs.parent.parent)
    message = r"no folder runs/missing here \(.*\)\. The only run with checkpoints in runs is "
    with pytest.raises(UserError, match=message):
        Pretrained.from_pretrained("runs/missing")


def test_runs_have_the_colours_of_their_dataset():
    names, colours = list(CITYSCAPES_NAMES), list(CITYSCAPES_PALETTE.values())
    found = official_palette("src.data.CityscapesDataModule", names)["palette"]
    assert [tuple(colour) for colour in found] == colours
    for class_path in ("CityscapesDataModule", "COCODataModule", "my.DataModule", "os", ""):
        assert official_palette(class_path, ["a", "b"]) == {}


def test_ema_weights_are_used(trained):
    model = Pretrained.from_pretrained(trained / "runs" / "tiny" / "version_0")
    assert model.class_names == ["blue", "green", "red"]
    checkpoint = next((trained / "runs" / "tiny" / "version_0" / "checkpoints").glob("best*.ckpt"))
    averaged = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, averaged[f"network.{name}"])


def test_low_rank_updates_are_merged(trained, images, tmp_path):
    where = ["--trainer.default_root_dir", str(tmp_path)]
    fit = ["fit", "-c", str(trained / "tiny.yaml"), *where, "--model.lora", "2"]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    path = next((images / "val" / "red").glob("*.png"))
    predict = ["predict", "--name", "tiny", *where, "--data.predict_dir", str(path)]
    assert main(predict) == 0
    with (tmp_path / "tiny" / "predict_0" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    result = Pretrained.from_pretrained(tmp_path / "tiny").predict(path)
    assert result.names[0] == row["class_1"]
    assert float(result.scores[0]) == pytest.approx(float(row["prob_1"]), abs=1e-6)


def test_a_checkpoint_needs_the_configuration_of_its_run(trained, tmp_path):
    checkpoint = next((trained / "runs").rglob("best*.ckpt"))
    alone = tmp_path / "deep" / "er" / "best.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(checkpoint.read_bytes())
    with pytest.raises(UserError, match=r"no config\.yaml"):
        Pretrained.from_pretrained(alone)
    (alone.parent / "config.yaml").write_text("model: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        Pretrained.from_pretrained(alone)
    config = yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())
    config["model"]["init_args"]["network"]["class_path"] = "os.system"
    (alone.parent / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"no such class"):
        Pretrained.from_pretrained(alone)
