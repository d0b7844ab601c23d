"""One file from image to result: what PyTorch predicts on the same image."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

from src.data.transforms.detection import DetectionEvalTransform
from src.data.transforms.segmentation import EvalTransform
from src.errors import UserError
from src.export.compare_results import (
    Example,
    ResultFile,
    compare_detections,
    compare_result,
)
from src.export.description import Description
from src.export.differences import LIMITS, TOLERANCE
from src.export.graphs import graphs_of
from src.export.package import Form, possible_names, write
from src.export.predictor import ExportedModel
from src.export.results.boxes import apart
from src.export.results.builder import Builder, new_input, set_outputs
from src.export.results.preprocessing import prepare
from src.models import CascadeMaskRCNN, CascadeRCNN, MaskRCNN
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.dcnv3 import DCNv3
from src.types import Detections
from tests.export.test_export_files import TINY, classifier, segformer, segmentor
from tests.export.test_export_sets import filled
from tests.models.conftest import name_weight

slow = pytest.mark.slow
COLOURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SIZES = ((90, 130), (151, 97))
BOX_OUTPUTS = ("boxes", "scores", "labels")
BOUNDS = LIMITS | {"boxes": 1e-3}
"""The images here are small, and rounding of boxes grows with the image."""


def two_stage(kind, **limits):
    """A detector with formula weights that looks several pixels far."""
    backbone = partial(InternImageBackbone, **TINY)
    network = kind(3, backbone, channels=16, fc_channels=24, **limits)
    state = {k: name_weight(k, list(v.shape)) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    for module in network.modules():
        if isinstance(module, DCNv3):
            module.offset.bias.data *= 20
    return network


FIT = {"eval_scale": [200, 128]}
NETWORKS = {
    "classifier": ("classification", 5, classifier, {"image_size": 96, "crop_pct": 0.9}),
    "upernet": (
        "segmentation",
        4,
        segmentor,
        {"image_scale": [400, 100], "size_divisor": 32, "upright": True},
    ),
    "segformer": ("segmentation", 4, segformer, {"image_scale": [200, 100], "size_divisor": 1}),
    "mask2former": (
        "segmentation",
        12,
        partial(filled, "mask2former"),
        {"image_scale": [400, 100], "size_divisor": 32},
    ),
    "mask_rcnn": ("detection", 3, partial(two_stage, MaskRCNN), FIT),
    "cascade": ("detection", 3, partial(two_stage, CascadeMaskRCNN), FIT),
    "cascade_boxes": ("detection", 3, partial(two_stage, CascadeRCNN), FIT),
    "dino": ("detection", 5, partial(filled, "dino"), FIT),
    "cbdino": ("detection", 5, partial(filled, "cbdino"), FIT),
}


def photo(height, width, seed=0):
    """A smooth random image, uint8 ``(height, width, 3)``."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def exported(name, folder, **form):
    """Write a network; returns it, and what was written."""
    task, classes, make, settings = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    names = [f"class {i}" for i in range(classes)]
    if task == "segmentation":
        settings = {**settings, "palette": [[20 * i, 250, 10] for i in range(len(names))]}
    description = Description(task, names, {**settings, **COLOURS})
    return network, write(network, description, folder, ["onnx"], Form(**form))


def example(name, size, seed=0):
    """An image, with zeros for what the recipe prepares, which has the same size."""
    settings = NETWORKS[name][3]
    if "image_size" in settings:
        resized = (settings["image_size"],) * 2
    else:
        scale = settings.get("image_scale") or settings["eval_scale"]
        step = settings.get("size_divisor", 1)
        factor = min(max(scale) / max(size), min(scale) / min(size))
        resized = tuple(-(-int(side * factor + 0.5) // step) * step for side in size)
    return Example(torch.from_numpy(photo(*size, seed)), torch.zeros(1, 3, 256, 256), resized)


def prepared(size, divisor=32):
    """A prepared image that is padded."""
    height, width = size
    generator = torch.Generator().manual_seed(height)
    image = torch.zeros(1, 3, *(-(-side // divisor) * divisor for side in size))
    image[..., :height, :width] = torch.randn(1, 3, height, width, generator=generator)
    return Example(torch.zeros(height, width, 3, dtype=torch.uint8), image, size)


def assert_small(differences):
    for name, value in differences.items():
        if name != "prepared":
            assert value <= BOUNDS.get(name, TOLERANCE), differences


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("settings", "transform", "divisor"),
    [
        (
            {"image_scale": [400, 100], "size_divisor": 32},
            EvalTransform(scale=(400, 100), size_divisor=32),
            1,
        ),
        ({"eval_scale": [200, 128]}, DetectionEvalTransform((200, 128)), 32),
    ],
    ids=["segmentation", "detection"],
)
def test_preprocessing_is_that_of_the_data_modules(settings, transform, divisor, size):
    pixels = photo(*size)
    view = transform(pixels)
    image = (view[0] if isinstance(view, list) else view)[None].float()
    mean, std = (255 * torch.tensor(COLOURS[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    image = (image - mean) / std
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 22})
    op = Builder(graph)
    value = new_input(graph, "image", "UINT8", [1, "height", "width", 3])
    found = prepare(op, value, {**settings, **COLOURS}, divisor)
    set_outputs(op, {"prepared": (found.image, "FLOAT", [1, 3, "h", "w"])})
    file = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    (computed,) = onnxruntime.InferenceSession(file).run(None, {"image": pixels[None]})
    height, width = image.shape[2:]
    assert computed.shape[2:] == (height + -height % divisor, width + -width % divisor)
    assert np.abs(computed[..., :height, :width] - image.numpy()).mean() < 1e-2


@pytest.mark.parametrize(
    "name", ["classifier", *(pytest.param(n, marks=slow) for n in list(NETWORKS)[1:])]
)
def test_images_of_8_bits(name, tmp_path):
    network, written = exported(name, tmp_path)
    assert [path.name for path in written.paths] == ["model.onnx", "predict.py"]
    file = ResultFile(written.paths[0], inside=True)
    for size in SIZES:
        given = example(name, size)
        assert_small(compare_result(network, written.result, given, file(given)))
    graph = onnx.load(written.paths[0]).graph
    operators = {node.op_type for node in graph.node}
    assert "DeformConv" in operators
    assert "GridSample" not in operators
    used = {x for node in graph.node for x in node.input} | {x.name for x in graph.output}
    assert all(used.intersection(node.output) for node in graph.node)


@slow
@pytest.mark.parametrize("name", ["classifier", "upernet", "mask_rcnn", "cascade", "dino"])
def test_prepared_images(name, tmp_path):
    network, written = exported(name, tmp_path, preprocessing="outside")
    file = ResultFile(written.paths[0], inside=False)
    # Only two-stage detectors take padded images.
    is_padded = name in ("mask_rcnn", "cascade")
    for size in ((96, 128), (120, 150) if is_padded else (128, 160)):
        given = prepared(size)
        assert_small(compare_result(network, written.result, given, file(given)))


def test_proposals_that_change_places_are_told_apart_from_other_differences():
    """Detections differ with them; only their scores must be equal up to rounding."""
    network = filled("dino").eval()
    given = prepared((128, 160))
    (graph,) = graphs_of(network)
    with torch.no_grad():
        _, _, proposals, scores = graph.module(given.prepared)
        changed = proposals.clone()
        changed[0, [3, 4]] = proposals[0, [4, 3]]
        logits, boxes, _, _ = graph.module(given.prepared, changed)
    detections = network.bbox_head.best_pairs(logits[0], boxes[0], given.size, given.size)
    found = {
        "prepared": given.prepared,
        "network.proposals": changed,
        **{name: getattr(detections, name) for name in BOX_OUTPUTS},
    }
    differences = compare_result(network, graph.result, given, found)
    gap = float(scores[0, 3] - scores[0, 4])
    assert differences == {
        "prepared": 0,
        "proposals": pytest.approx(2 / proposals.numel()),
        "proposal_scores": pytest.approx(gap),
        "unmatched": 0,
        "boxes": 0,
        "scores": 0,
    }
    assert not torch.equal(network.detect(given.prepared, [given.size])[0].boxes, detections.boxes)
    assert gap > TOLERANCE  # so that a check would fail


@slow
def test_masks_of_the_whole_image(tmp_path):
    network, written = exported("mask_rcnn", tmp_path, masks="image")
    given = example("mask_rcnn", SIZES[0])
    found = ResultFile(written.paths[0], inside=True)(given)
    assert found["masks"].dtype == torch.bool
    assert found["masks"].shape[1:] == SIZES[0]
    assert len(found["masks"]) > 0
    assert_small(compare_result(network, written.result, given, found))


@slow
def test_an_image_without_detections(tmp_path, monkeypatch):
    nothing = partial(two_stage, MaskRCNN, score_threshold=1.0)
    monkeypatch.setitem(NETWORKS, "mask_rcnn", ("detection", 3, nothing, FIT))
    network, written = exported("mask_rcnn", tmp_path)
    given = example("mask_rcnn", SIZES[0])
    found = ResultFile(written.paths[0], inside=True)(given)
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 28, 28)
    assert compare_result(network, written.result, given, found)["unmatched"] == 0


def test_preprocessing_is_that_of_pillow(tmp_path):
    _, written = exported("classifier", tmp_path)
    given = example("classifier", SIZES[0])
    found = ResultFile(written.paths[0], inside=True)(given)["prepared"][0]
    short = int(96 / 0.9)
    resized = Image.fromarray(given.pixels.numpy()).resize(
        (short * 130 // 90, short), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - 96) / 2), round((short - 96) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 96, top + 96))) / 255
    expected = (pixels - COLOURS["mean"]) / COLOURS["std"]
    difference = np.abs(found.numpy() - expected.transpose(2, 0, 1)) * 0.229 * 255
    assert difference.max() < 1.1  # grey values
    assert difference.mean() < 0.01


def test_batches_names_and_metadata(tmp_path):
    _, written = exported("classifier", tmp_path)
    session = onnxruntime.InferenceSession(written.paths[0])
    (given,) = session.get_inputs()
    assert given.shape == ["batch", "height", "width", 3]
    assert session.get_outputs()[0].shape == ["batch", 5]
    images = np.stack([photo(80, 100), photo(80, 100, seed=1)])
    (both,) = session.run(None, {"image": images})
    (second,) = session.run(None, {"image": images[1:]})
    np.testing.assert_allclose(both[1], second[0], atol=1e-6)
    content = session.get_modelmeta().custom_metadata_map
    assert json.loads(content["names"]) == [f"class {i}" for i in range(5)]
    assert json.loads(content["preprocessing"])["image_size"] == 96
    assert "torch" in json.loads(content["versions"])
    project = Path(__file__).parents[2]
    assert str(project).encode() not in written.paths[0].read_bytes()  # no paths of this machine
    predictor = ExportedModel(written.paths[0])
    assert predictor.task == "classification"
    np.testing.assert_allclose(predictor(images[1])["probabilities"], second[0], atol=1e-6)


_BLOCKED = """\
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "src", "cv2"]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(script, *given):
    """Run a script in the folder of the script, without PyTorch and this project."""
    return subprocess.run(
        [sys.executable, "-P", "-c", _BLOCKED, script, *given],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@slow
@pytest.mark.parametrize("preprocessing", ["inside", "outside"])
@pytest.mark.parametrize("name", ["classifier", "upernet", "mask_rcnn", "dino"])
def test_the_description_is_enough_for_a_newcomer(name, preprocessing, tmp_path):
    exported(name, tmp_path, preprocessing=preprocessing)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, as phones save photos
    Image.fromarray(photo(90, 130)).save(tmp_path / "photo.jpg", exif=exif)
    assert "python predict.py photo.jpg" in (tmp_path / "EXPORT.md").read_text()
    done = run_script(tmp_path / "predict.py", tmp_path / "photo.jpg")
    assert done.returncode == 0, done.stderr
    assert ("at least 0.3" in done.stdout) == (name in ("mask_rcnn", "dino"))
    assert "class " in done.stdout or name == "mask_rcnn"
    drawn, given = (
        Image.open(tmp_path / "results/photo_result.png"),
        Image.open(tmp_path / "photo.jpg"),
    )
    if preprocessing == "inside":
        if name != "classifier":  # whose recipe leaves images as they are
            given = ImageOps.exif_transpose(given)
        pixels = np.asarray(drawn)
        if name in ("mask_rcnn", "dino"):
            assert drawn.size == (360, round(360 * given.height / given.width))  # enlarged
            enlarged = given.resize(drawn.size, Image.Resampling.NEAREST)
            assert not np.array_equal(pixels, np.asarray(enlarged))
        else:  # beside or below the image, on white: a legend, or the best classes
            is_map = name == "upernet"
            text = pixels[:, given.width :] if is_map else pixels[given.height :]
            assert (text.max(axis=2) < 100).any()
            assert (text == 255).all(axis=2).mean() > 0.5
            assert (text.max(axis=2) - text.min(axis=2) > 150).any() == is_map  # colours


@slow
@pytest.mark.parametrize("name", ["classifier", "upernet", "mask_rcnn"])
def test_smaller_weights(name, tmp_path):
    network, written = exported(name, tmp_path, precisions=["float32", "float16", "int8"])
    whole, half, int8 = written.results
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    assert int8.stat().st_size < whole.stat().st_size
    given = example(name, SIZES[0])
    for path, limit in ((half, 1e-2), (int8, 0.1)):
        found = compare_result(network, written.result, given, ResultFile(path, inside=True)(given))
        assert 0 < found["probabilities" if name == "classifier" else "scores"] < limit


@pytest.mark.parametrize(
    ("setting", "change"),
    [({"tta": True}, "--data.tta false"), ({"window_size": [64, 64]}, "--model.window_size null")],
)
def test_several_forward_passes_are_refused(setting, change, tmp_path):
    description = Description(
        "segmentation", ["a"], {"image_scale": [400, 100], **COLOURS, **setting}
    )
    with pytest.raises(UserError, match=f"{next(iter(setting))}.* --outputs raw, or set {change}"):
        write(segmentor(), description, tmp_path, ["onnx"], Form())
    assert not list(tmp_path.iterdir())


@slow
@pytest.mark.parametrize("dcn", ["gridsample", "gather"])
@pytest.mark.parametrize(
    "name", ["classifier", "upernet", "segformer", "mask2former", "mask_rcnn", "dino"]
)
def test_openvino_computes_the_same(name, dcn, tmp_path):
    openvino = pytest.importorskip("openvino")
    _, written = exported(name, tmp_path, preprocessing="outside", dcn=dcn)
    path: Path = written.paths[0]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", settings)
    session = onnxruntime.InferenceSession(path)
    size = (128, 160)
    given = {"image": prepared(size).prepared.numpy()}
    if name == "mask_rcnn":
        given["size"] = np.array(size)
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, given), strict=True))
    outputs = model(given)
    if name == "mask_rcnn":  # equal scores may change places
        boxes, scores, labels = (torch.from_numpy(expected[key]) for key in BOX_OUTPUTS)
        found = {key: torch.tensor(outputs[key]) for key in BOX_OUTPUTS}
        assert_small(compare_detections(Detections(boxes, scores, labels), found, size, 0.5))
        return
    for output, value in expected.items():
        if value.dtype == np.int64:
            assert np.mean(outputs[output] != value) < 1e-3
        else:
            np.testing.assert_allclose(outputs[output], value, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_an_earlier_export_are_known_by_name(name):
    """They are deleted by the next export."""
    known = possible_names(["onnx"])
    for graph in graphs_of(NETWORKS[name][2]()):
        assert f"{graph.name}.onnx" in known


def test_a_font_is_written_for_class_names_beyond_ascii(tmp_path):
    _, classes, make, settings = NETWORKS["classifier"]
    names = ["ä", *map(str, range(1, classes))]
    description = Description("classification", names, {**settings, **COLOURS})
    written = write(make().eval(), description, tmp_path, ["onnx"], Form())
    (font,) = written.fonts
    assert {"model.onnx", "predict.py", "EXPORT.md", font.name} == {
        path.name for path in tmp_path.iterdir()
    }
    text = (tmp_path / "EXPORT.md").read_text()
    assert f"- `{font.name}`" in text
    assert f'ImageFont.truetype(str(FOLDER / "{font.name}"), ' in written.scripts[0].read_text()
    assert font.name in possible_names(["onnx"])


def test_too_large_networks_are_refused_before_tracing(tmp_path, monkeypatch):
    monkeypatch.setattr("src.export.precision.LARGEST_SINGLE_FILE", 1000)
    monkeypatch.setattr("src.export.package.trace", lambda graph: pytest.fail("traced"))
    with pytest.raises(UserError, match=r"only up to 1\.9 GB"):
        exported("classifier", tmp_path, precisions=["float32", "int8"])


def test_masks_of_a_network_without_masks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--masks has no effect: .* predicts no masks"):
        exported("classifier", tmp_path, masks="image")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [50, 12_000])
def test_boxes_of_different_groups_do_not_suppress_each_other(count):
    """Groups with the same boxes; from 10,000 boxes on, `grouped_nms` takes another way."""
    corner = 50 * torch.rand(count // 2, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corner, corner + 20], dim=1).round().repeat(2, 1)
    groups = torch.arange(2).repeat_interleave(count // 2)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 22})
    op = Builder(graph)
    given = new_input(graph, "boxes", "FLOAT", [count, 4])
    numbers = new_input(graph, "groups", "INT64", [count])
    shifted = apart(op, given, op.Unsqueeze(numbers, [1]), None)
    set_outputs(op, {"shifted": (shifted, "FLOAT", [count, 4])})
    file = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    inputs = {"boxes": boxes.numpy(), "groups": groups.numpy()}
    (found,) = onnxruntime.InferenceSession(file).run(None, inputs)
    first, second = torch.from_numpy(found).split(count // 2)
    assert second.min() > first.max()
