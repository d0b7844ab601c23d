"""Files for ONNX Runtime with the library of this project, ``--dcn native``."""

import onnx
import pytest
import torch
from PIL import Image

from src.errors import UserError
from src.export import library
from src.export.compare_graphs import compare_graph, runner
from src.export.compare_results import ResultFile, compare_result
from src.export.description import Description
from src.export.differences import LIMITS, TOLERANCE
from src.export.files import NATIVE
from src.export.library import COPY, DOMAIN, installed_library
from src.export.package import Form, possible_names, write
from src.export.predictor import ExportedModel
from src.export.session import session
from tests.export.test_export_files import classifier, images, operators
from tests.export.test_result_files import example, exported, photo, run_script

needs_library = pytest.mark.skipif(installed_library() is None, reason="the library is not built")


def raw(network, folder, formats=("onnx",)):
    """Write the graph of a classifier; returns it and its ONNX file."""
    description = Description("classification", ["a", "b", "c", "d", "e"], {})
    written = write(network, description, folder, formats, Form(dcn=NATIVE, outputs="raw"))
    return next(pair for pair in written.graphs if pair[1].suffix == ".onnx")


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
def test_a_classifier_at_other_batches_and_sizes(threads, tmp_path):
    graph, path = raw(classifier(), tmp_path)
    run = runner(path, threads)
    for shape in ((1, 3, 64, 64), (3, 3, 96, 40), (2, 3, 75, 133)):
        found = compare_graph(graph, run, images(*shape))
        assert found["logits"] < 5e-6
        assert found["probabilities"] < 5e-6
    model = onnx.load(path)
    blocks = [node for node in model.graph.node if node.op_type == "Block"]
    assert [node.domain for node in blocks] == [DOMAIN] * 4
    assert "DeformConv" not in operators(path)
    assert {entry.key: entry.value for entry in model.metadata_props}["library"] == COPY


@needs_library
@pytest.mark.parametrize(
    ("changes", "operator"),
    [
        ({"remove_center": True, "offset_scale": 2.0, "center_feature_scale": True}, "Block"),
        ({"kernel_size": 5, "dw_kernel_size": 3, "post_norm": True, "layer_scale": 0.5}, "Block"),
        ({"core_op": "DCNv4", "dw_kernel_size": 3, "offset_scale": 0.5}, "DCNv4"),
        ({"channels": 24, "groups": (1, 2, 4, 8)}, "DCNv3"),  # no multiple of 16
    ],
    ids=str,
)
def test_operators_of_variants(changes, operator, tmp_path):
    graph, path = raw(classifier(**changes), tmp_path)
    found = compare_graph(graph, runner(path), images(2, 3, 64, 96))
    assert max(found.values()) < TOLERANCE
    assert operator in operators(path)


@needs_library
def test_other_formats_are_not_changed(tmp_path):
    network = classifier()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    graph, _ = raw(network, tmp_path, ("onnx", "pt2"))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    found = compare_graph(graph, runner(tmp_path / "model.pt2"), images(1, 3, 64, 64))
    assert max(found.values()) < TOLERANCE
    assert f"standard operators and those of `{COPY}`" in card_in(tmp_path)


def card_in(folder):
    return (folder / "EXPORT.md").read_text()


@needs_library
@pytest.mark.parametrize(
    "name",
    ["classifier", *(pytest.param(n, marks=pytest.mark.slow) for n in ("upernet", "mask_rcnn"))],
)
def test_results(name, tmp_path):
    network, written = exported(name, tmp_path, dcn=NATIVE)
    assert [path.name for path in written.paths] == ["model.onnx", COPY, "predict.py"]
    file = ResultFile(written.results[0], inside=True, threads=2)
    given = example(name, (90, 130))
    found = compare_result(network, written.result, given, file(given))
    found.pop("prepared")
    assert all(value <= LIMITS.get(key, TOLERANCE) for key, value in found.items()), found


@needs_library
def test_the_script_loads_the_library(tmp_path):
    """Without PyTorch and without this project."""
    exported("classifier", tmp_path, dcn=NATIVE)
    Image.fromarray(photo(90, 130)).save(tmp_path / "photo.jpg")
    text = card_in(tmp_path)
    assert f"- `{COPY}` (" in text
    assert f"standard operators and those of `{COPY}`" in text
    assert "TensorRT" not in text
    done = run_script(tmp_path / "predict.py", tmp_path / "photo.jpg")
    assert done.returncode == 0, done.stderr
    assert "class " in done.stdout


@needs_library
def test_a_library_beside_a_file_is_never_loaded(tmp_path):
    """It is a program of whoever has exported the file."""
    exported("classifier", tmp_path, dcn=NATIVE)
    (tmp_path / COPY).write_bytes(b"not a library")
    found = ExportedModel(tmp_path / "model.onnx")(photo(90, 130))
    assert found["probabilities"].shape == (5,)


@needs_library
def test_smaller_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="compute in float32"):
        exported("classifier", tmp_path, dcn=NATIVE, precisions=["float32", "int8"])


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_INSTALLED", tmp_path / "_onnx.abi3.so")
    with pytest.raises(UserError, match=r"_onnx\.abi3\.so, which is not built.*--dcn deformconv"):
        exported("classifier", tmp_path, dcn=NATIVE)
    assert not list(tmp_path.iterdir())


@needs_library
def test_a_file_without_the_library(tmp_path, monkeypatch):
    _, path = raw(classifier(), tmp_path)
    monkeypatch.setattr(library, "_INSTALLED", tmp_path / "missing.so")
    with pytest.raises(UserError, match="which is not built"):
        session(path)
    with pytest.raises(UserError, match="which is not built"):
        ExportedModel(path)


def test_the_copy_is_replaced_by_a_later_export():
    assert COPY in possible_names(["onnx"])
    assert COPY not in possible_names(["pt2"])
