"""Scripts of files with raw outputs: the result of the network on a photo."""

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from src.export.description import Description
from src.export.graphs import graphs_of
from src.export.package import Form, write
from src.export.script import raw_script
from src.hub import Pretrained
from src.models.segmentation.inference import image_probabilities
from tests.export.test_result_files import COLOURS, NETWORKS, photo

slow = pytest.mark.slow
RAW = Form(outputs="raw")


def written_raw(name, folder, formats):
    """Network and description of raw outputs in these formats, and of a photo in the folder."""
    task, classes, make, settings = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    settings = {**settings, **COLOURS}
    if task == "segmentation":
        settings["palette"] = [[20 * i, 250, 10] for i in range(classes)]
    description = Description(task, [f"class {i}" for i in range(classes)], settings)
    write(network, description, folder, formats, RAW)
    Image.fromarray(photo(90, 130)).save(folder / "photo.png")
    return network, description


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a script on the photo; returns its variables and what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_script(name):
        monkeypatch.setattr("sys.argv", [name, "photo.png"])
        capsys.readouterr()
        return runpy.run_path(str(tmp_path / name)), capsys.readouterr().out

    return run_script


@torch.no_grad()
@pytest.mark.parametrize("name", ["upernet", "segformer", pytest.param("mask2former", marks=slow)])
def test_label_maps(name, tmp_path, run):
    network, _ = written_raw(name, tmp_path, ["onnx", "pt2"])
    for script in ("predict.py", "predict_pt2.py"):
        found, printed = run(script)
        expected = image_probabilities(network, [torch.from_numpy(found["image"])], (90, 130))
        expected = expected[:, : len(found["names"])]  # released weights may have more outputs
        suffix = "_pt2" if script == "predict_pt2.py" else ""
        written = np.asarray(Image.open(f"results/photo_label_map{suffix}.png"))
        assert written.shape == (90, 130)
        assert (written != expected.argmax(dim=1)[0].numpy()).mean() < 1e-3
        best = np.bincount(written.ravel()).argmax()
        assert f"\n{best} class {best} {(written == best).mean():.1%}\n" in printed


@slow
@torch.no_grad()
def test_detections_of_dino(tmp_path, run):
    network, _ = written_raw("dino", tmp_path, ["pt2"])
    found, printed = run("predict_pt2.py")
    image = torch.from_numpy(found["image"])
    size = image.shape[2], image.shape[3]
    padded = torch.nn.functional.pad(image, (0, -size[1] % 32, 0, -size[0] % 32))
    (expected,) = network.detect(padded, [size], [(90, 130)])
    np.testing.assert_allclose(found["found"]["scores"], expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found["found"]["labels"], expected.labels)
    np.testing.assert_allclose(found["found"]["boxes"], expected.boxes, atol=1e-2)
    assert f" of {len(expected.scores)} detections have a score of at least 0.3\n" in printed


@pytest.mark.parametrize("name", ["classifier", "segformer", pytest.param("dino", marks=slow)])
def test_results_are_those_of_predict(name, tmp_path, run):
    network, description = written_raw(name, tmp_path, ["onnx", "pt2"])
    details = np.random.default_rng(0).integers(0, 256, (64, 95, 3), np.uint8)
    # Twice the size of the prepared image of DINO, which all roundings of a bilinear resize give
    # alike: its proposals change places otherwise.
    Image.fromarray(details).resize((380, 256)).save("photo.png")
    names, settings = list(description.class_names), dict(description.preprocessing)
    expected = Pretrained(network, {}, names, description.task, settings).predict("photo.png")
    for script in ("predict.py", "predict_pt2.py"):
        found = run(script)[0]["found"]
        if name == "segformer":
            assert (found["label_map"][0] != expected.label_map.numpy()).mean() < 1e-2
        elif name == "dino":
            np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)
            np.testing.assert_array_equal(found["labels"][:20], expected.labels[:20])
            np.testing.assert_allclose(found["boxes"][:20], expected.boxes[:20], atol=1e-2)
        else:
            probabilities = found["probabilities"][0, expected.labels.numpy()]
            np.testing.assert_allclose(probabilities, expected.scores, atol=1e-5)


def test_missing_pytorch_is_one_sentence(tmp_path, run, monkeypatch):
    written_raw("classifier", tmp_path, ["pt2"])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        SystemExit, match=r"torch.*; the script needs pip install torch numpy pillow"
    ):
        run("predict_pt2.py")


def test_incomplete_model_files_are_one_sentence(tmp_path, run, monkeypatch):
    written_raw("classifier", tmp_path, ["pt2"])
    content = (tmp_path / "model.pt2").read_bytes()
    (tmp_path / "model.pt2").write_bytes(content[: len(content) // 2])
    # It logs a traceback.
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("opened by PyTorch"))
    message = r"^error: model\.pt2 cannot be read \(an incomplete copy\?\): .+$"
    with pytest.raises(SystemExit, match=message):
        run("predict_pt2.py")


@pytest.mark.parametrize("kind", ["onnx", "pt2", "aoti"])
def test_parts_of_a_detector_have_no_script(kind, tmp_path):
    settings = {**NETWORKS["mask_rcnn"][3], **COLOURS}
    first = graphs_of(NETWORKS["mask_rcnn"][2]())[0]
    assert raw_script(kind, first, Description("detection", ["a"] * 3, settings), None) is None


def test_machine_code_of_aotinductor_has_a_script():
    settings = {**NETWORKS["classifier"][3], **COLOURS}
    (graph,) = graphs_of(NETWORKS["classifier"][2]())
    text = raw_script("aoti", graph, Description("classification", ["ä"], settings), None)
    assert text is not None
    compile(text, "predict_aoti.py", "exec")
    assert 'aoti_load_package(str(FOLDER / "model.aoti.pt2"))' in text
