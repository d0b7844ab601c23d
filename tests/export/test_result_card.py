"""``EXPORT.md``, and the script of a file from image to result."""

import re
import shutil
import sys
from dataclasses import replace
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src import project
from src.data.formats.image_files import list_images
from src.decoding import BrokenImageError, decode
from src.export.card import card as whole_card
from src.export.description import Description
from src.export.graphs import graphs_of
from src.export.package import with_weights
from src.export.raw_card import raw_section
from src.export.result_card import result_section
from src.export.script import result_script
from src.models import MaskRCNN
from src.models.graphs import ClassResult, LabelMapResult, QueryResult, RegionResult
from src.visualization import BAR, FONT, draw_instances, draw_label_map
from tests.export.test_export_files import classifier
from tests.export.test_result_files import two_stage

COLOURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TRUNCATED = "image file is truncated"
ACCEPTED = "expected an image file (JPEG, PNG, WEBP, BMP, PPM or TIFF)"
MASK_RCNN = RegionResult(1000, 1000, 0.7, ((0.1, 0.1, 0.2, 0.2),), 0.05, 0.5, 100, 0.4, 32, 3)


def test_numbers_of_the_label_maps_of_the_user_are_told(run_script, tmp_path, capsys):
    settings = {**COLOURS, "image_scale": [400, 300], "palette": [(1, 2, 3), (4, 5, 6)]}
    description = Description("segmentation", ["a", "b"], settings, own_numbers=[1, 7])
    result = LabelMapResult()
    text = card_of(result, [], description, inside=True)
    assert "| 0 | 1 | a |\n| 1 | 7 | b |\n" in text
    assert "`np.array([1, 7])[label_map]`" in text
    text = result_script(result, description, inside=True, masks="box", library=None)
    run_script(text, description, {"label_map": np.ones((1, 300, 400), np.int64)})
    assert "\n1 b 100.0% (7 in your label maps)\n" in capsys.readouterr().out


def script(result, settings, *, inside=False, masks="box", task="task"):
    description = Description(task, ["a", "b"], {**COLOURS, **settings})
    return result_script(result, description, inside=inside, masks=masks, library=None)


def card(result, settings, folder: Path, *, inside=False, masks="box", task="task"):
    path = folder / "model.onnx"
    path.write_bytes(bytes(2000))
    description = Description(task, ["a", "b"], {**COLOURS, **settings})
    (folder / "predict.py").touch()
    paths = [*with_weights([path]), folder / "predict.py"]
    return card_of(result, paths, description, inside=inside, masks=masks)


def card_of(result, paths, description, *, inside, masks="box"):
    settings = description.preprocessing
    section = result_section(result, settings, inside=inside, masks=masks)
    return whole_card(description, paths, result, [section], inside=inside)


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Runs a script, by default on a grey photo; the file returns ``outputs``.

    Returns what it draws for the last image.
    """
    monkeypatch.chdir(tmp_path)
    Image.new("L", (400, 300), 128).save("photo.jpg")
    (tmp_path / "a").mkdir()
    Image.new("L", (400, 300), 128).save("a/photo.png")

    def run(text, description, outputs, *given):
        session = SimpleNamespace(
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=description.metadata(True)),
            get_outputs=lambda: [SimpleNamespace(name=name) for name in outputs],
            run=lambda names, inputs: [outputs[name] for name in names],
        )
        stub = SimpleNamespace(InferenceSession=lambda path: session)
        monkeypatch.setitem(sys.modules, "onnxruntime", stub)
        given = given or ("photo.jpg",)
        output = given[given.index("--output") + 1] if "--output" in given else "results"
        monkeypatch.setattr(sys, "argv", ["predict.py", *given])
        (tmp_path / "model.onnx").touch()
        variables = {"__file__": str(tmp_path / "predict.py")}
        exec(text, variables)
        return np.asarray(Image.open(f"{output}/{variables['stem']}_result.png"))

    return run


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_the_script_prepares_images_as_the_recipe(filter_, tmp_path):
    settings = {"image_size": 96, "crop_pct": 0.9, "interpolation": filter_}
    text = script(ClassResult(), settings)
    assert f"Image.{filter_.upper()})" in text
    assert "round((side - 96) / 2)" in text
    assert "--optShapes=image:1x3x96x96" in card(ClassResult(), settings, tmp_path)


def test_masks_have_the_threshold_of_the_network(tmp_path):
    settings = {"image_scale": [200, 128]}
    assert "mask > 0.4" in script(MASK_RCNN, settings, inside=True)
    text = card(MASK_RCNN, settings, tmp_path, inside=True)
    assert "trtexec" not in text
    assert "--preprocessing outside" in text


def described_with_pt2(result, graph, settings, task, scripts, folder):
    """Description of an ONNX file from image to result, and of raw outputs in ``.pt2``."""
    names = ["model.onnx", f"{graph.name}.pt2", *scripts]
    for name in names:
        (folder / name).touch()
    description = Description(task, ["a", "b"], {**COLOURS, **settings})
    sections = [
        result_section(result, description.preprocessing, inside=True, masks="box"),
        raw_section([graph], [folder / f"{graph.name}.pt2"]),
    ]
    paths = [folder / name for name in names]
    return whole_card(description, paths, result, sections, inside=True)


def test_two_formats_have_one_description(tmp_path):
    (graph,) = graphs_of(classifier())
    scripts = ["predict.py", "predict_pt2.py"]
    settings = {"image_size": 96}
    text = described_with_pt2(ClassResult(), graph, settings, "classification", scripts, tmp_path)
    titles = re.findall("^#+ .*", text, re.MULTILINE)
    assert titles == [
        "# InternImage for classification, exported",
        *("## Running", "## ONNX", "## torch.export", "### model"),
        *("## Preprocessing", "## Classes"),
    ]
    assert text.count("results/photo_result.png") == 1
    assert "`predict_pt2.py` does the same; the names of its files end with `_pt2`.\n" in text
    assert "Part of `model.onnx`: it resizes, crops and normalises RGB images of 8 bits." in text
    assert "Not part of the other files. Resize the shorter side to 96 pixels" in text
    paragraphs = [part for part in text.split("\n\n") if part != "```"]
    assert len(set(paragraphs)) == len(paragraphs)  # nothing is said twice


def test_files_of_a_format_without_a_script_are_named(tmp_path):
    graph = graphs_of(two_stage(MaskRCNN))[0]
    settings = {"eval_scale": [400, 300]}
    text = described_with_pt2(MASK_RCNN, graph, settings, "detection", ["predict.py"], tmp_path)
    assert "python predict.py photo.jpg" in text
    assert "Part of `model.onnx`: it resizes, normalises and pads RGB images of 8 bits." in text
    assert "detections near the smallest score may be others." in text
    assert "There is no script for the files of torch.export: none of them alone leads" in text
    assert "says how to join them. `model.onnx` does.\n" in text


def test_large_weights_are_listed(tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(bytes(3_000_000))
    text = card(ClassResult(), {"image_size": 96}, tmp_path)
    assert "- `model.onnx` (2.0 kB)\n- `model.onnx.data` (3.0 MB)\n" in text


def test_label_maps_have_the_colours_of_predict(run_script, tmp_path):
    palette = [(210, 40, 30), (20, 90, 250)]
    settings = {"image_scale": [400, 300], "palette": palette}
    description = Description("segmentation", ["a", "b"], settings)
    assert "- palette" not in card(LabelMapResult(), settings, tmp_path, task="segmentation")
    text = script(LabelMapResult(), settings, inside=True, task="segmentation")
    labels = np.zeros((300, 400), np.int64)
    labels[100:] = 1
    drawn = run_script(text, description, {"label_map": labels[None], "scores": labels[None]})
    photo = Image.open("photo.jpg")
    expected = np.asarray(draw_label_map(photo, labels, ["a", "b"], palette))
    difference = np.abs(drawn[:, :400].astype(int) - expected[:, :400])
    assert difference.max() <= 1  # rounding
    legend = {tuple(colour) for colour in drawn[:, 400:].reshape(-1, 3)}
    assert set(palette) <= legend


def test_label_maps_have_the_shares_of_predict(run_script, tmp_path, capsys):
    settings = {"image_scale": [400, 300], "palette": [(210, 40, 30), (20, 90, 250)]}
    description = Description("segmentation", ["a", "b"], settings)
    text = script(LabelMapResult(), settings, inside=True, task="segmentation")
    labels = np.zeros((1, 300, 400), np.int64)
    labels[:, :, 100:] = 1
    run_script(text, description, {"label_map": labels, "scores": labels})
    assert capsys.readouterr().out == (
        "Wrote results/photo_label_map.png\n1 b 75.0%\n0 a 25.0%\nWrote results/photo_result.png\n"
    )
    np.testing.assert_array_equal(Image.open("results/photo_label_map.png"), labels[0])
    labels[:, :, 1:] = 1  # the area of a is below 0.5 %
    drawn = run_script(text, description, {"label_map": labels, "scores": labels})
    assert "1 b 99.8%\n0 a 0.2%\n" in capsys.readouterr().out
    labels[:, 1:] = 1  # one pixel of a
    run_script(text, description, {"label_map": labels, "scores": labels})
    assert "1 b 100.0%\n0 a <0.1%\n" in capsys.readouterr().out
    assert (210, 40, 30) not in {tuple(colour) for colour in drawn[:, 400:].reshape(-1, 3)}


@pytest.mark.parametrize("name", ["a", "a much longer class name than that"])
def test_the_legend_of_a_label_map_is_as_wide_as_its_text(name, run_script):
    settings = {"image_scale": [400, 300], "palette": [(210, 40, 30)]}
    description = Description("segmentation", [name], settings)
    text = script(LabelMapResult(), settings, inside=True, task="segmentation")
    drawn = run_script(text, description, {"label_map": np.zeros((1, 300, 400), np.int64)})
    written = (drawn != 255).any(axis=(0, 2)).nonzero()[0]
    margin = drawn.shape[1] - 1 - written.max()  # at the right of the text
    assert 3 <= margin <= 12  # half the size of the font is 7


@pytest.mark.parametrize("masks", [None, "box", "image"])
def test_detections_have_the_colours_of_predict(masks, run_script, tmp_path, capsys):
    boxes = np.float32([[20, 20, 120, 220], [160, 20, 220, 220], [260, 50, 390, 250]] * 2)
    outputs = {"boxes": boxes, "scores": np.float32([0.9, 0.8, 0.7, 0.29, 0.2, 0.1])}
    outputs["labels"] = np.array([1, 1, 0, 1, 1, 0])
    whole = np.zeros((6, 300, 400), bool)
    for mask, (x1, y1, x2, y2) in zip(whole, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    outputs["masks"] = whole if masks == "image" else np.ones((6, 28, 28), np.float32)
    settings = {"image_scale": [400, 300]}
    result = MASK_RCNN if masks else QueryResult(100, None)
    text = script(result, settings, inside=True, masks=masks or "box", task="detection")
    drawn = run_script(text, Description("detection", ["a", "b"], settings), outputs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 of 6 detections have a score of at least 0.3"
    assert [line.split()[0] for line in lines[1:]] == ["b", "b", "a", "Wrote"]
    assert lines[1] == "b 90.0% box 20.0, 20.0, 120.0, 220.0"
    expected = np.asarray(
        draw_instances(
            Image.open("photo.jpg"),
            [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes[:3].tolist()],
            list(whole[:3]) if masks else [],
            ["b", "b", "a"],
            [0.9, 0.8, 0.7],
            [1, 1, 0],
        )
    )
    for x1, _, x2, y2 in boxes[:3].astype(int):
        np.testing.assert_array_equal(drawn[y2, (x1 + x2) // 2], expected[y2, (x1 + x2) // 2])
        inside = np.s_[y2 - 60, (x1 + x2) // 2]
        assert np.abs(drawn[inside].astype(int) - expected[inside]).max() <= 1
    description = Description("detection", ["a", "b"], settings)
    run_script(text, description, outputs, "photo.jpg", "--score", "0.75")
    assert "2 of 6 detections have a score of at least 0.75" in capsys.readouterr().out


def drawn_detections(run, boxes):
    """What the script draws for boxes of one class, whose scores are 90 %."""
    outputs = {"boxes": np.float32(boxes), "scores": np.full(len(boxes), 0.9, np.float32)}
    outputs["labels"] = np.zeros(len(boxes), np.int64)
    settings = {"eval_scale": [400, 300]}
    text = script(QueryResult(100, None), settings, inside=True, task="detection")
    return run(text, Description("detection", ["apple"], settings), outputs)


def test_labels_of_detections_do_not_cover_each_other(run_script):
    drawn = drawn_detections(run_script, [[100, 100, 300, 200]] * 3)
    _, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    assert (counts > 500).sum() == 1 + 3  # the grey image, and three labels in their shades


def test_many_labels_do_not_hide_the_image(run_script):
    places = [(x, y) for y in range(10, 290, 25) for x in range(10, 390, 20)]
    drawn = drawn_detections(run_script, [[x, y, x + 1, y + 1] for x, y in places])
    covered = (drawn != np.asarray(Image.open("photo.jpg").convert("RGB"))).any(axis=2)
    outlines = 5 * 5 * len(places) / covered.size
    assert 0.1 < covered.mean() <= 0.15 + outlines


def test_an_image_smaller_than_a_label_has_one(run_script):
    Image.new("L", (12, 8), 128).save("photo.jpg")
    drawn = drawn_detections(run_script, [[2, 2, 4, 4]])
    assert (drawn[:, 8:] != 128).any()


@pytest.mark.parametrize("size", [(72, 96), (20, 400), (300, 20)])
def test_small_images_of_detectors_are_enlarged_as_in_predict(size, run_script, capsys):
    Image.new("L", size, 128).save("photo.png")
    box = [4.0, 5.0, 14.0, 15.0]
    result, settings = QueryResult(100, None), {"eval_scale": [400, 300]}
    text = script(result, settings, inside=True, task="detection")
    outputs = {"boxes": np.float32([box]), "scores": np.float32([0.9]), "labels": np.array([0])}
    drawn = run_script(text, Description("detection", ["aiarrow"], settings), outputs, "photo.png")
    expected = draw_instances(
        Image.open("photo.png"), [[4, 5, 10, 10]], [], ["aiarrow"], [0.9], [0]
    )
    assert drawn.shape == np.asarray(expected).shape
    assert "aiarrow 90.0% box 4.0, 5.0, 14.0, 15.0\n" in capsys.readouterr().out
    assert (drawn[:, -1] == drawn[0, -1]).all()  # the label ends before the edge


def test_the_script_says_the_highest_score_if_nothing_is_shown(run_script, tmp_path, capsys):
    settings = {"eval_scale": [400, 300]}
    text = script(QueryResult(100, None), settings, inside=True, task="detection")
    outputs = {
        "boxes": np.zeros((2, 4), np.float32),
        "scores": np.float32([0.25, 0.1]),
        "labels": np.zeros(2, np.int64),
    }
    description = Description("detection", ["a"], settings)
    run_script(text, description, outputs)
    assert capsys.readouterr().out == (
        "0 of 2 detections have a score of at least 0.3\n"
        "The highest score is 0.250; lower --score to draw more.\n"
        "Wrote results/photo_result.png\n"
    )
    run_script(text, description, {name: value[:0] for name, value in outputs.items()})
    assert (
        capsys.readouterr().out == "There are no detections.\nReplaced results/photo_result.png\n"
    )


def deep_image(kind, shape=(40, 50)):
    """A grey image of more than 8 bits, and the extension of a file that keeps them."""
    values = np.linspace(0, 1, shape[0] * shape[1]).reshape(shape)
    return {
        "16-bit PNG": (Image.fromarray((values * 65535).astype(np.uint16)), "png"),
        "dark 16-bit PNG": (Image.fromarray((values * 200).astype(np.uint16)), "png"),
        "16-bit PPM": (Image.fromarray((values * 65535).astype(np.uint16)), "pgm"),
        "16-bit TIFF": (Image.fromarray((values * 65535).astype(np.uint16)), "tiff"),
        "big-endian TIFF": (Image.fromarray((values * 65535).astype(">u2")), "tiff"),
        "32-bit TIFF": (Image.fromarray((values * 90000 - 500).astype(np.int32)), "tiff"),
        "8 of 32 bits": (Image.fromarray((values * 255).astype(np.int32)), "tiff"),
        "floats to 1": (Image.fromarray(values.astype(np.float32)), "tiff"),
        "floats to 255": (Image.fromarray((values * 255).astype(np.float32)), "tiff"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("16-bit PNG", "dark 16-bit PNG", "16-bit PPM", "16-bit TIFF", "big-endian TIFF"),
        *("32-bit TIFF", "8 of 32 bits", "floats to 1", "floats to 255"),
    ],
)
def test_the_script_converts_images_of_more_than_8_bits_as_predict(kind, run_script):
    image, extension = deep_image(kind)
    assert image.mode[0] in "IF"
    image.save(f"deep.{extension}")
    expected = np.asarray(decode(f"deep.{extension}"))
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    description = Description("classification", ["a"], {})
    outputs = {"probabilities": np.float32([[1]])}
    drawn = run_script(text, description, outputs, f"deep.{extension}")
    np.testing.assert_array_equal(drawn[:40, :50], expected)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_of_more_than_8_bits_are_turned_upright(orientation, run_script):
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep_image("16-bit PNG")[0].save("deep.png", exif=exif)
    settings = {"image_size": 96, "upright": True}
    description = Description("classification", ["a"], {**COLOURS, **settings})
    text = result_script(ClassResult(), description, inside=True, masks="box", library=None)
    expected = np.asarray(decode("deep.png", upright=True))
    drawn = run_script(text, description, {"probabilities": np.float32([[1]])}, "deep.png")
    np.testing.assert_array_equal(drawn[: len(expected), : len(expected[0])], expected)
    assert expected.shape == ((50, 40, 3) if orientation == 6 else (40, 50, 3))


def test_floating_point_values_out_of_range_are_refused_as_in_predict(run_script, capsys):
    Image.fromarray(np.full((40, 50), 9000, np.float32)).save("deep.tiff")
    with pytest.raises(BrokenImageError) as error:
        decode("deep.tiff")
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    with pytest.raises(SystemExit, match="1"):
        run_script(text, Description("classification", ["a"], {}), {}, "deep.tiff")
    reason = "expected floating-point values from 0 to 1 or from 0 to 255, got values from 9000"
    assert reason in str(error.value)
    assert capsys.readouterr().err.startswith(f"error: deep.tiff cannot be read: {reason}")


def test_the_script_takes_the_path_of_an_image(run_script, monkeypatch, tmp_path):
    Image.new("RGB", (200, 100)).save("other.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    description = Description("classification", ["a", "b"], {})
    assert run_script(text, description, outputs, "../other.png").shape[1] == 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["missing.jpg"], "there is no file missing.jpg"),
        (["empty"], "there are no images in the folder empty"),
        (["text.jpg"], f"text.jpg cannot be read: {ACCEPTED}"),
        (["cut.jpg"], f"cut.jpg cannot be read: {TRUNCATED}"),
        (["bomb.png"], "bomb.png cannot be read: Image size (400000000 pixels) exceeds limit"),
        (["moving.gif"], f"moving.gif cannot be read: {ACCEPTED}"),
    ],
)
def test_mistakes_are_one_sentence(given, message, run_script, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**30 // 12)  # Pillow's own limit
    broken_files()
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    with pytest.raises(SystemExit, match="1"):
        run_script(text, Description("classification", ["a"], {}), {}, *given)
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not Path("results").exists()


def broken_files():
    """Write a text, the start of an image, one of 400 million pixels, and another format."""
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("not an image")
    Path("text.jpg").write_text("not an image")
    Image.effect_noise((400, 300), 50).save("cut.jpg")
    Path("cut.jpg").write_bytes(Path("cut.jpg").read_bytes()[:-1000])
    Image.new("1", (20_000, 20_000)).save("bomb.png")
    Image.new("RGB", (40, 30)).save("moving.gif")
    with pytest.raises(BrokenImageError):  # as in `predict`
        decode("moving.gif")


def test_images_that_cannot_be_read_are_left_out(run_script, capsys):
    broken_files()
    Image.new("RGB", (200, 100)).save("other.png")
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    description = Description("classification", ["a", "b"], {})
    given = ("cut.jpg", "photo.jpg", "missing.jpg", "text.jpg", "other.png")
    with pytest.raises(SystemExit, match="1"):
        run_script(text, description, outputs, *given)
    printed, errors = capsys.readouterr()
    assert printed == (
        "photo.jpg:\na 90.0%\nb 10.0%\nWrote results/photo_result.png\n"
        "other.png:\na 90.0%\nb 10.0%\nWrote results/other_result.png\n"
    )
    missing, cut, text = errors.splitlines()
    assert missing == "error: there is no file missing.jpg"
    assert cut.startswith(f"error: cut.jpg cannot be read: {TRUNCATED}")
    assert text == f"error: text.jpg cannot be read: {ACCEPTED}"


def test_missing_packages_and_files_are_one_sentence(run_script, monkeypatch, tmp_path):
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    monkeypatch.setattr(sys, "argv", ["predict.py", "photo.jpg"])
    variables = {"__file__": str(tmp_path / "predict.py")}
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(SystemExit, match=r"^error: there is no model\.onnx in .*, the folder"):
        exec(text, variables)
    for missing in ("onnxruntime", "numpy", "PIL"):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, missing, None)
            with pytest.raises(SystemExit, match=rf"{missing}.*; the script needs pip install onn"):
                exec(text, variables)


class Refusing(dict):
    """Outputs of a file for which there is not enough memory."""

    def __getitem__(self, name):
        raise MemoryError


def test_images_that_the_file_does_not_accept_are_left_out(run_script, capsys):
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    description = Description("classification", ["a", "b"], {})
    outputs = Refusing(probabilities=np.float32([[0.9, 0.1]]))
    with pytest.raises(SystemExit, match="1"):
        run_script(text, description, outputs, "photo.jpg", "a/photo.png")
    assert capsys.readouterr().err == (
        "error: model.onnx does not accept photo.jpg: MemoryError()\n"
        "error: model.onnx does not accept a/photo.png: MemoryError()\n"
    )


def test_an_image_that_is_given_twice_has_one_result(run_script, capsys):
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    given = ("a/photo.png", "a", "a/../a/photo.png")
    run_script(text, Description("classification", ["a", "b"], {}), outputs, *given)
    assert capsys.readouterr().out == "a 90.0%\nb 10.0%\nWrote results/photo_result.png\n"


@pytest.mark.parametrize("output", ["photo.jpg", "photo.jpg/deep"])
def test_folders_of_results_that_are_files_are_refused_before_predicting(
    output, run_script, capsys
):
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    description = Description("classification", ["a"], {})
    message = f"^error: --output {output}: .*photo.jpg is not a writable folder$"
    with pytest.raises(SystemExit, match=message):
        run_script(text, description, Refusing(), "photo.jpg", "--output", output)
    assert capsys.readouterr().out == ""


def test_results_that_cannot_be_written_are_one_sentence(run_script):
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    Path("results/photo_result.png").mkdir(parents=True)
    message = r"^error: results/photo_result\.png cannot be written: Is a directory$"
    with pytest.raises(SystemExit, match=message):
        run_script(text, Description("classification", ["a", "b"], {}), outputs)


def test_incomplete_model_files_are_one_sentence(tmp_path, monkeypatch):
    Image.new("L", (40, 30)).save(tmp_path / "photo.jpg")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(tmp_path / "photo.jpg")])
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    message = r"^error: model\.onnx cannot be read \(an incomplete copy\?\): .+$"
    with pytest.raises(SystemExit, match=message):
        exec(text, {"__file__": str(tmp_path / "predict.py")})


def test_help_lists_the_options(run_script, capsys):
    text = script(MASK_RCNN, {"image_scale": [400, 300]}, inside=True, task="detection")
    description = Description("detection", ["a"], {})
    with pytest.raises(SystemExit, match="0"):
        run_script(text, description, {}, "--help")
    assert "--score SCORE" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run_script(text, description, {}, "photo.jpg", "--minimum", "1")
    assert "usage: predict.py" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["5", "-1", "nan"])
def test_scores_out_of_range_are_refused(score, run_script, capsys):
    text = script(MASK_RCNN, {"image_scale": [400, 300]}, inside=True, task="detection")
    description = Description("detection", ["a"], {})
    with pytest.raises(SystemExit, match="2"):
        run_script(text, description, {}, "photo.jpg", "--score", score)
    assert f"--score: expected a number from 0 to 1, got {score}\n" in capsys.readouterr().err


def test_the_script_takes_several_images(run_script, capsys):
    Image.new("RGB", (200, 100)).save("other.png")
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    description = Description("classification", ["a", "b"], {})
    assert run_script(text, description, outputs, "other.png", "photo.jpg").shape[1] == 400
    assert Image.open("results/other_result.png").width == 200
    assert capsys.readouterr().out == (
        "other.png:\na 90.0%\nb 10.0%\nWrote results/other_result.png\n"
        "photo.jpg:\na 90.0%\nb 10.0%\nWrote results/photo_result.png\n"
    )


def test_results_are_written_to_a_folder_and_replaced(run_script, capsys):
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    description = Description("classification", ["a", "b"], {})
    for verb in ("Wrote", "Replaced"):
        run_script(text, description, outputs, "photo.jpg", "--output", "drawn/deep")
        assert capsys.readouterr().out == f"a 90.0%\nb 10.0%\n{verb} drawn/deep/photo_result.png\n"
    assert not Path("results").exists()


def test_folders_are_searched_as_by_predict(run_script, capsys):
    Path("a/notes.txt").write_text("no image")
    for name in ("Z.JPG", "b.png", "deeper/c.png", ".hidden.png", ".cache/d.png", "e.gif"):
        Path("a", name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(Path("a", name))
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    description = Description("classification", ["a", "b"], {})
    for _ in range(2):  # the results of the first time are no images of the second
        run_script(text, description, outputs, "a", "--output", "a/drawn")
        printed = capsys.readouterr().out.splitlines()
        titles = [line for line in printed if line.endswith(":")]
        assert titles == ["a/Z.JPG:", "a/b.png:", "a/deeper/c.png:", "a/photo.png:"]
        assert printed[0] == "Left out: a/e.gif (not JPEG, PNG, WEBP, BMP, PPM or TIFF)"
    run_script(text, description, outputs, "a/drawn")
    assert "a/drawn/b_result.png:" in capsys.readouterr().out
    assert {f"{path}" for path in list_images("a")} == {
        *(f"a/{name}" for name in ("Z.JPG", "b.png", "deeper/c.png", "photo.png")),
        *(f"a/drawn/{name}_result.png" for name in "Zbc"),
        "a/drawn/photo_result.png",
    }


def test_long_class_names_are_shortened_in_drawings_only(run_script, capsys):
    long = "a name of more than thirty characters" * 3
    outputs = {
        ClassResult(): {"probabilities": np.float32([[1]])},
        LabelMapResult(): {"label_map": np.zeros((1, 300, 400), np.int64)},
    }
    for result, found in outputs.items():
        drawn = []
        for name in (long, long[:28] + "..."):
            settings = {"image_size": 96, "palette": [(1, 2, 3)]}
            description = Description("segmentation", [name], settings)
            text = script(result, settings, inside=True)
            drawn.append(run_script(text, description, found))
            assert name in capsys.readouterr().out
        np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("width", [40, 400])
def test_classes_have_bars_as_long_as_their_probabilities(width, run_script):
    Image.new("L", (width, 300), 128).save("photo.jpg")
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    description = Description("classification", ["a long name", "b", "c"], {})
    outputs = {"probabilities": np.float32([[0.8, 0.2, 0]])}
    drawn = run_script(text, description, outputs)
    side = width // 40 + 10  # size of the text
    lines = (drawn[300 + side // 2 :] == BAR).all(axis=2)
    lengths = [lines[i * 7 * side // 4 :][: side // 2].any(axis=0).sum() for i in range(3)]
    assert lengths[0] > 40
    assert lengths[1] / lengths[0] == pytest.approx(0.2 / 0.8, abs=0.02)
    assert lengths[2] <= 1
    assert (drawn[300:, -5:] == 255).all()  # the numbers end before the edge
    photo = np.asarray(Image.open("photo.jpg").convert("RGB"))
    np.testing.assert_array_equal(drawn[:300, :width], photo)


@pytest.mark.parametrize(
    ("images", "results"),
    [
        (["x/photo.jpg", "x/photo.png", "x/other.webp"], ["photo.jpg", "photo.png", "other"]),
        (["x/photo.jpg", "y/photo.jpg", "y/other.jpg"], ["x_photo.jpg", "y_photo.jpg", "other"]),
        (["x/z/a.jpg", "y/z/a.jpg"], ["x_z_a.jpg", "y_z_a.jpg"]),
        (["x/a.jpg", "x/a.png", "x/a.jpg.png"], ["x_a.jpg", "a.png", "x_a.jpg.png"]),
    ],
)
def test_images_of_one_name_have_results_of_their_own(images, results, run_script):
    for image in images:
        Path(image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(image)
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    folders = sorted({image.partition("/")[0] for image in images})
    run_script(text, Description("classification", ["a", "b"], {}), outputs, *folders)
    written = {path.name for path in Path("results").iterdir()}
    assert written == {f"{name}_result.png" for name in results}


def test_results_differ_in_more_than_upper_and_lower_case(run_script):
    """Some file systems do not tell these apart."""
    Image.new("RGB", (20, 10)).save("Photo.jpg")
    text = script(ClassResult(), {"image_size": 96}, inside=True)
    outputs = {"probabilities": np.float32([[0.9, 0.1]])}
    description = Description("classification", ["a", "b"], {})
    run_script(text, description, outputs, "photo.jpg", "Photo.jpg")
    first, second = sorted(path.name for path in Path("results").iterdir())
    assert (first[:2], second[:2]) == ("1_", "2_")


def test_colours_are_those_of_predict_only_where_there_are_some(tmp_path):
    colours = "in the colours of `python -m src predict`"
    assert colours in card(MASK_RCNN, {"image_scale": [400, 300]}, tmp_path, inside=True)
    text = card(ClassResult(), {"image_size": 96}, tmp_path, inside=True)
    assert colours not in text
    assert "draws them as bars below the image, to\n`results/photo_result.png`." in text


def test_results_for_prepared_images_are_those_of_the_photo(run_script, capsys):
    settings = {"eval_scale": [200, 150]}  # half of the photo
    outputs = {"boxes": np.float32([[10, 20, 110, 70]]), "scores": np.float32([0.9])}
    outputs["labels"] = np.array([1])
    for result in (QueryResult(100, None), replace(MASK_RCNN, mask_threshold=None)):
        text = script(result, settings, task="detection")
        drawn = run_script(text, Description("detection", ["a", "b"], settings), outputs)
        assert drawn.shape == (300, 400, 3)
        assert "b 90.0% box 20.0, 40.0, 220.0, 140.0\n" in capsys.readouterr().out
    settings = {"image_scale": [200, 150], "size_divisor": 1, "palette": [(1, 2, 3), (4, 5, 6)]}
    labels = np.zeros((1, 150, 200), np.int64)
    labels[:, 75:] = 1
    text = script(LabelMapResult(), settings, task="segmentation")
    run_script(text, Description("segmentation", ["a", "b"], settings), {"label_map": labels})
    written = np.asarray(Image.open("results/photo_label_map.png"))
    np.testing.assert_array_equal(written, labels[0].repeat(2, 0).repeat(2, 1))


def test_letters_of_class_names_are_drawn(run_script, tmp_path):
    shutil.copy(FONT, tmp_path)  # as `write` does for such names

    def drawn(name):
        description = Description("classification", [name, "b"], {"image_size": 96} | COLOURS)
        text = result_script(ClassResult(), description, inside=True, masks="box", library=None)
        return run_script(text, description, {"probabilities": np.float32([[0.9, 0.1]])})

    first, second = drawn("ü"), drawn("é")
    assert (first != second).any()  # letters that a font lacks all look the same


@pytest.mark.parametrize("result", [MASK_RCNN, QueryResult(100, None)])
def test_images_of_detectors_are_turned_upright(result, tmp_path):
    settings = {"eval_scale": [400, 300]}
    text = script(result, settings, inside=True, task="detection")
    assert "photo = ImageOps.exif_transpose(photo)" in text
    assert "- upright: True" in card(result, settings, tmp_path, task="detection")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("Paper, https://example.org/paper", "`internimage-lightning` 1.2)."),
        ("Repository, https://example.org/code", "1.2, <https://example.org/code>)."),
    ],
)
def test_the_project_is_named(address, text, tmp_path, monkeypatch):
    content = Message()
    content["Version"] = "1.2"
    content["Project-URL"] = address
    monkeypatch.setattr(project, "metadata", lambda package: content)
    assert text in card(ClassResult(), {"image_size": 96}, tmp_path)
