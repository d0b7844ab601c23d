"""Options of ``python -m src export``, and its check of turned images."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from src.cli.commands import export
from src.data import COCODataModule
from src.decoding import BrokenImageError
from src.errors import UserError
from src.export import check
from src.export.compare_results import ResultFile
from src.export.package import Form, Written


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--outputs", "raw", "--precision", "int8"], "--precision has no effect with --outputs"),
        (["--outputs", "raw", "--masks", "image"], "--masks has no effect with --outputs raw"),
        (["--format", "pt2", "--dcn", "gather"], "--dcn has no effect without onnx"),
    ],
)
def test_options_without_effect_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        export.main(["--config", "recipe.yaml", *given])


@pytest.mark.parametrize(
    ("name", "way"),
    [("tensorrt", "--preprocessing outside, and convert"), ("OpenVINO", "--dcn gridsample")],
)
def test_formats_that_are_made_of_onnx_files_lead_to_onnx(name, way):
    with pytest.raises(UserError, match=f"reads ONNX files: use --format onnx {way}"):
        export.main(["--config", "recipe.yaml", "--format", name])


class Model:
    pushed = ""

    def push_to_hub(self, name):
        self.pushed = name
        return name


@pytest.mark.parametrize(("passed", "pushed"), [(None, "a/b"), (True, "a/b"), (False, "")])
def test_a_failed_check_is_not_uploaded(passed, pushed, monkeypatch):
    model = Model()
    loaded = export._Loaded(model, "x", "last.ckpt")
    monkeypatch.setattr(export, "load", lambda *given: (loaded, None))
    monkeypatch.setattr(export, "export", lambda *given: ([], check.Checked(passed)))
    assert export.main(["--config", "recipe.yaml", "--push", "a/b"]) == (passed is False)
    assert model.pushed == pushed


@pytest.mark.parametrize(
    ("names", "change"),
    [
        (
            ["backbone.pt2", "boxes.pt2"],
            "torch.export: .* Use --format onnx for one file that does",
        ),
        (["backbone.onnx", "boxes.onnx"], "ONNX: .* Leave out --outputs raw for one file"),
        (["backbone.onnx", "backbone.aoti.pt2"], "ONNX and AOTInductor: .* --outputs raw for"),
        (
            ["model.onnx", "predict.py", "boxes.pt2"],
            "torch.export: .* model.onnx does, with predict",
        ),
        (["model.onnx", "predict.py", "model.pt2", "predict_pt2.py"], None),
        (["model.safetensors", "config.json"], None),
    ],
)
def test_files_without_a_script_are_named(names, change, tmp_path, monkeypatch, capsys):
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.touch()
    loaded = export._Loaded(Model(), "x", "last.ckpt")
    monkeypatch.setattr(export, "load", lambda *given: (loaded, None))
    monkeypatch.setattr(export, "export", lambda *given: (paths, check.Checked()))
    assert export.main(["--config", "recipe.yaml", "--out", str(tmp_path / "new")]) == 0
    notes = re.findall("^note: .*", capsys.readouterr().out, re.MULTILINE)
    assert len(notes) == (change is not None)
    if change is not None:
        assert re.match(f"note: there is no script for the files of {change}", notes[0])


def test_a_folder_without_images_is_refused_before_the_network_is_built(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        UserError, match=r"--check holds no images: .* expected files ending in \.jpg"
    ):
        export.main(["--config", "recipe.yaml", "--check", str(tmp_path)])


def test_turned_images_of_a_detector_are_checked_upright(tmp_path, monkeypatch, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (90, 60)).save(tmp_path / "photo.jpg", exif=exif)
    data = COCODataModule(
        root=str(tmp_path), class_names=["cat"], eval_scale=(90, 60), num_workers=0
    )
    found = []
    monkeypatch.setattr(check, "ResultFile", lambda path, inside: lambda example: example)
    monkeypatch.setattr(
        check, "compare_result", lambda network, result, example, file: found.append(example) or {}
    )
    check.check_files(None, Written([], [Path("model.onnx")], object()), tmp_path, data, Form())
    assert [(example.original, example.size) for example in found] == [((90, 60), (90, 60))]
    assert f"Checking 1 image from {tmp_path}" in capsys.readouterr().out


def test_a_check_needs_onnx_runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="need onnxruntime"):
        ResultFile(Path("model.onnx"), inside=False)


def test_a_check_decodes_images_up_to_the_limit_of_the_recipe(tmp_path, monkeypatch):
    Image.new("RGB", (90, 60)).save(tmp_path / "photo.png")
    limit = 90 * 60
    batch = {"path": [str(tmp_path / "photo.png")], "image": torch.zeros(1, 3, 60, 90)}
    loader = SimpleNamespace(dataset=SimpleNamespace(upright=False))
    (example,) = check._examples(batch, loader, limit, 1)
    assert example.original == (60, 90)
    with pytest.raises(BrokenImageError, match="the limit is 5399"):
        list(check._examples(batch, loader, limit - 1, 1))
